"""scripts/bench.py at a minute size: every benchmark runs and prints what it promises."""

import json

import pytest

from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig


@pytest.fixture(scope="module")
def bench(load_script):
    module = load_script("bench")
    module.SIZES["bench"] = module.Size(
        InternVLConfig(
            VisionConfig(width=16, layers=1, heads=2, mlp_width=16, image_size=28),
            TextConfig(width=16, layers=2, heads=2, kv_heads=1, mlp_width=32, vocab_size=256),
            image_token=3,
            remat="none",
        ),
        images=2,
        text=12,
        completion=6,
        lengths=(2, 12),
        buckets=module.Buckets((16, 32), (4, 8, 12)),
    )
    return module


@pytest.fixture
def run(bench, capsys, monkeypatch):
    # One core is what the input benchmark claims for itself; the other tests of this process keep theirs.
    monkeypatch.setattr(bench.os, "sched_setaffinity", lambda *_: None)

    def words(*words):
        bench.FLAGS.unparse_flags()
        bench.main(["bench.py", "--reps=1", *words])
        return json.loads(capsys.readouterr().out)

    return words


RATES = {"tokens_per_s", "model_flops", "mfu", "peak_memory_bytes", "temp_bytes"}


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("grpo_update", {"update_s", "prompt", "completion", "group", *RATES}),
        ("rollout", {"rollout_s", "prompt", "completion", "group", "bandwidth_share", *RATES}),
        ("sft_step", {"step_s", "samples", "tokens", "completion_tokens", "padding", *RATES}),
        ("input", {"sample_s", "images_per_s"}),
        ("import", {"import_s", "kept_bytes"}),
        ("compile_time", {"sft_compile_s", "update_compile_s", "rollout_compile_s", "update_temp_bytes"}),
    ],
)
def test_a_benchmark_prints_its_figures(run, name, fields):
    result = run(f"--benchmark={name}")
    assert fields <= result.keys()
    assert result["benchmark"] == name
    assert all(result[field] > 0 for field in fields - {"padding", "mfu", "bandwidth_share"})
    if "prompt" in fields:
        assert (result["prompt"], result["completion"], result["group"]) == (14, 6, 8)


def test_an_update_holds_no_more_for_more_words(run):
    """Logits exist for a chunk of tokens at a time; what grows with the vocabulary is embedding and head, twice."""
    small, large = (run("--benchmark=grpo_update", f"--vocabulary={size}") for size in (512, 4096))
    rows = 2 * 16 * (4096 - 512)  # parameters that the larger vocabulary takes
    chunk = 8 * 6 * (4096 - 512)  # logits of the one chunk of this size
    assert large["temp_bytes"] - small["temp_bytes"] < 4 * (2 * rows + 4 * chunk)


def test_a_profile_is_written(run, tmp_path):
    run("--benchmark=rollout", f"--profile={tmp_path}")
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))


def test_mixed_lengths_waste_little_in_parts(run):
    whole, parts = (run("--benchmark=sft_step", f"--parts={count}")["padding"] for count in (1, 8))
    assert parts < whole
