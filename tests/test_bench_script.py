"""scripts/bench.py at a minimal size: each benchmark prints its figures in one JSON line."""

import json

import pytest

from aesthetic_jax.models.config import InternVLConfig, TextConfig, VisionConfig


@pytest.fixture
def bench(load_script, monkeypatch):
    """The script, its size `bench` a minimal one; claims neither a core nor much memory."""
    module = load_script("bench")
    from benchlib import bandwidth, sizes

    size = sizes.Size(
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
        buckets=sizes.Buckets((16, 32), (4, 8, 12)),
    )
    monkeypatch.setitem(sizes.SIZES, "bench", size)
    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: 2**20)
    monkeypatch.setattr("os.sched_setaffinity", lambda *_: None)
    return module


@pytest.fixture
def run(bench, capsys):
    def run_bench(*words):
        bench.FLAGS.unparse_flags()
        bench.main(["bench.py", "--reps=1", *words])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1
        return json.loads(lines[0])

    return run_bench


RATES = {"tokens_per_s", "model_flops", "mfu", "peak_memory_bytes", "temp_bytes"}
BANDWIDTH = {"decoding_bytes", "bandwidth_bytes_per_s", "bandwidth_share"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("grpo_update", {"update_s", "prompt", "completion", "group", *RATES}),
        ("rollout", {"rollout_s", "prompt", "completion", "group", *BANDWIDTH, *RATES}),
        pytest.param(
            "sft_step",
            {"step_s", "samples", "tokens", "completion_tokens", "padding", *RATES},
            marks=pytest.mark.slow,
        ),
        ("input", {"sample_s", "images_per_s"}),
        ("import", {"import_s", "kept_bytes"}),
        pytest.param(
            "compile_time",
            {"sft_compile_s", "update_compile_s", "rollout_compile_s", "update_temp_bytes"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_benchmark_prints_its_figures(run, name, fields):
    result = run(f"--benchmark={name}")
    assert fields | {"device", "parameters", "dtype", "remat"} <= result.keys()
    assert (result["benchmark"], result["size"]) == (name, "bench")
    assert all(result[field] > 0 for field in fields - {"padding", "mfu", "bandwidth_share"})
    assert 0 <= result.get("bandwidth_share", 0) <= 1
    if "prompt" in fields:
        assert (result["prompt"], result["completion"], result["group"]) == (14, 6, 8)


def test_bytes_of_decoding(bench):
    """The sum in bandwidth's docstring, at the size of this test."""
    from benchlib import bandwidth, programs, sizes

    size = sizes.SIZES["bench"]
    language = programs.random_parameters(size.config)["language"]
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 32 + 16 + 2 * 8 + 2 * 16
    weights = 2 * layer + 16 + 16 * 256  # layers, final norm, head
    per_cached_token = 2 * 2 * 1 * 8
    own = 8 * (1 + 2 + 3 + 4 + 5 + 6)
    numbers = 6 * (weights + 8 * 16 + 14 * per_cached_token) + own * per_cached_token
    assert bandwidth.decoding_bytes(size, language, group=8) == 4 * numbers


@pytest.mark.slow
def test_an_update_holds_no_more_for_more_words(run):
    """Logits exist for a chunk of tokens at a time; only embedding and head grow."""
    small, large = (run("--benchmark=grpo_update", f"--vocabulary={size}") for size in (512, 4096))
    rows = 2 * 16 * (4096 - 512)  # parameters that the larger vocabulary adds
    chunk = 8 * 6 * (4096 - 512)  # logits of this size's only chunk
    assert large["temp_bytes"] - small["temp_bytes"] < 4 * (2 * rows + 4 * chunk)


@pytest.mark.slow
def test_a_profile_is_written(run, tmp_path):
    run("--benchmark=rollout", f"--profile={tmp_path}")
    assert list(tmp_path.rglob("*.xplane.pb"))
    assert list(tmp_path.rglob("perfetto_trace.json.gz"))


def test_microbatches_of_similar_lengths_pad_less(bench):
    from benchlib import inputs, programs, sizes

    size = sizes.SIZES["bench"]
    batch = programs.make_batch(size, *inputs.sft_lengths(size))

    def padded_tokens(count):
        microbatches = programs.make_microbatches(size, batch, count)
        assert sum(len(x.index) for x in microbatches) == len(batch.index)
        return sum(x.prompt_mask.size + x.completion_mask.size for x in microbatches)

    assert padded_tokens(8) < padded_tokens(1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "benchmark"),
        (("--benchmark=rollout", "--group=1"), "group"),
        (("--benchmark=rollout", "more"), "unexpected argument 'more'"),
    ],
)
def test_a_wrong_flag_ends_in_one_line(bench, capsys, words, message):
    bench.FLAGS.unparse_flags()
    with pytest.raises(SystemExit, match="2"):
        bench.main(["bench.py", *words])
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert message in errors[0]


def test_help_prints_the_docstring_and_the_flags(bench, capsys):
    with pytest.raises(SystemExit, match="0"):
        bench.main(["bench.py", "--help"])
    output = capsys.readouterr().out
    assert bench.__doc__ in output
    assert "--microbatches" in output
