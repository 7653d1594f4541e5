"""Runs in an object store: a folder that behaves like a bucket, without append and rename."""

import json
import sys

import pytest
import tensorboardX
from etils import epath

from aesthetic_jax.__main__ import main
from aesthetic_jax.checkpoints.integrity import write_checksums
from aesthetic_jax.checkpoints.runs import locate, newest_step
from aesthetic_jax.errors import UserError
from aesthetic_jax.training.metric_writer import MetricWriter, drop_metrics_after


def test_metrics_are_kept_and_go_on_after_a_resume(bucket, monkeypatch):
    class Events:
        def __init__(self, folder): ...

        def add_scalar(self, *words): ...

    monkeypatch.setattr(tensorboardX, "SummaryWriter", Events)
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        drop_metrics_after(f"{bucket}/run", first)
        writer = MetricWriter(f"{bucket}/run")
        for step in steps:
            writer.write(step, {"loss": first + step})
    lines = epath.Path(f"{bucket}/run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": 1.0},
        {"step": 2, "loss": 2.0},
        {"step": 3, "loss": 5.0},
        {"step": 4, "loss": 6.0},
    ]


def test_a_missing_gcsfs_is_one_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(SystemExit, match="2"):
        main(["convert", "--from=gs://bucket/run", f"--to_hf={tmp_path}/out"])
    assert (
        capsys.readouterr().err
        == "aesthetic-jax: error: gs:// paths need gcsfs; pip install 'aesthetic-jax[gcs]'\n"
    )


def test_a_half_written_checkpoint_is_passed_over(bucket):
    checkpoints = epath.Path(f"{bucket}/run/checkpoints")
    (checkpoints / "4" / "parameters" / "x").write_text("")
    assert newest_step(f"{bucket}/run") is None
    with pytest.raises(UserError, match="gs://bucket/run: holds no checkpoint"):
        locate(f"{bucket}/run")
    (checkpoints / "2" / "parameters" / "x").write_text("")
    write_checksums(checkpoints / "2")
    (checkpoints / "2" / "commit_success.txt").write_text("")
    run, step = locate(f"{bucket}/run")
    assert (str(run), step) == ("gs://bucket/run", 2)
    run, step = locate(f"{bucket}/run/checkpoints/2")
    assert (str(run), step) == ("gs://bucket/run", 2)
