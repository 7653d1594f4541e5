"""tpu/supervise.sh: preemptions need no person, failures are bounded."""

import pytest

SLICE = ["--name=pod", "--zone=z-1", "--project=mine"]


def supervise(cloud, *flags):
    flags = [*SLICE, "--topology=v5e:4x4", "--spot", "--poll=0", *flags]
    return cloud.run("supervise", *flags, "--", "aesthetic-jax", "train", "--workdir=gs://b/run")


@pytest.mark.parametrize("way", ["preempted", "killed", "killed, not shown yet"])
def test_preempted_twice_then_done_needs_no_person(cloud, way):
    cloud.plan(created=[["WAITING_FOR_RESOURCES", "ACTIVE"]] * 3, ends=[way, way, 0])
    run = supervise(cloud, f"--max_failures={2 if 'yet' in way else 1}")  # not shown yet: a failure until it is
    assert run.returncode == 0, run.stderr
    assert [verb for verb in cloud.verbs() if verb == "create"] == ["create"] * 3
    assert cloud.verbs()[-1] == "create"
    assert all("--spot" in call for call in cloud.calls("compute", "tpus", "queued-resources", "create"))
    starts = cloud.starts()
    assert sorted(start[0] for start in starts) == ["pod/0"] * 3 + ["pod/1"] * 3
    assert {tuple(start[3]) for start in starts} == {("train", "--workdir=gs://b/run")}
    assert "preempted for the 2. time" in run.stderr
    assert run.stderr.count("failure 1 of 2") == (2 if "yet" in way else 0)  # taken back both times


def test_one_preempted_slice_counts_before_the_queued_resource_knows(cloud):
    cloud.plan(ends=[1, 0], node_states=["READY", "PREEMPTED"])
    run = supervise(cloud, "--slices=2", "--max_failures=1")
    assert run.returncode == 0, run.stderr
    assert cloud.verbs() == ["create", "delete", "create"]
    assert len(cloud.starts()) == 8


def test_failures_that_are_no_preemptions_are_bounded(cloud):
    cloud.plan(ends=[1])
    run = supervise(cloud, "--max_failures=2")
    assert run.returncode == 1
    assert "gave up on pod: 2 failures" in run.stderr.splitlines()[-1]
    assert cloud.verbs() == ["create"]
    assert len(cloud.starts()) == 4


def test_preemptions_between_failures_do_not_hide_them(cloud):
    cloud.plan(ends=[1, "killed", 1, 0])
    run = supervise(cloud, "--max_failures=2")
    assert run.returncode == 1
    assert "preempted for the 1. time" in run.stderr
    assert "gave up on pod: 2 failures" in run.stderr.splitlines()[-1]


def test_a_request_that_fails_is_a_failure(cloud):
    cloud.plan(created=[["FAILED"]] * 2)
    run = supervise(cloud, "--max_failures=2")
    assert run.returncode == 1
    assert run.stderr.count("none of these") == 2
    assert cloud.verbs() == ["create", "delete", "create"]
    assert cloud.starts() == []


def test_machines_that_can_not_be_reached_at_first_are_tried_again(cloud):
    cloud.plan(ends=[0], scp_errors=["connection refused"])
    run = supervise(cloud)
    assert run.returncode == 0, run.stderr
    assert "failure 1 of 3" in run.stderr
    assert cloud.verbs() == ["create"]


def test_input_to_mend_is_not_tried_again(cloud):
    cloud.plan(ends=[2])
    run = supervise(cloud)
    assert run.returncode == 2
    assert "gave up on pod: its input needs mending" in run.stderr.splitlines()[-1]
    assert len(cloud.starts()) == 2


def test_a_saved_state_is_taken_up_without_counting(cloud):
    cloud.plan(ends=[75, 75, 75, 0])
    run = supervise(cloud, "--max_failures=1")
    assert run.returncode == 0, run.stderr
    assert cloud.verbs() == ["create"]
    assert len(cloud.starts()) == 8


def test_what_a_person_deletes_stays_deleted(cloud):
    cloud.plan(ends=["deleted"])
    run = supervise(cloud)
    assert run.returncode == 1
    assert "someone deleted it" in run.stderr.splitlines()[-1]
    assert cloud.verbs() == ["create"]
