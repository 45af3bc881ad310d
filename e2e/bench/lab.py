# SPDX-License-Identifier: Apache-2.0
"""The netns lab with nodes of the peers beside ours: one switch, one source of Services, one plan of addresses."""

import os
from pathlib import Path
from typing import TypeVar

from e2e.bench.tool import BenchError
from e2e.lab import addresses, network, source
from e2e.lab.cluster import NODES, Lab
from e2e.lab.node import Node
from e2e.lab.source import Source
from e2e.lab.space import Space

N = TypeVar("N", bound=Node)


class BenchNode(Node):
    """One of our nodes, whose daemons are looked at from outside."""

    def pid(self, daemon: str) -> int:
        return self._daemons[daemon].pid

    def cpu_s(self) -> float:
        """CPU time that the node's processes have taken since it was made, those that have ended included."""
        for line in (self.space.group / "cpu.stat").read_text().splitlines():
            if line.startswith("usage_usec "):
                return int(line.split()[1]) / 1e6
        raise BenchError(f"{self.space.group}: cpu.stat has no usage_usec")

    def memory_mb(self, daemon: str, field: str) -> float:
        """VmRSS (now) or VmHWM (at most, ever) of a daemon, in MB of 10^6 bytes."""
        for line in Path(f"/proc/{self.pid(daemon)}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise BenchError(f"{self.name}: {daemon} has no {field}")


class BenchLab(Lab):
    """A lab that is gone with the case.

    Args:
        mtu: of all hosts' devices, in bytes.
    """

    def __init__(self, case: str, mtu: int = 1500) -> None:
        super().__init__(f"bench-{os.getpid()}-{case}")
        self._mtu = mtu
        network.resize(self.switch, self.client, mtu)
        make_wire(self.switch)

    def __enter__(self) -> "BenchLab":
        return self

    def add_node_of(self, kind: type[N]) -> N:
        """A node of some kind on the network, with nothing installed and nothing running."""
        index = len(self.nodes) + 1
        address = addresses.underlay(addresses.FIRST_NODE + index - 1)
        node = kind(self._space(f"node{index}"), index, address, self.logs)
        network.plug(self.switch, node.space, address, self._mtu)
        self.nodes.append(node)
        return node

    def announce(self, services: Source) -> None:
        """Makes every node's Node object."""
        services.apply(NODES, [source.node(node.name, node.index, node.address) for node in self.nodes])


def make_wire(switch: Space) -> None:
    """Keeps the switch from showing frames to netfilter, which no real one does: 7 % of a connection across nodes."""
    # Seen from the switch's network namespace: the settings are its own.
    names = switch.run("sysctl", "-N", "-a", "-r", r"^net\.bridge\.bridge-nf-call-").stdout.split()
    for name in names:
        switch.run("sysctl", "-q", "-w", f"{name}=0")
