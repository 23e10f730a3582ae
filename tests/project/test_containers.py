# Copyright 2026 the Memformer authors of this repository. Licensed under the Apache License, Version 2.0.
"""The files of `containers/`: they install what the set-up installs, and start what the launchers start.

No image is built here, and there is no Kubernetes: see docs/cluster.md.
"""

import re
import shlex
import subprocess
import sys
from typing import Any

import pytest
import yaml

from launch.cli import COMMANDS
from memformer.run.grace import VARIABLE
from tests import ROOT

FOLDER = ROOT / "containers"
SETUP = (ROOT / "scripts" / "setup.sh").read_text()


def commands(text: str) -> list[str]:
    """Lines of shell, those that are continued joined, blanks made one."""
    return [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines()]


def installed(text: str) -> set[str]:
    """What `pip install` and `apt-get install` are given, without the places of files."""
    found = set()
    for line in commands(text):
        for each in re.findall(r"(?:pip|apt-get) install ([^&]*)", line):
            found |= {word.rsplit("/", 1)[-1] for word in each.split() if word not in (".", "/opt/memformer/source")}
    return found


def test_both_recipes_install_the_same_and_all_that_the_set_up_pins() -> None:
    docker, apptainer = ((FOLDER / name).read_text() for name in ("Dockerfile", "memformer.def"))
    torch_arguments = {"${TORCH_PIP_ARGS}", "${TORCH_PIP_ARGS:-}"}
    assert installed(docker) - torch_arguments == installed(apptainer) - torch_arguments
    assert {"torch.txt", "lock.txt", "--no-deps", "--no-build-isolation", "ninja"} <= installed(docker)
    for name in ("DS_BUILD_OPS=0", "DS_ACCELERATOR=cpu"):
        assert name in SETUP and name in docker and name in apptainer
    assert docker.index("torch.txt \\") < docker.index("-r /opt/memformer/requirements/lock.txt")
    assert re.search(r"python:3\.1[0-3]-", docker) and re.search(r"^From: (.*)", apptainer, re.M)[1] in docker  # type: ignore[index]


def test_the_packages_that_the_recipes_copy_are_there() -> None:
    for source in re.findall(r"^COPY (\S+) ", (FOLDER / "Dockerfile").read_text(), re.M):
        assert (ROOT / source).is_dir()
    ignored = (ROOT / ".dockerignore").read_text().split()
    assert {".git", ".venv", "runs", "data"} <= set(ignored)


def loaded(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text())


def starts(words: list[str]) -> None:
    """torchrun's arguments are read by torchrun itself; behind them stands a command of ours."""
    at = words.index("launch.cli")
    assert words[0] == "torchrun" and words[at + 1] in COMMANDS and words[at - 1] == "--module"
    code = "import sys; from torch.distributed.run import parse_args; print(parse_args(sys.argv[1:]).nnodes)"
    done = subprocess.run(
        [sys.executable, "-c", code, *words[1:]], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "2"


@pytest.mark.slow
def test_kubernetes_gives_each_node_its_place() -> None:
    """Pods of a JobSet are named JOBSET-JOB-0-INDEX, and found below the JobSet's name."""
    value = loaded("jobset.yaml")
    name = value["metadata"]["name"]
    (job,) = value["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 2 and spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    words = container["command"]
    assert f"--master-addr={name}-{job['name']}-0-0.{name}" in words
    assert f"--nproc-per-node={container['resources']['limits']['nvidia.com/gpu']}" in words
    # What the run is told, what torchrun leaves its processes, and what Kubernetes leaves torchrun.
    (told,) = [each["value"] for each in container["env"] if each["name"] == VARIABLE]
    assert f"--shutdown-timeout={told}" in words
    assert int(told) < spec["template"]["spec"]["terminationGracePeriodSeconds"]
    mounts = {each["name"] for each in container["volumeMounts"]}
    assert mounts == {each["name"] for each in spec["template"]["spec"]["volumes"]}
    starts([word.replace("$(JOB_COMPLETION_INDEX)", "0") for word in words])


@pytest.mark.slow
def test_skypilot_gives_each_node_its_place() -> None:
    value = loaded("skypilot.yaml")
    run = value["run"].replace("\\\n", " ")
    subprocess.run(["bash", "-n", "-c", run], check=True, timeout=60)
    known = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "0"}
    for variable, number in known.items():
        run = run.replace(f'"${variable}"', number)
    run = re.sub(r'"\$\(echo "\$SKYPILOT_NODE_IPS" \| head -n 1\)"', "10.0.0.1", run)
    assert "$" not in run and value["num_nodes"] == 2
    starts(shlex.split(run)[1:])
