"""The loop: batches in the order of round plans, steps, the difficulty table, logging, checkpoints, evaluation.

A step is one batch of prompts; in GRPO it holds the rollout and all updates on it, so that nothing is pending between
steps. Parameters, optimiser, difficulty table and the current plan are saved together, and together decide what follows.

Every host runs this loop. A host loads and scores its own rows; what decides a step's shapes, rewards and the table is gathered,
so that all hosts hold the same plans and tables, and process 0 alone writes the logs.
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
from jax.sharding import Mesh
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
from aesthetic_jax.training import grpo, mining
from aesthetic_jax.training.config import check_config
from aesthetic_jax.training.evaluation import make_sampler, predict, summarize_predictions
from aesthetic_jax.training.flops import forward_flops, peak_flops
from aesthetic_jax.training.mesh import (
    check_rows,
    gather_rows,
    local_rows,
    make_mesh,
    mesh_of,
    parameter_tree_shardings,
    put_rows,
    row_shards,
    select_rows,
    state_shardings,
    take_local,
    with_shardings,
)
from aesthetic_jax.training.metrics import MetricsWriter, truncate
from aesthetic_jax.training.model import initial_model, make_encoder, tokenizer_directory
from aesthetic_jax.training.preemption import notices
from aesthetic_jax.training.provenance import check_same_config, write_config
from aesthetic_jax.training.sft import make_sft_update
from aesthetic_jax.training.state import Parameters, TrainState, init_state, make_optimizer, part_rows, split

# (state, batch, number of the step) -> (state, metrics, exact rate of each prompt or None); the metrics hold `tokens` and
# `flops`, the work that the step was
Step = Callable[[TrainState, Batch, int], tuple[TrainState, dict[str, Any], np.ndarray | None]]


def row_sizes(architecture: InternVLConfig, batch: Batch, completion_mask: np.ndarray) -> dict[str, np.ndarray]:
    """What hosts tell each other of their rows: image tiles, and tokens of each prompt and each completion."""
    return {
        "tiles": (batch.prompt_ids == architecture.image_token).sum(1) // architecture.tokens_per_tile,
        "prompt": batch.prompt_mask.sum(1),
        "completion": completion_mask.sum(2),
    }


def make_sft(
    config: ConfigDict, architecture: InternVLConfig, graph: nnx.GraphDef, optimizer: Any, shardings: TrainState
) -> Step:
    """SFT as the loop sees it."""
    mesh = mesh_of(shardings)
    update = make_sft_update(graph, optimizer, shardings)
    vision_passes = 1 if "vision" in config.model.freeze else 3
    mine = local_rows(mesh, config.batch_size)

    def step(state: TrainState, batch: Batch, _):
        sizes = gather_rows(mesh, row_sizes(architecture, batch, batch.completion_mask))
        prompt, completion = sizes["prompt"], sizes["completion"].max(1)
        parts = []
        for rows in part_rows(completion, config.micro_batches, row_shards(mesh)):
            here = np.searchsorted(mine, rows[np.isin(rows, mine)])
            part = jax.tree.map(lambda x, here=here: x[here], batch)
            parts.append(
                put_rows(mesh, trim(part, config.data, (int(prompt[rows].max()), int(completion[rows].max()))))
            )
        state, metrics = update(state, parts)
        forward = forward_flops(architecture, sizes["tiles"].sum(), prompt, sizes["completion"])
        work = {
            "tokens": prompt.sum() + completion.sum(),
            "flops": vision_passes * forward.vision + 3 * forward.language,
        }
        return state, metrics | work, None

    return step


def make_grpo(
    config: ConfigDict,
    architecture: InternVLConfig,
    graph: nnx.GraphDef,
    optimizer: Any,
    shardings: TrainState,
    tokenizer: ChatTokenizer,
    reference: Parameters | None,
) -> Step:
    """GRPO as the loop sees it: rollout, rewards on the host, then num_iterations updates.

    Args:
        shardings: where the state lives.
        reference: parameters of the reference model; None where beta is 0.
    """
    settings = config.grpo
    mesh = mesh_of(shardings)
    mine = local_rows(mesh, config.batch_size)
    sample, vision_features, reference_logprobs = grpo.make_inference(config, graph, mesh, tokenizer.end, tokenizer.pad)
    update = grpo.make_update_of(config, graph, optimizer, shardings)
    key = jax.random.key(config.seed)
    frozen_vision = "vision" in config.model.freeze
    language_passes = 1 + (reference is not None) + 3 * settings.num_iterations
    vision_passes = 1 if frozen_vision else language_passes

    def step(state: TrainState, loaded: Batch, number: int):
        began = time.perf_counter()
        longest = int(gather_rows(mesh, loaded.prompt_mask.sum(1)).max())
        batch = put_rows(mesh, trim(loaded, config.data, (longest, 0)))
        if frozen_vision:  # rollout, reference and every update see the same
            batch = batch._replace(tiles=vision_features(state.parameters, batch.tiles))
        rollout = jax.block_until_ready(sample(state.parameters, batch, jax.random.fold_in(key, number)))
        sampled = time.perf_counter()
        ids, mask, ended = (take_local(x) for x in (rollout.ids, rollout.mask, rollout.ended))
        scores = grpo.score(grpo.decode(ids, mask, tokenizer), loaded, config.reward, number / config.num_steps)
        told = {"scores": scores, "ended": ended, "sizes": row_sizes(architecture, loaded, mask)}
        told = gather_rows(mesh, told)  # from all hosts, in the order of the batch
        scores, sizes = told["scores"], told["sizes"]
        advantages = np.asarray(group_advantages(scores.reward, scale_rewards=settings.scale_rewards))
        scored = time.perf_counter()
        experience = grpo.Experience(
            tiles=batch.tiles,
            prompt_ids=batch.prompt_ids,
            prompt_mask=batch.prompt_mask,
            completion_ids=rollout.ids,
            completion_mask=rollout.mask,
            advantages=put_rows(mesh, advantages[mine]),
            old_logprobs=rollout.logprobs if settings.num_iterations > 1 else None,
            ref_logprobs=None,
        )
        if reference is not None and settings.num_iterations > 1:  # a single update computes them itself
            experience = experience._replace(ref_logprobs=reference_logprobs(reference, batch, rollout.ids))
        longest = sizes["completion"].max(1)
        parts = []
        for rows in part_rows(longest, config.micro_batches, row_shards(mesh)):
            part = experience if config.micro_batches == 1 else select_rows(mesh, experience, rows)
            parts.append(grpo.trim_completions(part, config.data.completion_buckets, int(longest[rows].max())))
        for _ in range(settings.num_iterations):
            state, metrics = update(state, parts, reference)
        state = jax.block_until_ready(state)
        times = {"rollout_s": sampled - began, "reward_s": scored - sampled, "update_s": time.perf_counter() - scored}
        forward = forward_flops(architecture, sizes["tiles"].sum(), sizes["prompt"], sizes["completion"])
        work = {
            "tokens": sizes["prompt"].sum() + sizes["completion"].sum(),
            "flops": vision_passes * forward.vision + language_passes * forward.language,
        }
        rolled = grpo.rollout_metrics(sizes["completion"], told["ended"], scores)
        return state, metrics | rolled | times | work, scores.exact.mean(axis=1)

    return step


def train(config: ConfigDict, workdir: str, allow_config_change: bool = False) -> bool:
    """Runs a config in a run directory, from its newest whole checkpoint if it has one, on all devices of all hosts.

    Args:
        allow_config_change: go on from a checkpoint though the config is another now.

    Returns:
        Whether the run is done; False: SIGTERM stopped it behind a step, and a checkpoint of this step is saved.

    Raises:
        UserError: the config, the data, the devices or what is in the directory does not fit.
    """
    check_config(config)
    mesh = make_mesh(config.mesh)
    check_rows(mesh, "batch_size", config.batch_size, config.micro_batches)
    if config.eval_every:
        check_rows(mesh, "eval_batch_size", config.eval_batch_size)
    peak = peak_flops(config.model.dtype)
    with jax.set_mesh(mesh), notices() as is_last:
        return _train(config, workdir, mesh, peak, allow_config_change, is_last)


def _train(
    config: ConfigDict,
    workdir: str,
    mesh: Mesh,
    peak: float,
    allow_config_change: bool,
    is_last: Callable[[int], bool],
) -> bool:
    records = open_records(config.data.manifest, config.data.data_dir, "train")
    candidates = _candidates(config, records)
    architecture, tokenizer, parameters, resumed = _begin(
        config, workdir, records, candidates, mesh, allow_config_change
    )
    encoder = make_encoder(config, architecture, tokenizer)
    graph, shapes = checkpoints.abstract_model(architecture)

    updates_per_step = config.grpo.num_iterations if config.method == "grpo" else 1
    optimizer = make_optimizer(config.optimizer, config.num_steps * updates_per_step)
    trained_parts = dict(freeze=tuple(config.model.freeze), lora=bool(config.model.lora_rank))
    start = functools.partial(init_state, optimizer=optimizer, **trained_parts)
    of_parameters = parameter_tree_shardings(architecture, mesh)
    expected = jax.eval_shape(start, shapes)
    shardings = state_shardings(of_parameters, optimizer, expected, **trained_parts)
    round_length = config.hard_cases.round_steps * config.batch_size
    table = hard_cases.init_table(len(candidates), config.hard_cases.get("prior", 0.5))
    plan = np.zeros(round_length, np.int32)
    dimensions = records.dimensions()[candidates] if config.hard_cases.get("balance_dimensions") else None
    reference = None
    if config.method == "grpo" and config.grpo.beta:
        reference = parameters if resumed is None else initial_model(config, lambda: (), mesh)[1]
    if resumed is None and config.hard_cases.get("table"):
        table = mining.load_table(config.hard_cases.table, records.ids(), config.hard_cases.prior)
    manager = checkpoints.open_manager(workdir, config.keep_checkpoints)  # last: its threads complain of an early end
    if resumed is None:
        state = jax.jit(start, out_shardings=shardings)(jax.tree.map(jnp.copy, parameters))
    else:
        parameters, optimizer_state, (table, plan) = checkpoints.restore(
            manager,
            resumed,
            with_shardings(shapes, of_parameters),
            with_shardings(expected.optimizer, shardings.optimizer),
            (table, plan),
        )
        trained, frozen = split(parameters, **trained_parts)
        state = TrainState(trained, frozen, optimizer_state)
    del parameters

    if config.method == "sft":
        step = make_sft(config, architecture, graph, optimizer, shardings)
    else:
        step = make_grpo(config, architecture, graph, optimizer, shardings, tokenizer, reference)
    evaluate = _make_evaluate(config, graph, encoder, mesh) if config.eval_every else None

    done = resumed or 0
    first = jax.process_index() == 0
    writer = None
    if first:
        truncate(workdir, done)
        writer = MetricsWriter(workdir)
    mine = local_rows(mesh, config.batch_size)
    progress = tqdm(
        total=config.num_steps, initial=done, desc=config.method, unit="step", disable=None if first else True
    )
    batches: Iterator[Batch] | None = None
    waited, tokens, flops, logged, since = 0.0, 0, 0.0, done, time.perf_counter()
    while done < config.num_steps:
        round_index, place = divmod(done, config.hard_cases.round_steps)
        if place == 0:
            if mining.is_due(config, done):
                # Mining takes long, and goes on where it is cut off: from here.
                if done != (resumed or 0) and done % config.checkpoint_every:
                    checkpoints.save(manager, done, state.parameters, state.optimizer, (table, plan))
                folder, model = f"{workdir}/mined", f"step {done} of the run"
                table = mining.mine(config, state.parameters, graph, records, encoder, folder, model, mesh, done)
            plan = _make_plan(config, round_index, candidates, table, dimensions)
        if batches is None or place == 0:
            batches = planned_batches(
                records,
                plan,
                encoder,
                config.batch_size,
                with_completion=config.method == "sft",
                rows=mine,
                start=place,
                threads=config.data.threads,
            )
        began = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - began
        state, metrics, exact = step(state, batch, done)
        tokens, flops = tokens + metrics.pop("tokens"), flops + metrics.pop("flops")
        done += 1
        stop = is_last(done)
        last = done == config.num_steps
        if exact is not None:
            rows = np.searchsorted(candidates, plan[place * config.batch_size :][: config.batch_size])
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
            if writer is not None:
                shown = writer.write(done, metrics | speed)
                named = ("loss", "reward", "exact")
                progress.set_postfix({name: f"{shown[name]:.3f}" for name in named if name in shown})
            waited, tokens, flops, logged, since = 0.0, 0, 0.0, done, now
        progress.update()
        if done % config.checkpoint_every == 0 or last or stop:
            checkpoints.save(manager, done, state.parameters, state.optimizer, (table, plan))
        if stop:
            break
    manager.wait_until_finished()
    manager.close()
    if writer is not None:
        writer.close()
    return done == config.num_steps


def _candidates(config: ConfigDict, records) -> np.ndarray:
    """Indices of the records that a method can learn from: SFT needs a chain of thought."""
    if config.method == "grpo":
        return np.arange(len(records))
    candidates = np.flatnonzero(records.has_reasoning())
    if not candidates.size:
        raise UserError("config.data: no sample of the train split has reasoning to learn from; SFT needs some")
    return candidates


def _begin(
    config: ConfigDict, workdir: str, records, candidates: np.ndarray, mesh: Mesh, allow_config_change: bool
) -> tuple:
    """Architecture, tokenizer, parameters and the step to resume from (None: parameters are the initial ones)."""
    resumed = checkpoints.newest_step(workdir)
    if checkpoints.saved_steps(workdir):
        check_same_config(config, workdir, resumed or 0, allow_config_change)
        if jax.process_index() == 0:
            checkpoints.set_aside_newer(workdir, resumed)
    if resumed is not None:
        return checkpoints.read_architecture(workdir), load_tokenizer(f"{workdir}/tokenizer"), None, resumed
    architecture, parameters, tokenizer = initial_model(config, lambda: _texts(records, candidates), mesh)
    if jax.process_index():
        return architecture, tokenizer, parameters, None
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


def _make_plan(
    config: ConfigDict, round_index: int, candidates: np.ndarray, table, dimensions: np.ndarray | None
) -> np.ndarray:
    length = config.hard_cases.round_steps * config.batch_size
    before_mining = round_index * config.hard_cases.round_steps < config.hard_cases.get("mine_at", 0)
    if config.hard_cases.mode == "off" or (config.hard_cases.mode == "two_stage" and before_mining):
        return epoch_plan(config.seed, round_index, candidates, length)
    settings = config.hard_cases.copy_and_resolve_references().unlock()
    settings.plan_length = length
    return candidates[hard_cases.make_plan(config.seed, round_index, table, settings, dimensions)].astype(np.int32)


def _make_evaluate(
    config: ConfigDict, graph: nnx.GraphDef, encoder: Encoder, mesh: Mesh
) -> Callable[[Parameters], dict[str, float]]:
    records = open_records(config.data.manifest, config.data.data_dir, "validation")
    greedy = make_sampler(graph, encoder, config.max_completion_length, mesh, hold_layers=config.mesh.hold_layers)

    def evaluate(parameters: Parameters) -> dict[str, float]:
        predictions = predict(greedy, parameters, records, encoder, config.eval_batch_size, mesh, config.eval_samples)
        overall = summarize_predictions(predictions)["overall"]
        return {f"eval/{name}": entry["value"] for name, entry in overall.items()}

    return evaluate
