"""tpu/gke.sh fills in tpu/jobset.yaml and applies it."""

import re

import pytest
import yaml

ODD = 'it\'s "odd" $(date) $HOME ; é *'


@pytest.mark.parametrize(
    ("topology", "accelerator", "hosts", "chips"),
    [
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
        ("v5e:2x4", "tpu-v5-lite-podslice", 1, 8),
        ("v6e:1x1", "tpu-v6e-slice", 1, 1),
        ("v6e:16x16", "tpu-v6e-slice", 64, 4),
        ("v5p:2x2x1", "tpu-v5p-slice", 1, 4),
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
    ],
)
def test_the_manifest_fits_the_topology(cloud, topology, accelerator, hosts, chips):
    slices = 2 if hosts > 1 else 1
    flags = [
        "--name=pod",
        "--image=r/p/i:1",
        f"--topology={topology}",
        f"--slices={slices}",
        "--max_failures=4",
    ]
    words = ["aesthetic-jax", "train", ODD, "a\nb\\", "${name}", "$(NAME)"]
    run = cloud.run("gke", *flags, "--dry_run", "--", *words)
    first, *lines, last = run.stdout.splitlines()
    assert first == f"kubectl apply --filename=- <<'{last}'"
    assert "${" not in run.stdout.replace("${name}", "")
    manifest = yaml.safe_load("\n".join(lines))
    assert manifest["metadata"]["name"] == "pod"
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 3
    (pattern,) = policy["rules"][0]["onJobFailureMessagePatterns"]
    message = (
        "Container main for pod default/pod-slice-0-0-x failed with exit code {} "
        "matching FailJob rule at index 1"
    )
    assert [bool(re.search(pattern, message.format(code))) for code in (2, 75, 127)] == [
        True,
        False,
        False,
    ]
    assert [rule["action"] for rule in policy["rules"]] == [
        "FailJobSet",
        "RestartJobSetAndIgnoreMaxRestarts",
    ]
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == slices
    spec = job["template"]["spec"]
    assert (spec["parallelism"], spec["completions"], spec["backoffLimit"]) == (hosts, hosts, 0)
    assert spec["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [2, 75]
    pod = spec["template"]["spec"]
    shape = topology.split(":")[1]
    labels = {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": shape,
    }
    assert pod["nodeSelector"] == labels
    (container,) = pod["containers"]
    assert container["image"] == "r/p/i:1"
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] == [word.replace("$(", "$$(") for word in words]


def test_gke_applies_the_manifest(cloud):
    flags = ["--name=pod", "--image=i", "--topology=v5e:4x4", "--spot"]
    assert cloud.run("gke", *flags, "--", "train").returncode == 0
    (applied,) = cloud.calls("apply")
    assert applied[1] == "--filename=-"
    manifest = yaml.safe_load(applied[2])
    spec = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert spec["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
