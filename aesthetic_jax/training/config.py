"""Every field of a training config, with its default, and the check of their values.

The files in configs/ start from these defaults.
"""

from typing import Any

from ml_collections import ConfigDict, config_dict

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import ATTENTION, PRESETS


def base_config() -> ConfigDict:
    """What SFT and GRPO have in common."""
    config = ConfigDict()
    config.method = "sft"  # "sft" or "grpo"
    config.seed = 0
    # A run directory, one of its checkpoints, a Hugging Face directory, or a hub id such as
    # OpenGVLab/InternVL3-2B or hf://OWNER/NAME@REVISION; "": random parameters.
    config.init_from = ""
    config.num_steps = 1000
    config.batch_size = 32  # prompts per step, over all hosts
    config.micro_batches = 1  # gradient accumulation: microbatches per batch
    config.log_every = 10  # steps
    config.checkpoint_every = 500  # steps; the last step is always saved
    config.keep_checkpoints = 2  # newest ones
    config.eval_every = 0  # steps; 0: never
    config.eval_samples = 256  # of the validation split; 0: all
    config.eval_batch_size = 32  # prompts
    config.max_completion_length = 512  # tokens of a sampled completion at most
    config.model = _model()
    config.data = _data()
    config.optimizer = _optimizer()
    config.mesh = _mesh()
    config.hard_cases = _hard_cases()
    return config


def _model() -> ConfigDict:
    """The model and its execution."""
    settings = ConfigDict()
    settings.preset = "internvl3_2b"  # used if init_from is ""
    settings.dtype = "bfloat16"  # of activations; parameters are float32
    settings.remat = "full"  # "none", "dots", "full"
    # "xla", "cudnn" (GPU), "splash" (TPU); "auto": the device's own if it supports the model.
    settings.attention = "auto"
    settings.freeze = ("vision",)  # of vision, projector, language
    settings.lora_rank = 0  # above 0: trains the language model through LoRA
    settings.lora_alpha = 32.0
    settings.vocab_size = 1024  # of the tokenizer trained for a model from scratch
    # Built data set whose texts also train that tokenizer; "": none.
    settings.tokenizer_data = ""
    return settings


def _data() -> ConfigDict:
    """Where samples come from, and how they become arrays."""
    settings = ConfigDict()
    settings.manifest = ""  # one of manifest and data_dir
    settings.data_dir = ""
    settings.max_images = 5  # per prompt, the original included
    settings.max_tiles = 1  # per image; above 1, a thumbnail tile is added
    settings.prompt_buckets = (1536,)  # lengths that prompts are padded to, ascending
    settings.completion_buckets = (256, 512)  # the same for completions
    settings.system_prompt = ""
    # Also train on the newline after a turn: True as in TRL, False as in OpenGVLab's training.
    settings.final_newline = False
    settings.threads = 8  # that read and decode ahead
    return settings


def _optimizer() -> ConfigDict:
    """AdamW and its schedule."""
    settings = ConfigDict()
    settings.learning_rate = 2e-5
    settings.vision_lr_scale = 1.0  # times the learning rate, for tower and projector
    settings.schedule = "cosine"  # "constant", "linear", "cosine"
    settings.warmup_updates = 0
    settings.end_lr_ratio = 0.0  # share of the learning rate at the end of the decay
    settings.weight_decay = 0.05
    settings.b1 = 0.9
    settings.b2 = 0.999
    settings.epsilon = 1e-8
    settings.clip_norm = 1.0
    return settings


def _mesh() -> ConfigDict:
    """Devices along each mesh axis; 0 or -1: all remaining."""
    settings = ConfigDict()
    settings.data = 0  # splits rows, across slices; 0 beside fsdp=-1: the number of slices
    settings.fsdp = -1  # splits rows, parameters and optimiser state
    settings.tensor = 1  # splits attention heads, MLP and vocabulary
    # While sampling, each device holds all language-model layers in model.dtype. False: layers are
    # all-gathered for every token; slow, but needs less memory.
    settings.replicate_for_rollout = True
    return settings


