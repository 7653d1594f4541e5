"""tpu/supervise.sh recovers from preemptions unattended and gives up after enough failures."""

import pytest

pytestmark = pytest.mark.slow  # waits for polls of a fake cloud

SLICE = ["--name=pod", "--zone=z-1", "--project=mine"]


def supervise(cloud, *flags):
    flags = [*SLICE, "--topology=v5e:4x4", "--spot", "--poll=0", *flags]
    return cloud.run("supervise", *flags, "--", "aesthetic-jax", "train", "--workdir=gs://b/run")


@pytest.mark.parametrize("end", ["preempted", "killed", "killed, not shown yet"])
def test_recovers_from_two_preemptions(cloud, end):
    cloud.plan(created=[["WAITING_FOR_RESOURCES", "ACTIVE"]] * 3, ends=[end, end, 0])
    # A preemption counts as a failure until the queued resource shows it.
    late = end == "killed, not shown yet"
    run = supervise(cloud, f"--max_failures={2 if late else 1}")
    assert run.returncode == 0, run.stderr
    assert [verb for verb in cloud.verbs() if verb == "create"] == ["create"] * 3
    assert cloud.verbs()[-1] == "create"
    assert all(
        "--spot" in call for call in cloud.calls("compute", "tpus", "queued-resources", "create")
    )
    starts = cloud.starts()
    assert sorted(start[0] for start in starts) == ["pod/0"] * 3 + ["pod/1"] * 3
    assert {tuple(start[3]) for start in starts} == {("train", "--workdir=gs://b/run")}
    assert "preemption 2;" in run.stderr
    assert run.stderr.count("failure 1 of 2") == (2 if late else 0)  # not counted in the end


def test_one_preempted_slice_counts_before_the_queued_resource_shows_it(cloud):
    cloud.plan(ends=[1, 0], node_states=["READY", "PREEMPTED"])
    run = supervise(cloud, "--slices=2", "--max_failures=1")
    assert run.returncode == 0, run.stderr
    assert cloud.verbs() == ["create", "delete", "create"]
    assert len(cloud.starts()) == 8


def test_gives_up_after_max_failures(cloud):
    cloud.plan(ends=[1])
    run = supervise(cloud, "--max_failures=2")
    assert run.returncode == 1
    assert "gave up on pod: 2 failures" in run.stderr.splitlines()[-1]
    assert cloud.verbs() == ["create"]
    assert len(cloud.starts()) == 4


def test_preemptions_between_failures_do_not_reset_the_count(cloud):
    cloud.plan(ends=[1, "killed", 1, 0])
    run = supervise(cloud, "--max_failures=2")
    assert run.returncode == 1
    assert "preemption 1;" in run.stderr
    assert "gave up on pod: 2 failures" in run.stderr.splitlines()[-1]


def test_a_denied_request_counts_as_a_failure(cloud):
    cloud.plan(created=[["FAILED"]] * 2)
    run = supervise(cloud, "--max_failures=2")
    assert run.returncode == 1
    assert run.stderr.count("none of these") == 2
    assert cloud.verbs() == ["create", "delete", "create"]
    assert cloud.starts() == []


def test_unreachable_machines_are_retried(cloud):
    cloud.plan(ends=[0], scp_errors=["connection refused"])
    run = supervise(cloud)
    assert run.returncode == 0, run.stderr
    assert "failure 1 of 3" in run.stderr
    assert cloud.verbs() == ["create"]


def test_bad_input_is_not_retried(cloud):
    cloud.plan(ends=[2])
    run = supervise(cloud)
    assert run.returncode == 2
    assert "gave up on pod: the input needs mending" in run.stderr.splitlines()[-1]
    assert len(cloud.starts()) == 2


def test_a_stopped_run_restarts_without_counting_as_a_failure(cloud):
    cloud.plan(ends=[75, 75, 75, 0])
    run = supervise(cloud, "--max_failures=1")
    assert run.returncode == 0, run.stderr
    assert cloud.verbs() == ["create"]
    assert len(cloud.starts()) == 8


def test_a_deleted_queued_resource_is_not_recreated(cloud):
    cloud.plan(ends=["deleted"])
    run = supervise(cloud)
    assert run.returncode == 1
    assert "someone deleted it" in run.stderr.splitlines()[-1]
    assert cloud.verbs() == ["create"]
