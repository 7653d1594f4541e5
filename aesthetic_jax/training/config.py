"""Every field of a training config, with its default. The files in configs/ start from here and change what they must."""

from collections.abc import Callable

from ml_collections import ConfigDict, config_dict

from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import ATTENTION, PRESETS


def base_config() -> ConfigDict:
    """What SFT and GRPO have in common."""
    config = ConfigDict()
    config.method = "sft"  # "sft" or "grpo"
    config.seed = 0
    config.init_from = ""  # a run directory, one of its checkpoints, or a Hugging Face directory; "": random parameters
    config.num_steps = 1000
    config.batch_size = 32  # prompts per step, over all hosts
    config.micro_batches = 1  # gradient accumulation: parts that a batch is cut into
    config.log_every = 10  # steps
    config.checkpoint_every = 500  # steps; the last step is always saved
    config.keep_checkpoints = 2  # newest ones
    config.eval_every = 0  # steps; 0: never
    config.eval_samples = 256  # of the validation split
    config.eval_batch_size = 32  # prompts
    config.max_completion_length = 512  # tokens that are sampled at most

    config.model = ConfigDict()
    config.model.preset = "internvl3_2b"  # used when init_from is ""
    config.model.dtype = "bfloat16"  # activations; parameters are float32
    config.model.remat = "full"  # "none", "dots", "full"
    config.model.attention = (
        "auto"  # "xla", "cudnn" (GPU), "splash" (TPU); "auto": the device's own where it takes the model
    )
    config.model.freeze = ("vision",)  # of vision, projector, language
    config.model.lora_rank = 0  # above 0: the language model is trained through LoRA
    config.model.lora_alpha = 32.0
    config.model.vocab_size = 1024  # of the tokenizer that a model from scratch is trained with

    config.data = ConfigDict()
    config.data.manifest = ""  # one of manifest and data_dir
    config.data.data_dir = ""
    config.data.max_images = 5  # per prompt, the original included
    config.data.max_tiles = 1  # per image; above 1 a thumbnail tile comes on top
    config.data.prompt_buckets = (1536,)  # lengths that prompts are padded to, ascending
    config.data.completion_buckets = (256, 512)
    config.data.system_prompt = ""
    config.data.final_newline = (
        False  # teach the newline behind a turn too: True as TRL counts, False as OpenGVLab does
    )
    config.data.threads = 8  # that read and decode ahead

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-5
    config.optimizer.vision_factor = 1.0  # of the learning rate, for vision tower and projector
    config.optimizer.schedule = "cosine"  # "constant", "linear", "cosine"
    config.optimizer.warmup_updates = 0
    config.optimizer.end_factor = 0.0  # share of the learning rate that the decay ends at
    config.optimizer.weight_decay = 0.05
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.999
    config.optimizer.epsilon = 1e-8
    config.optimizer.clip_norm = 1.0

    config.mesh = ConfigDict()  # number of devices along each axis of the mesh; 0 or -1: what is left
    config.mesh.data = 0  # rows of a batch, across slices; beside another axis that is left open: the number of slices
    config.mesh.fsdp = -1  # rows of a batch, and the pieces that parameters and optimiser state are kept in
    config.mesh.tensor = 1  # attention heads, MLP and vocabulary
    # While sampling, each device holds all layers of the language model, in config.model.dtype, whole along fsdp; without, each
    # layer is gathered for every token: slow, and the choice where they don't fit.
    config.mesh.hold_layers = True

    config.hard_cases = ConfigDict()
    # "off": shuffled epochs; "online": plans follow the difficulty table, which training's rollouts fill; "two_stage": rollouts
    # on the whole train split fill it first
    config.hard_cases.mode = "off"
    config.hard_cases.round_steps = 50  # steps of a round, for which the order of samples is fixed
    return config


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
    """Stage 2 of InternVL3-2B: plain GRPO with the exact reward and no mining; names as in TRL's GRPOConfig."""
    config = base_config()
    config.method = "grpo"
    config.batch_size = 64
    config.micro_batches = 4
    config.log_every = 1
    config.checkpoint_every = 100
    config.eval_every = 100
    config.optimizer.learning_rate = 1e-6
    config.optimizer.schedule = "linear"
    config.optimizer.weight_decay = 0.0

    config.grpo = ConfigDict()
    config.grpo.num_generations = 8  # completions per prompt
    config.grpo.temperature = 1.0
    config.grpo.num_iterations = 1  # optimiser updates per rollout
    config.grpo.scale_rewards = "group"  # "group", "batch", "none"
    config.grpo.loss_type = "dapo"  # "grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"
    config.grpo.epsilon = 0.2
    config.grpo.epsilon_high = config_dict.placeholder(float)  # None: epsilon
    config.grpo.delta = config_dict.placeholder(float)
    config.grpo.beta = 0.0  # above 0: KL to the model that training starts from
    config.grpo.importance_sampling_level = "token"  # "token", "sequence"
    config.grpo.use_bias_correction_kl = True

    config.reward = ConfigDict()
    config.reward.variant = "exact"  # "subset", "jaccard", "f1", "per_option", "exact"
    config.reward.dpa_anneal = False  # move from the variant to exact match over training
    config.reward.accuracy_weight = 0.9
    config.reward.format_weight = 0.1

    config.hard_cases.weighting = "continuous"  # weights by the failure rate; "threshold": hard or not, by hard_below
    config.hard_cases.floor = 0.1  # weight of a sample that is always solved; one that never is weighs 1
    config.hard_cases.oversampling = 0.0  # above 0, in place of the floor: hardest over easiest weight, 1 / floor
    config.hard_cases.power = 1.0  # of the failure rate in continuous weights
    config.hard_cases.coverage_quota = 0.2  # share of a plan for the samples that were not seen for longest
    config.hard_cases.prior = 0.5  # pass rate of a sample not seen yet
    config.hard_cases.decay = 0.5  # what a visit leaves of the former pass rate
    config.hard_cases.hard_below = (
        0.5  # pass rate under which a sample counts as hard, in metrics and threshold weights
    )
    config.hard_cases.band_visits = 0  # above 0: a sample not solved once in so many visits is left out for a while:
    config.hard_cases.band_rest = 1000  # steps since its last visit, after which it is looked at again
    config.hard_cases.balance_dimensions = False  # each dimension has the same share of the weights
    config.hard_cases.mine_at = (
        0  # step before which two_stage mines, a round's first; plans before it are shuffled epochs
    )
    config.hard_cases.mine_rollouts = 8  # completions that two_stage and the mine command sample of each prompt
    config.hard_cases.table = ""  # folder that the mine command wrote: the table to begin with
    return config