def _hard_cases() -> ConfigDict:
    """Hard-case mining; a round is the steps between two plans."""
    settings = ConfigDict()
    # "off": shuffled epochs. "online": plans follow the difficulty table, which training's
    # rollouts fill. "two_stage": rollouts of the whole train split fill it first.
    settings.mode = "off"
    settings.round_steps = 50  # steps of a round
    # "failure": weights by the failure rate; "threshold": hard or not, by hard_below; "variance":
    # largest where half of the answers are right, after correction for lucky guesses.
    settings.weighting = "failure"
    settings.floor = 0.1  # weight of the easiest samples; the hardest weigh 1
    settings.oversampling = 0.0  # above 0, replaces the floor: hardest over easiest weight
    settings.power = 1.0  # of the failure rate
    settings.repeat_distance = 4  # least distance of a sample's visits in batches, if there is room
    settings.coverage_quota = 0.2  # share of a plan for the least recently seen samples
    settings.prior = 0.5  # pass rate of a sample not seen yet
    settings.decay = 0.5  # weight of the old pass rate when a new one is averaged in
    settings.hard_below = 0.5  # pass rate below which a sample counts as hard
    # Above 0: a sample rests for rest_steps once it has this many completions and their exact
    # answers are no more than lucky guesses give (one-sided binomial test, 5 %).
    settings.rest_after_completions = 0
    settings.rest_steps = 1000  # steps since its last visit, after which it is seen again
    settings.balance_dimensions = False  # gives each dimension the same share of the weights
    # Step before which two_stage mines, a round's first; earlier plans are shuffled epochs.
    settings.mine_step = 0
    settings.mine_rollouts = 8  # completions per prompt that two_stage and `mine` sample
    settings.mine_every = 0  # two_stage mines again every so many steps; 0: never
    settings.mine_probe = 1.0  # share of the samples, those that weigh most, that it then mines
    settings.table = ""  # folder that `mine` wrote: the table to start with
    return settings


def sft_config() -> ConfigDict:
    """Stage 1 of InternVL3-2B, with InternVL's published fine-tuning settings."""
    config = base_config()
    config.batch_size = 128
    config.micro_batches = 8
    config.checkpoint_every = 250
    config.eval_every = 250
    config.optimizer.warmup_updates = 30
    return config


def grpo_config() -> ConfigDict:
    """Stage 2 of InternVL3-2B: plain GRPO, exact reward, no mining; names as TRL's GRPOConfig."""
    config = base_config()
    config.method = "grpo"
    config.batch_size = 64
    # Mining needs revisits. At the paper's size, 102,400 training samples, 3,200 steps x 64 prompts
    # are 204,800 visits, 2 a sample. If a quarter is hard, 57 % of two_stage's visits are revisits
    # and 50 % of online's. With 1,000 steps it would be 31 % and 14 %.
    config.num_steps = 3200
    config.micro_batches = 4
    config.log_every = 1
    config.checkpoint_every = 100
    config.eval_every = 100
    config.optimizer.learning_rate = 1e-6  # TRL's default for GRPO
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.0

    config.grpo = ConfigDict()
    config.grpo.num_generations = 8  # completions per prompt
    config.grpo.temperature = 1.0
    config.grpo.num_iterations = 1  # optimiser updates per rollout
    # "group", "batch", "none". Division by a group's standard deviation gives a group with a single
    # lucky guess as much weight as any other (Dr. GRPO, arXiv 2503.20783).
    config.grpo.scale_rewards = "none"
    config.grpo.loss_type = "dapo"  # "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"
    config.grpo.epsilon = 0.2
    config.grpo.epsilon_high = config_dict.placeholder(float)  # None: epsilon
    config.grpo.delta = config_dict.placeholder(float)
    # Above 0: KL to the model that training starts from. DAPO (arXiv 2503.14476) needs none.
    config.grpo.beta = 0.0
    config.grpo.importance_sampling_level = "token"  # "token", "sequence"
    config.grpo.use_bias_correction_kl = True

    config.reward = ConfigDict()
    config.reward.variant = "exact"  # "subset", "jaccard", "f1", "per_option", "exact"
    config.reward.dpa_anneal = False  # moves from the variant to exact match over training
    # "exact": partial credit counts only in groups in which a completion is exactly right.
    config.reward.gate = "off"  # "off", "exact"
    config.reward.accuracy_weight = 0.9
    config.reward.format_weight = 0.1
    return config


