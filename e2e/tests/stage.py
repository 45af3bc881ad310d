# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests play on, and the words they use: two nodes, a server and a client on each, a Service.

web      TCP and UDP, both families: the servers web-1 (node1) and web-2 (node2)
ask-1/2  clients, pods of node1 and node2
"""

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from e2e.lab import addresses, runtime, source
from e2e.lab.addresses import Dual
from e2e.lab.cluster import Lab
from e2e.lab.node import Node
from e2e.lab.runtime import Pod, tool
from e2e.lab.source import ApiSource, Source
from e2e.lab.space import Space

KINDS = ("directory", "overlay", "api")
FAMILIES = ("IPv4", "IPv6")
PROTOCOLS = ("tcp", "udp")
PORT = 80
# After how long Linux sends a SYN again that nothing has answered.
SYN_REPEATED_MS = 1000
# Who asks no longer than this sends no second SYN.
ONE_SYN_S = 0.6
WEB = addresses.service(10)


class Stage:
    """A lab with its cast.

    Attributes:
        kind: directory; overlay: the same with encapsulation always; api: an API server, that of KUBECONFIG where it is
            set. Its cluster must be dual-stack with the lab's service ranges, and have no Services in 10.96.206.0/24.
    """

    def __init__(self, lab: Lab, kind: str) -> None:
        self.lab = lab
        self.kind = kind
        self.source = self._source()

    def _source(self) -> Source:
        if self.kind != "api":
            return self.lab.directory_source()
        given = os.environ.get("KUBECONFIG")
        return self.lab.cluster_source(Path(given)) if given else self.lab.api_source()

    def down(self) -> None:
        if isinstance(self.source, ApiSource):
            self.source.clear()
        self.lab.down()

    def set_up(self, others: Mapping[str, str] = MappingProxyType({})) -> None:
        """Starts it; `others` are settings besides those of the kind."""
        settings = {"service_cidrs": ",".join(map(str, addresses.SERVICES))} if self.kind != "api" else {}
        settings |= {"encapsulation": "always"} if self.kind == "overlay" else {}
        self.lab.start_nodes(2, self.source, settings | others)
        for node in self.lab.nodes:
            node.add_pod(f"web-{node.index}")
            node.add_pod(f"ask-{node.index}", serve=False)
        self.expose("web", WEB, ["web-1", "web-2"])
        for node in self.lab.nodes:
            wait(lambda where=node.space: names(ask(where, "tcp", WEB.v6, count=20)) == {"web-1", "web-2"})  # type: ignore[misc]

    def node(self, index: int) -> Node:
        return self.lab.nodes[index - 1]

    def pod(self, name: str) -> Pod:
        return next(node.pods[name] for node in self.lab.nodes if name in node.pods)

    def place(self, name: str) -> Space:
        """Where something runs: a pod by name, or a node."""
        return next((node.space for node in self.lab.nodes if node.name == name), None) or self.pod(name).space

    def expose(self, name: str, address: Dual, pods: Iterable[str], affinity: str = "None", **conditions: bool) -> None:
        """Makes a Service stand for pods, at PORT."""
        backends = [(self.pod(pod).address, self.pod(pod).node.name) for pod in pods]
        slices = source.endpoints(name, backends, runtime.PORT, **conditions)
        manifest = source.service(name, address, PORT, runtime.PORT)
        manifest["spec"]["sessionAffinity"] = affinity
        self.source.apply(name, [manifest, *slices])


def ask(
    where: Space, protocol: str, address: str, port: int = PORT, count: int = 1, timeout_s: float = 2
) -> list[dict[str, Any]]:
    """Asks a server from a space: the answers, each {"name", "peer", ...} or {"error"}, with "took_ms"."""
    process = where.run(*tool("ask", protocol, address, str(port), "--count", str(count), "--timeout", str(timeout_s)))
    return [json.loads(line) for line in process.stdout.splitlines()]


class Asker:
    """Asks as `ask` does, all of it from one process, whose start is what takes time.

    Args:
        where: also the cgroup of whose processes it is.
    """

    def __init__(self, where: Space) -> None:
        self._process = where.start(*tool("ask", "-"), stdin=subprocess.PIPE)

    def ask(self, protocol: str, address: str, port: int, count: int = 1) -> list[dict[str, Any]]:
        assert self._process.stdin
        assert self._process.stdout
        print(protocol, address, port, "--count", count, file=self._process.stdin, flush=True)
        return [json.loads(self._process.stdout.readline()) for _ in range(count)]


def names(answers: Iterable[dict[str, Any]]) -> set[str]:
    """Who answered; an error stands for itself."""
    return {answer.get("name", answer.get("error")) for answer in answers}


def pick(address: Dual, family: str) -> str:
    return address.v6 if family == "IPv6" else address.v4


def wait(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    """Waits until something is so, and fails the test when it never is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        time.sleep(0.02)
