# SPDX-License-Identifier: Apache-2.0
"""What a container engine is needed for, as far as it can be tested without one: hack/kind-up against stand-ins of the
commands that it runs, and the files that kind and the forge read."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
STAND_IN = """#!/bin/sh
echo "${0##*/} $*" >>"$CALLS"
case "${0##*/} $*" in "$BREAKS"*) exit 1 ;; esac
[ "${0##*/} $*" != "kind get clusters" ] || echo "$CLUSTERS"
"""
STAND_INS = ("docker", "kind", "kubectl", "make")
# What the script itself runs.
TOOLS = ("bash", "dirname", "grep")
STEPS = """docker info
kind get clusters
make image
kind create cluster --name NAME --config e2e/kind.yaml
kind load image-archive build/image.tar --name NAME
kubectl --context kind-NAME apply --filename conf/install/calico-ebpf.yaml
kubectl --context kind-NAME --namespace kube-system rollout status daemonset/calico-ebpf --timeout=180s
kubectl --context kind-NAME wait --for=condition=Ready node --all --timeout=180s
"""


class Stand:
    """A PATH of stand-ins.

    Args:
        there: those of STAND_INS that it has.
    """

    def __init__(self, directory: Path, there: tuple[str, ...] = STAND_INS) -> None:
        self._calls, self._path = directory / "calls", directory / "bin"
        self._path.mkdir()
        self._calls.touch()
        for name in TOOLS:
            (self._path / name).symlink_to(str(shutil.which(name)))
        for name in there:
            (self._path / name).write_text(STAND_IN)
            (self._path / name).chmod(0o755)

    def up(self, *arguments: str, breaks: str = "none", **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs hack/kind-up; the command that begins with `breaks` fails."""
        environment = {"PATH": str(self._path), "CALLS": str(self._calls), "BREAKS": breaks, "CLUSTERS": "other"}
        command = [str(ROOT / "hack/kind-up"), *arguments]
        return subprocess.run(command, env=environment | variables, capture_output=True, text=True, check=False)

    def calls(self) -> str:
        return self._calls.read_text()


@pytest.mark.parametrize(("arguments", "name"), [((), "calico-ebpf"), (("mine",), "mine")])
def test_kind_up_takes_its_steps_in_order(tmp_path: Path, arguments: tuple[str, ...], name: str) -> None:
    """The image is made and loaded before the manifest asks for it; nodes are ready last."""
    stand = Stand(tmp_path)
    done = stand.up(*arguments)
    assert done.returncode == 0, done.stderr
    assert stand.calls() == STEPS.replace("NAME", name)


@pytest.mark.parametrize("missing", ["docker", "kind", "kubectl"])
def test_kind_up_without_a_command_says_so_in_a_line(tmp_path: Path, missing: str) -> None:
    """Nothing is begun."""
    stand = Stand(tmp_path, tuple(name for name in STAND_INS if name != missing))
    done = stand.up()
    assert done.returncode == 1
    assert done.stderr.startswith(f"kind-up: {missing} is not there")
    assert len(done.stderr.splitlines()) == 1
    assert stand.calls() == ""


def test_kind_up_without_an_engine_says_so_in_a_line(tmp_path: Path) -> None:
    """The client alone is not enough."""
    stand = Stand(tmp_path)
    done = stand.up(breaks="docker info")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert stand.calls() == "docker info\n"


def test_kind_up_leaves_a_cluster_of_the_same_name_alone(tmp_path: Path) -> None:
    """It is somebody's."""
    stand = Stand(tmp_path)
    done = stand.up("mine", CLUSTERS="mine")
    assert done.returncode == 1
    assert "there is a cluster mine already" in done.stderr
    assert stand.calls() == "docker info\nkind get clusters\n"


@pytest.mark.parametrize("broken", STEPS.splitlines()[3:])
@pytest.mark.parametrize("keep", ["", "1"])
def test_kind_up_that_fails_deletes_the_cluster_unless_told_otherwise(tmp_path: Path, broken: str, keep: str) -> None:
    """Whichever step it was, what can be seen of the pods comes first, and the exit status is 1."""
    stand = Stand(tmp_path)
    done = stand.up("mine", breaks=broken.replace("NAME", "mine"), KEEP=keep)
    assert done.returncode == 1
    after = stand.calls().partition(broken.replace("NAME", "mine"))[2].split("\n")[1:-1]
    looks, deletions = after[:2], after[2:]
    assert ["get" in looks[0], "logs" in looks[1]] == [True, True]
    assert deletions == ([] if keep else ["kind delete cluster --name mine"])


def test_kind_cluster_has_no_network_and_no_proxy_of_its_own() -> None:
    """Both are what is to be tried; and both families are."""
    found = yaml.safe_load((ROOT / "e2e/kind.yaml").read_text())
    assert found["networking"] == {"ipFamily": "dual", "disableDefaultCNI": True, "kubeProxyMode": "none"}
    assert [node["role"] for node in found["nodes"]] == ["control-plane", "worker", "worker"]


def test_workflow_names_what_is_there() -> None:
    """It is well-formed, and every file and target of ours in its commands exists."""
    (job,) = yaml.safe_load((ROOT / ".github/workflows/e2e.yaml").read_text())["jobs"].values()
    commands = "\n".join(step.get("run", "") for step in job["steps"])
    for name in ("hack/kind-up", "e2e/tests/cluster", "e2e/lab/images.py"):
        assert name.removesuffix(".py").replace("/", "." if name.endswith(".py") else "/") in commands
        assert (ROOT / name).exists()
    assert os.access(ROOT / "hack/kind-up", os.X_OK)
