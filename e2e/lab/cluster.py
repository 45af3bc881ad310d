# SPDX-License-Identifier: Apache-2.0
"""The whole lab: a switch, an outside client and any number of nodes, up and down.

    with Lab("mine") as lab:
        lab.start_nodes(2, lab.directory_source())

A lab is told from others by its name. It keeps its files below /run/calico-ebpf-lab/NAME, and its processes below a
cgroup2 group calico-ebpf-lab/NAME: by these `remove` finds everything, whoever made it and however that ended. Spaces
end with the process that made them, killed or not; a janitor process then removes the group and the files.
"""

import fcntl
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from e2e import kubernetes
from e2e.lab import addresses, apiserver, cgroups, network, source, space
from e2e.lab.node import CNI_SERVER, CONTROLLER, Node
from e2e.lab.source import ApiSource, DirectorySource, Source
from e2e.lab.space import LabError, Space

HOME = Path("/run/calico-ebpf-lab")
SWITCH, CLIENT = "switch", "client"
NODES = "nodes"
API = "api"
NAME = "lab"
N = TypeVar("N", bound=Node)
Hold = Callable[[str, Path, Path, bool], Space]
KEEP, SPACES = "keep", "spaces.json"
LEAVE = b"leave"


class Lab:
    """A lab.

    Args:
        name: letters, digits and dashes.
        keep: it can outlive this process, once `leave` has said so; `remove` ends it.

    Raises:
        LabError: a lab of that name is up, or a namespace or mount was refused.
    """

    def __init__(self, name: str, keep: bool = False) -> None:
        sweep()
        self.name = name
        self.directory = HOME / name
        self.nodes: list[Node] = []
        self._group = group(name)
        self._keep = keep
        if self.directory.exists():
            raise LabError(_in_the_way(name))
        for part in ("scratch", "logs", "manifests"):
            (self.directory / part).mkdir(parents=True)
        self._lock = (self.directory / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._janitor = _start_janitor(name)
        try:
            self.switch = self._space(SWITCH)
            network.make_switch(self.switch)
            self.client = self._space(CLIENT)
            network.plug(self.switch, self.client, addresses.underlay(addresses.CLIENT))
        except BaseException:
            self.down()
            raise

    def __enter__(self) -> "Lab":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    def directory_source(self) -> DirectorySource:
        return DirectorySource(self.directory / "manifests")

    def api_source(self) -> ApiSource:
        """Starts etcd and a Kubernetes API server on the switch.

        Raises:
            LabError: one of them did not start.
            kubernetes.BuildError: it cannot be built.
        """
        self.api = apiserver.start(self.switch, self.directory / API, self.logs)
        return ApiSource(kubernetes.command("kubectl"), self.switch, self.api.kubeconfig)

    def cluster_source(self, kubeconfig: Path) -> ApiSource:
        """Follows the API server of a cluster that is there already. What is applied there, `ApiSource.clear` removes.

        Raises:
            LabError: the kubeconfig names none.
        """
        relayed = apiserver.borrow(self.switch, kubeconfig, self.directory / API)
        return ApiSource(kubernetes.command("kubectl"), self.switch, relayed)

    def start_nodes(self, count: int, services: Source, settings: Mapping[str, object] | None = None) -> None:
        """Adds nodes, with both daemons, and waits until they are ready."""
        self.bring_up([self.add_node() for _ in range(count)], services, settings)

    def bring_up(self, added: Sequence[Node], services: Source, settings: Mapping[str, object] | None = None) -> None:
        """Announces nodes that were added, starts both daemons on them, and waits until they are ready."""
        services.apply(NODES, [source.node(node.name, node.index, node.address) for node in self.nodes])
        for node in added:
            node.install({**services.settings(), **(settings or {})})
            node.start(CNI_SERVER)
            node.start(CONTROLLER)
        for node in added:
            node.wait_ready()

    def leave(self) -> None:
        """Lets the lab stand when this process ends."""
        (self.directory / KEEP).touch()
        self._janitor.communicate(LEAVE)
        self._lock.close()

    def down(self) -> None:
        """Ends every process of the lab and removes everything of it."""
        remove(self.name)
        self._lock.close()
        self._janitor.communicate()

    def _space(self, name: str, hold: Hold = space.hold) -> Space:
        made = hold(name, self._group / name, self.directory, self._keep)
        self._record(name, made.pid)
        return made

    def add_node(self, kind: type[N] = Node) -> N:  # type: ignore[assignment]
        """A node on the network, with nothing of ours on it."""
        index = len(self.nodes) + 1
        if index > addresses.NODES_MAX:
            raise LabError(f"a lab has {addresses.NODES_MAX} nodes at most")
        address = addresses.underlay(addresses.FIRST_NODE + index - 1)
        node = kind(self._space(f"node{index}", kind.hold), index, address, self.logs)
        network.plug(self.switch, node.space, address)
        self.nodes.append(node)
        return node

    def _record(self, name: str, pid: int) -> None:
        """Leaves on disk which process holds which space, for other processes to enter them."""
        path = self.directory / SPACES
        recorded = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(recorded | {name: pid}))


def spaces(name: str) -> dict[str, Space]:
    """The spaces of a lab that is up, whoever made it.

    Raises:
        LabError: it is not up.
    """
    try:
        recorded: dict[str, Any] = json.loads((HOME / name / SPACES).read_text())
    except FileNotFoundError:
        raise LabError(f"no lab {name} is up: `{command(name)} up` makes it") from None
    return {
        space_name: Space(space_name, pid, group(name) / space_name, keep=True) for space_name, pid in recorded.items()
    }


def group(name: str) -> Path:
    """The cgroup2 directory of a lab's processes."""
    return cgroups.cgroup2() / "calico-ebpf-lab" / name


def remove(name: str) -> None:
    """Ends and removes a lab, whoever made it and in whatever state it was left."""
    cgroups.kill(group(name))
    shutil.rmtree(HOME / name, ignore_errors=True)
    cgroups.drop(group(name).parent)
    with suppress(OSError):  # other labs are up, or it is gone
        HOME.rmdir()


def is_kept(name: str) -> bool:
    """Whether the lab of that name was left standing on purpose."""
    return (HOME / name / KEEP).exists()


def command(name: str) -> str:
    """The command line of a lab by hand, as one types it in this directory."""
    return shlex.join([os.path.relpath(sys.executable), "-m", "e2e.lab", *(["--name", name] if name != NAME else [])])


def _in_the_way(name: str) -> str:
    """Why a lab cannot be made. One that a process still uses is not offered to be ended."""
    if is_kept(name):
        return f"lab {name} is up: `{command(name)} down` ends it"
    return f"lab {name} is in use by a process that runs now: wait for its end, or take another --name"


def sweep() -> None:
    """Removes what is left of labs whose process ended without doing so, its janitor neither."""
    for directory in HOME.glob("*"):
        if _is_abandoned(directory):
            remove(directory.name)


def _is_abandoned(directory: Path) -> bool:
    """Whether nobody holds a lab's lock, and it was not left standing on purpose."""
    try:
        with (directory / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
    return not is_kept(directory.name)


def _start_janitor(name: str) -> "subprocess.Popen[bytes]":
    """Starts a process that removes the lab when this one has ended, however it did: its end of the pipe closes.

    Unless it reads LEAVE first.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "e2e.lab.cluster", name],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parent.parent.parent,
        start_new_session=True,
    )


if __name__ == "__main__":
    if sys.stdin.buffer.read() != LEAVE:
        remove(sys.argv[1])
