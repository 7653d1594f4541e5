"""The loop: batches in the order of round plans, steps, the difficulty table, logging, checkpoints, evaluation.

A step is one batch of prompts; in GRPO it holds the rollout and all updates on it, so that nothing is pending between
steps. Parameters, optimiser, difficulty table and the current plan are saved together, and together decide what follows.
"""

import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from ml_collections import ConfigDict
from tqdm import tqdm

from aesthetic_jax.checkpoints import training as checkpoints
from aesthetic_jax.data import hard_cases
from aesthetic_jax.data.pipeline import Batch, Encoder, epoch_plan, planned_batches, trim
from aesthetic_jax.data.prompts import completion_text, prompt_text, question_text
from aesthetic_jax.data.records import Record, open_records
from aesthetic_jax.data.tokenizer import ChatTokenizer, copy_tokenizer, load_tokenizer, save_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.models.config import InternVLConfig
from aesthetic_jax.rl.advantages import group_advantages
from aesthetic_jax.training import grpo
from aesthetic_jax.training.config import check_config
from aesthetic_jax.training.evaluation import make_greedy, predict, summarize_predictions
from aesthetic_jax.training.flops import batch_flops, peak_flops
from aesthetic_jax.training.metrics import MetricsWriter, truncate
from aesthetic_jax.training.model import initial_model, make_encoder, tokenizer_directory
from aesthetic_jax.training.provenance import check_same_config, write_config
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.state import Parameters, TrainState, init_state, make_optimizer, split, split_rows

# (state, batch, number of the step) -> (state, metrics, exact rate of each prompt or None); the metrics hold `tokens` and
# `flops`, the work that the step was
Step = Callable[[TrainState, Batch, int], tuple[TrainState, dict[str, Any], np.ndarray | None]]


def make_sft(config: ConfigDict, architecture: InternVLConfig, graph: nnx.GraphDef, optimizer: Any) -> Step:
    """SFT as the loop sees it."""
    update = make_sft_update(graph, optimizer)
    vision_passes = 1 if "vision" in config.model.freeze else 3

    def step(state: TrainState, batch: Batch, _):
        parts = split_rows(batch, batch.completion_mask, config.micro_batches)
        state, metrics = update(state, [trim(part, config.data) for part in parts])
        forward = batch_flops(architecture, batch.prompt_ids, batch.prompt_mask, batch.completion_mask)
        work = {
            "tokens": batch.prompt_mask.sum() + batch.completion_mask.sum(),
            "flops": vision_passes * forward.vision + 3 * forward.language,
        }
        return state, metrics | work, None

    return step


def make_grpo(
    config: ConfigDict,
    architecture: InternVLConfig,
    graph: nnx.GraphDef,
    optimizer: Any,
    tokenizer: ChatTokenizer,
    reference: Parameters | None,
) -> Step:
    """GRPO as the loop sees it: rollout, rewards on the host, then num_iterations updates.

    Args:
        reference: parameters of the reference model; None where beta is 0.
    """
    settings = config.grpo
    sample = jax.jit(
        functools.partial(
            grpo.rollout,
            graph=graph,
            group=settings.num_generations,
            max_length=config.max_completion_length,
            end_token=tokenizer.end,
            pad_token=tokenizer.pad,
            temperature=settings.temperature,
        )
    )
    vision_features = jax.jit(functools.partial(grpo.vision_features, graph=graph))
    reference_logprobs = jax.jit(functools.partial(grpo.logprobs, graph=graph, temperature=settings.temperature))
    names = "loss_type epsilon epsilon_high delta beta importance_sampling_level use_bias_correction_kl".split()
    update = grpo.make_grpo_update(
        graph,
        optimizer,
        temperature=settings.temperature,
        max_completion_length=config.max_completion_length,
        **{name: settings[name] for name in names},
    )
    key = jax.random.key(config.seed)
    frozen_vision = "vision" in config.model.freeze
    language_passes = 1 + (reference is not None) + 3 * settings.num_iterations
    vision_passes = 1 if frozen_vision else language_passes

    def step(state: TrainState, batch: Batch, number: int):
        began = time.perf_counter()
        if frozen_vision:  # rollout, reference and every update see the same
            batch = batch._replace(tiles=vision_features(state.parameters, batch.tiles))
        rollout = jax.block_until_ready(sample(state.parameters, batch, jax.random.fold_in(key, number)))
        sampled = time.perf_counter()
        scores = grpo.score(grpo.decode(rollout, tokenizer), batch, config.reward, number / config.num_steps)
        scored = time.perf_counter()
        experience = grpo.Experience(
            tiles=batch.tiles,
            prompt_ids=batch.prompt_ids,
            prompt_mask=batch.prompt_mask,
            completion_ids=rollout.ids,
            completion_mask=rollout.mask,
            advantages=group_advantages(jnp.asarray(scores.reward), scale_rewards=settings.scale_rewards),
            old_logprobs=rollout.logprobs if settings.num_iterations > 1 else None,
            ref_logprobs=None,
        )
        if reference is not None and settings.num_iterations > 1:  # a single update computes them itself
            experience = experience._replace(ref_logprobs=reference_logprobs(reference, batch, rollout.ids))
        parts = split_rows(experience, rollout.mask, config.micro_batches)
        parts = [grpo.trim_completions(part, config.data.completion_buckets) for part in parts]
        for _ in range(settings.num_iterations):
            state, metrics = update(state, parts, reference)
        state = jax.block_until_ready(state)
        times = {"rollout_s": sampled - began, "reward_s": scored - sampled, "update_s": time.perf_counter() - scored}
        mask = np.asarray(rollout.mask)
        forward = batch_flops(architecture, batch.prompt_ids, batch.prompt_mask, mask)
        work = {
            "tokens": batch.prompt_mask.sum() + mask.sum(),
            "flops": vision_passes * forward.vision + language_passes * forward.language,
        }
        return state, metrics | grpo.rollout_metrics(rollout, scores) | times | work, scores.exact.mean(axis=1)

    return step


