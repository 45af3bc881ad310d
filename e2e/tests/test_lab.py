# SPDX-License-Identifier: Apache-2.0
"""The lab itself: what it makes, and that nothing of it stays."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from e2e.lab import cgroups, cluster, images
from e2e.lab.cluster import Lab
from e2e.lab.space import LabError

pytestmark = pytest.mark.root

HOLD = (
    "import sys, time; from e2e.lab.cluster import Lab; lab = Lab(sys.argv[1]); print('up', flush=True); time.sleep(60)"
)

# Containers run by then, and kubelets do not yet.
HALF_A_CLUSTER = """
import sys, time
from e2e.lab.cluster import Lab
from e2e.lab.machine import Machine
lab = Lab(sys.argv[1])
machine = lab.add_node(Machine)
machine.start_containerd()
machine.load_images()
ctr = ("ctr", "-n", "k8s.io")
machine.space.run(*ctr, "run", "--detach", sys.argv[2], "left")
machine.space.run(*ctr, "tasks", "list")
print("up", flush=True)
time.sleep(60)
"""


def _name(suffix: str) -> str:
    return f"test-{os.getpid()}-{suffix}"


def _leftovers(name: str) -> list[Path]:
    relative = cluster.group(name).relative_to(cgroups.cgroup2())
    groups = [hierarchy.point / relative for hierarchy in cgroups.hierarchies()]
    return [path for path in (cluster.group(name), cluster.HOME / name, *groups) if path.exists()]


def _wait(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _start_elsewhere(name: str, keep: str = "", script: str = HOLD) -> "subprocess.Popen[str]":
    process = subprocess.Popen([sys.executable, "-c", script, name, keep], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    return process


def test_lab_down_leaves_nothing() -> None:
    """A lab that ends leaves no process group and no file, and its files in standard places were never the host's."""
    with Lab(_name("down")) as lab:
        lab.client.path("/etc/lab-was-here").write_text("yes")
        assert lab.client.run("cat", "/etc/lab-was-here").stdout == "yes"
        assert not Path("/etc/lab-was-here").exists()
        holder = lab.client.pid
    assert _leftovers(lab.name) == []
    assert not Path(f"/proc/{holder}/ns").exists() or not os.listdir(f"/proc/{holder}/fd")


@pytest.mark.parametrize("keep", ["", "keep"])
def test_lab_process_killed_leaves_nothing(keep: str) -> None:
    """SIGKILL to the lab's process ends its namespaces, and the janitor removes what is on disk.

    Even of a lab that was to be kept, where that comes before it was complete.
    """
    name = _name("killed")
    process = _start_elsewhere(name, keep)
    pids = [space.pid for space in cluster.spaces(name).values()]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert _wait(lambda: _leftovers(name) == [])


def test_cluster_killed_on_its_way_up_leaves_nothing() -> None:
    """Containers, their shims and their control groups in every hierarchy go with the process that made the cluster."""
    name = _name("cluster")
    process = _start_elsewhere(name, images.PAUSE, HALF_A_CLUSTER)
    pids = [int(pid) for path in cluster.group(name).rglob("cgroup.procs") for pid in path.read_text().split()]
    commands = {Path(f"/proc/{pid}/comm").read_text().strip() for pid in pids}
    assert {"containerd", "containerd-shim", "pause"} <= commands
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _wait(lambda: _leftovers(name) == [])
    assert _wait(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_lab_killed_with_its_janitor_is_swept_by_the_next() -> None:
    """What even the janitor could not remove goes when the next lab starts."""
    name = _name("swept")
    process = _start_elsewhere(name)
    janitors = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in map(int, janitors):
        if b"e2e.lab.cluster" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert _leftovers(name)
    with Lab(_name("next")):
        assert _leftovers(name) == []


def test_lab_of_a_name_that_is_up_is_refused() -> None:
    """Two labs stand side by side by name; a name in use is refused, without a hint to end what runs."""
    name = _name("twice")
    with Lab(name), Lab(_name("other")):
        with pytest.raises(LabError, match="in use by a process"):
            Lab(name)
        assert cluster.spaces(name)[cluster.CLIENT].run("true").returncode == 0
