"""The loop in this process: its compilations, and its logged throughput."""

import json
import pathlib
import runpy

import jax
import pytest

from aesthetic_jax.data.manifest import DIMENSIONS, read_manifest
from aesthetic_jax.data.prompts import completion_text, question_text
from aesthetic_jax.data.records import open_records
from aesthetic_jax.data.tokenizer import train_tokenizer
from aesthetic_jax.errors import UserError
from aesthetic_jax.training import loop
from aesthetic_jax.training.metric_writer import MetricWriter

CONFIGS = pathlib.Path(__file__).parents[2] / "configs"


def make_config(method, data, **changes):
    config = runpy.run_path(str(CONFIGS / "quickstart.py"))["get_config"](method)
    small = dict(batch_size=4, micro_batches=2, log_every=1, num_steps=9, checkpoint_every=4)
    config.update(small | changes)
    config.data.data_dir, config.data.manifest = "", f"{data}/manifest.jsonl"
    config.hard_cases.round_steps = 3
    config.eval_every = 0
    return config


@pytest.fixture(scope="module")
def data(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    words = ("--num=60", "--image_size=56", "--workers=1", "--splits=0.9,0.1,0")
    assert command("synthesize", f"--out={folder}", *words).returncode == 0
    return folder


@pytest.fixture(scope="module")
def sft(data):
    """A finished run of SFT, and how many programs had been compiled by the end of each step."""
    return data / "sft", count_compilations(make_config("sft", data), data / "sft")


def count_compilations(config, workdir):
    """Runs a config; the number of programs that XLA had compiled when each step was logged."""
    compiled, counts = [], []

    def listen(name, duration, **_):
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration)

    write = MetricWriter.write

    def counting(self, step, metrics):
        counts.append(len(compiled))
        return write(self, step, metrics)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricWriter, "write", counting)
        jax.monitoring.register_event_duration_secs_listener(listen)
        try:
            loop.train(config, str(workdir))
        finally:
            jax.monitoring.clear_event_listeners()
    return counts


@pytest.fixture(scope="module")
def described(command, tmp_path_factory):
    """A data set of descriptions."""
    folder = tmp_path_factory.mktemp("described")
    words = ("--describe", "--num=20", "--image_size=48", "--workers=1", "--splits=0.9,0.1,0")
    assert command("synthesize", f"--out={folder}", *words).returncode == 0
    return folder


def test_the_tokenizer_learns_the_texts_of_another_data_set_too(
    data, described, make_dataset, tmp_path
):
    make_dataset(data, read_manifest(f"{data}/manifest.jsonl"), tmp_path)
    config, records = make_config("pretrain", described), open_records(f"{data}/manifest.jsonl")
    texts = [completion_text(record.reasoning, record.answer) for record in records]
    texts += [question_text(dimension, 4) for dimension in DIMENSIONS]
    lengths = []
    for config.model.tokenizer_data in ("", str(tmp_path)):
        learnt = loop._tokenizer_texts(config, open_records(f"{described}/manifest.jsonl"))
        tokenizer = train_tokenizer(learnt, config.model.vocab_size)
        lengths.append(sum(len(tokenizer.encode(text)) for text in texts))
    assert lengths[1] < 0.7 * lengths[0]


def test_a_folder_without_texts_for_the_tokenizer_is_refused(described, tmp_path):
    config = make_config("pretrain", described)
    config.model.tokenizer_data = f"{tmp_path}/none"
    with pytest.raises(UserError, match=r"/none: has no data set; make one with [^\n]*$"):
        loop.train(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_descriptions_have_no_answers_to_evaluate(described, tmp_path):
    config = make_config("pretrain", described)
    config.eval_every, config.data.max_images = 1, 1
    said = r"^config\.data: the validation split has descriptions, [^\n]*config\.eval_every to 0$"
    with pytest.raises(UserError, match=said):
        loop.train(config, str(tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.slow
def test_sft_compiles_one_program_a_shape_and_then_none(sft):
    _, counts = sft
    assert counts[0] > 0
    assert counts[-1] == counts[4]  # a checkpoint, a new round and new batches in between


@pytest.mark.slow
def test_grpo_compiles_nothing_after_its_first_steps(sft, data):
    config = make_config("hcm_grpo", data, init_from=str(sft[0]), max_completion_length=16)
    config.data.completion_buckets = (8, 16)
    config.grpo.beta = 0.1
    counts = count_compilations(config, data / "grpo")
    assert counts[-1] == counts[4]


@pytest.mark.slow
def test_every_step_tells_where_its_time_went(sft):
    rows = [json.loads(line) for line in (sft[0] / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 9
    for row in rows:
        assert 0 <= row["input_wait_s"] <= row["step_s"]
        assert row["tokens_per_s"] > 0
        assert 0 < row["time_mfu"] < 1.5
        assert row["model_flops_per_s"] > row["tokens_per_s"]
        assert "tokens" not in row