def train(config: ConfigDict, workdir: str) -> None:
    """Runs a config in a run directory, from its newest checkpoint if it has one.

    Raises:
        UserError: the config, the data or what is in the directory does not fit.
    """
    check_config(config)
    records = open_records(config.data.manifest, config.data.data_dir, "train")
    candidates = _candidates(config, records)
    architecture, tokenizer, parameters, resumed = _begin(config, workdir, records, candidates)
    encoder = make_encoder(config, architecture, tokenizer)
    graph, shapes = checkpoints.abstract_model(architecture)

    updates_per_step = config.grpo.num_iterations if config.method == "grpo" else 1
    optimizer = make_optimizer(config.optimizer, config.num_steps * updates_per_step)
    start = functools.partial(
        init_state, optimizer=optimizer, freeze=tuple(config.model.freeze), lora=bool(config.model.lora_rank)
    )
    round_length = config.hard_cases.round_steps * config.batch_size
    table = hard_cases.init_table(len(candidates), config.hard_cases.get("prior", 0.5))
    plan = np.zeros(round_length, np.int32)
    reference = None
    if config.method == "grpo" and config.grpo.beta:
        reference = parameters if resumed is None else initial_model(config, lambda: ())[1]
    manager = checkpoints.open_manager(workdir, config.keep_checkpoints)
    if resumed is None:
        state = jax.jit(start)(jax.tree.map(jnp.copy, parameters))
    else:
        expected = jax.eval_shape(start, shapes)
        parameters, optimizer_state, (table, plan) = checkpoints.restore(
            manager, resumed, shapes, expected.optimizer, (table, plan)
        )
        trained, frozen = split(parameters, tuple(config.model.freeze), bool(config.model.lora_rank))
        state = TrainState(trained, frozen, optimizer_state)
    del parameters

    if config.method == "sft":
        step = make_sft(config, architecture, graph, optimizer)
    else:
        step = make_grpo(config, architecture, graph, optimizer, tokenizer, reference)
    evaluate = _make_evaluate(config, graph, encoder) if config.eval_every else None

    done = resumed or 0
    truncate(workdir, done)
    writer = MetricsWriter(workdir)
    progress = tqdm(total=config.num_steps, initial=done, desc=config.method, unit="step", disable=None)
    batches: Iterator[Batch] | None = None
    peak = peak_flops(config.model.dtype)
    waited, tokens, flops, logged, since = 0.0, 0, 0.0, done, time.perf_counter()
    while done < config.num_steps:
        round_index, place = divmod(done, config.hard_cases.round_steps)
        if place == 0:
            plan = _make_plan(config, round_index, candidates, table)
        if batches is None or place == 0:
            batches = planned_batches(
                records,
                plan,
                encoder,
                config.batch_size,
                with_completion=config.method == "sft",
                start=place,
                threads=config.data.threads,
            )
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        state, metrics, exact = step(state, batch, done)
        tokens, flops = tokens + metrics.pop("tokens"), flops + metrics.pop("flops")
        done += 1
        last = done == config.num_steps
        if exact is not None:
            rows = np.searchsorted(candidates, batch.index)
            hard = hard_cases.is_hard(table, rows, config.hard_cases.hard_below).mean()
            table = hard_cases.update_table(table, rows, exact, done, config.hard_cases)
            metrics |= {"hard_cases/in_batch": hard} | hard_cases.table_statistics(table)
        if evaluate and (done % config.eval_every == 0 or last):
            metrics |= evaluate(state.parameters)
        if done % config.log_every == 0 or last:
            metrics = jax.device_get(metrics)
            now = time.perf_counter()
            spent, steps = now - since, done - logged
            speed = {
                "step_s": spent / steps,
                "input_wait_s": waited / steps,
                "tokens_per_s": tokens / spent,
                "model_flops_per_s": flops / spent,
                "time_mfu": flops / spent / peak,
            }
            shown = writer.write(done, metrics | speed)
            waited, tokens, flops, logged, since = 0.0, 0, 0.0, done, now
            progress.set_postfix({name: f"{shown[name]:.3f}" for name in ("loss", "reward", "exact") if name in shown})
        progress.update()
        if done % config.checkpoint_every == 0 or last:
            checkpoints.save(manager, done, state.parameters, state.optimizer, (table, plan))
    manager.wait_until_finished()
    manager.close()
    writer.close()