def check_config(config: ConfigDict) -> None:
    """Refuses values that would only fail later, or never; one line that names the field."""

    def need(field: str, holds: bool, mend: str) -> None:
        if not holds:
            raise UserError(f"config.{field}: {mend}")

    need("method", config.method in ("sft", "grpo"), f"is '{config.method}'; choose sft or grpo")
    for field in ("num_steps", "batch_size", "micro_batches", "log_every", "checkpoint_every", "keep_checkpoints"):
        need(field, config[field] >= 1, f"is {config[field]}; give at least 1")
    need("micro_batches", config.batch_size % config.micro_batches == 0, f"must divide batch_size {config.batch_size}")
    need("hard_cases.round_steps", config.hard_cases.round_steps >= 1, "give at least 1")
    need("hard_cases.mode", config.hard_cases.mode in ("off", "online", "two_stage"), "choose off, online or two_stage")
    need("data.manifest", bool(config.data.manifest) != bool(config.data.data_dir), "give this or config.data.data_dir")
    need(
        "model.preset", config.model.preset in PRESETS, f"no '{config.model.preset}'; choose from {', '.join(PRESETS)}"
    )
    need("model.dtype", config.model.dtype in ("float32", "bfloat16"), "choose float32 or bfloat16")
    need("model.remat", config.model.remat in ("none", "dots", "full"), "choose none, dots or full")
    need("model.attention", config.model.attention in ATTENTION, f"choose from {', '.join(ATTENTION)}")
    need("data.max_tiles", config.data.max_tiles >= 1, f"is {config.data.max_tiles}; give at least 1")
    for field in ("prompt_buckets", "completion_buckets"):
        buckets = config.data[field]
        ascending = len(buckets) > 0 and list(buckets) == sorted(set(buckets)) and buckets[0] >= 2
        need(f"data.{field}", ascending, "give ascending lengths of at least 2, such as (512, 1024)")
    longest = config.max_completion_length
    need("max_completion_length", longest >= 2, f"is {longest}; give at least 2")
    if config.method == "grpo":
        need(
            "grpo.num_generations", config.grpo.num_generations >= 2, "give at least 2: a group is compared with itself"
        )
        need("grpo.temperature", config.grpo.temperature > 0, "give more than 0: a group needs different completions")
        need("grpo.num_iterations", config.grpo.num_iterations >= 1, "give at least 1")
        _check_hard_cases(config, need)
    else:
        need(
            "hard_cases.mode", config.hard_cases.mode == "off", "difficulty comes from rollouts; SFT has none, use off"
        )


def _check_hard_cases(config: ConfigDict, need: Callable[[str, bool, str], None]) -> None:
    settings = config.hard_cases
    for field in ("floor", "coverage_quota", "prior", "decay", "hard_below"):
        need(f"hard_cases.{field}", 0 <= settings[field] <= 1, f"is {settings[field]}; give a number from 0 to 1")
    need("hard_cases.weighting", settings.weighting in ("continuous", "threshold"), "choose continuous or threshold")
    need(
        "hard_cases.oversampling",
        settings.oversampling == 0 or settings.oversampling >= 1,
        f"is {settings.oversampling}; give at least 1, or 0 to leave it to the floor",
    )
    need("hard_cases.power", settings.power > 0, f"is {settings.power}; give more than 0")
    for field, least in (("band_visits", 0), ("band_rest", 1), ("mine_at", 0), ("mine_rollouts", 1)):
        need(f"hard_cases.{field}", settings[field] >= least, f"is {settings[field]}; give at least {least}")
    need(
        "hard_cases.mine_at",
        settings.mine_at % settings.round_steps == 0,
        f"is {settings.mine_at}; give a multiple of hard_cases.round_steps, which is {settings.round_steps}",
    )
    need("hard_cases.table", not settings.table or settings.mode != "off", "is not used where hard_cases.mode is off")
    need("hard_cases.table", not settings.table or not settings.mine_at, "goes with hard_cases.mine_at=0 only")