def check_config(config: ConfigDict, needs_data: bool = True) -> None:
    """Refuses values that would fail only later, or fail silently.

    Args:
        needs_data: whether a data set must be named; compiling reads none.

    Raises:
        UserError: names the field and the fix.
    """
    method = config.get("method")
    _need("method", method in ("sft", "grpo"), f"is {method!r}; choose 'sft' or 'grpo'")
    for field in (
        "num_steps",
        "batch_size",
        "micro_batches",
        "log_every",
        "checkpoint_every",
        "keep_checkpoints",
    ):
        _need_at_least(field, config[field], 1)
    divides = config.batch_size % config.micro_batches == 0
    _need("micro_batches", divides, f"must divide batch_size {config.batch_size}")
    _need_at_least("max_completion_length", config.max_completion_length, 2)
    if needs_data:
        one_source = bool(config.data.manifest) != bool(config.data.data_dir)
        _need("data.manifest", one_source, "give this or config.data.data_dir")
    _check_model_and_data(config)
    _check_hard_cases(config.hard_cases)
    if config.method == "grpo":
        settings = config.grpo
        group = settings.num_generations
        _need(
            "grpo.num_generations", group >= 2, "give at least 2: a group is compared with itself"
        )
        hot = settings.temperature > 0
        _need("grpo.temperature", hot, "give more than 0: a group needs different completions")
        _need_at_least("grpo.num_iterations", settings.num_iterations, 1)
        _need_choice("reward.gate", config.reward.gate, ("off", "exact"))
    else:
        off = config.hard_cases.mode == "off"
        _need("hard_cases.mode", off, "difficulty comes from rollouts; SFT has none, use off")


def _check_model_and_data(config: ConfigDict) -> None:
    data, model = config.data, config.model
    _need_choice("model.preset", model.preset, PRESETS)
    _need_choice("model.dtype", model.dtype, ("float32", "bfloat16"))
    _need_choice("model.remat", model.remat, ("none", "dots", "full"))
    _need_choice("model.attention", model.attention, ATTENTION)
    _need_at_least("data.max_tiles", data.max_tiles, 1)
    for field in ("prompt_buckets", "completion_buckets"):
        buckets = list(data[field])
        ascending = bool(buckets) and buckets == sorted(set(buckets)) and buckets[0] >= 2
        mend = "give ascending lengths of at least 2, such as (512, 1024)"
        _need(f"data.{field}", ascending, mend)


def _check_hard_cases(settings: ConfigDict) -> None:
    _need_choice("hard_cases.mode", settings.mode, ("off", "online", "two_stage"))
    _need_choice("hard_cases.weighting", settings.weighting, ("failure", "threshold", "variance"))
    for field in ("floor", "coverage_quota", "prior", "decay", "hard_below"):
        in_range = 0 <= settings[field] <= 1
        _need(f"hard_cases.{field}", in_range, f"is {settings[field]}; give a number from 0 to 1")
    for field, least in (
        ("round_steps", 1),
        ("repeat_distance", 1),
        ("rest_after_completions", 0),
        ("rest_steps", 1),
        ("mine_step", 0),
        ("mine_rollouts", 1),
        ("mine_every", 0),
    ):
        _need_at_least(f"hard_cases.{field}", settings[field], least)
    _need(
        "hard_cases.oversampling",
        settings.oversampling == 0 or settings.oversampling >= 1,
        f"is {settings.oversampling}; give at least 1, or 0 to use the floor",
    )
    _need("hard_cases.power", settings.power > 0, f"is {settings.power}; give more than 0")
    for field in ("mine_step", "mine_every"):
        _need(
            f"hard_cases.{field}",
            settings[field] % settings.round_steps == 0,
            f"is {settings[field]}; give a multiple of hard_cases.round_steps, which is "
            f"{settings.round_steps}",
        )
    probe = settings.mine_probe
    _need("hard_cases.mine_probe", 0 < probe <= 1, f"is {probe}; give more than 0, at most 1")
    mines_again = settings.mode == "two_stage" or not settings.mine_every
    _need("hard_cases.mine_every", mines_again, "is used only where hard_cases.mode is two_stage")
    if settings.table:
        used = settings.mode != "off"
        _need("hard_cases.table", used, "is not used where hard_cases.mode is off")
        _need("hard_cases.table", not settings.mine_step, "goes with hard_cases.mine_step=0 only")


def _need(field: str, holds: bool, mend: str) -> None:
    if not holds:
        raise UserError(f"config.{field}: {mend}")


def _need_at_least(field: str, value: Any, least: int) -> None:
    _need(field, value >= least, f"is {value}; give at least {least}")


def _need_choice(field: str, value: str, choices: Any) -> None:
    _need(field, value in choices, f"no '{value}'; choose from {', '.join(choices)}")