def _candidates(config: ConfigDict, records) -> np.ndarray:
    """Indices of the records that a method can learn from: SFT needs a chain of thought."""
    if config.method == "grpo":
        return np.arange(len(records))
    candidates = np.flatnonzero(records.has_reasoning())
    if not candidates.size:
        raise UserError("config.data: no sample of the train split has reasoning to learn from; SFT needs some")
    return candidates


def _begin(config: ConfigDict, workdir: str, records, candidates: np.ndarray) -> tuple:
    """Architecture, tokenizer, parameters and the step to resume from (None: parameters are the initial ones)."""
    resumed = checkpoints.newest_step(workdir)
    if resumed is not None:
        check_same_config(config, workdir)
        return checkpoints.read_architecture(workdir), load_tokenizer(f"{workdir}/tokenizer"), None, resumed
    architecture, parameters, tokenizer = initial_model(config, lambda: _texts(records, candidates))
    epath.Path(workdir).mkdir(parents=True, exist_ok=True)
    write_config(config, workdir)
    checkpoints.write_architecture(workdir, architecture)
    if config.init_from:
        copy_tokenizer(tokenizer_directory(config.init_from), f"{workdir}/tokenizer")
    else:
        save_tokenizer(tokenizer, f"{workdir}/tokenizer")
    return architecture, tokenizer, parameters, None


def _texts(records, candidates: np.ndarray) -> Iterator[str]:
    """Prompts and completions, for a tokenizer to be trained on."""
    for index in candidates[:2000]:
        record: Record = records[int(index)]
        question = record.question or question_text(record.dimension, record.num_options)
        yield prompt_text(question, [1] * len(record.images), 1)
        yield completion_text(record.reasoning or "", record.answer)


def _make_plan(config: ConfigDict, round_index: int, candidates: np.ndarray, table) -> np.ndarray:
    length = config.hard_cases.round_steps * config.batch_size
    if config.hard_cases.mode == "off":
        return epoch_plan(config.seed, round_index, candidates, length)
    settings = config.hard_cases.copy_and_resolve_references().unlock()
    settings.plan_length = length
    return candidates[hard_cases.make_plan(config.seed, round_index, table, settings)].astype(np.int32)


def _make_evaluate(
    config: ConfigDict, graph: nnx.GraphDef, encoder: Encoder
) -> Callable[[Parameters], dict[str, float]]:
    records = open_records(config.data.manifest, config.data.data_dir, "validation")
    greedy = make_greedy(graph, encoder, config.max_completion_length)

    def evaluate(parameters: Parameters) -> dict[str, float]:
        predictions = predict(greedy, parameters, records, encoder, config.eval_batch_size, config.eval_samples)
        overall = summarize_predictions(predictions)["overall"]
        return {f"eval/{name}": entry["value"] for name, entry in overall.items()}

    return evaluate
