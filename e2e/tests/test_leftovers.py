# SPDX-License-Identifier: Apache-2.0
"""Pods that come and go leave a node as it was."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.lab import addresses, runtime
from e2e.lab.node import PINS, Node
from e2e.tests.stage import Stage, ask, names, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PODS = 50
CROWD = addresses.service(40)
MAPS = f"{PINS}/maps"
NETWORK = (
    "ip -o link",
    "ip -o address",
    "ip -o route show table all",
    "ip -o -6 route show table all",
    "ip -o neigh show nud permanent",
)


def test_fifty_pods_made_and_removed_leave_nothing(stage: Stage) -> None:
    """No link, address, route, neighbour, map entry or file stays of fifty pods that served a Service."""
    node, before = stage.node(1), _traces(stage.node(1))
    with ThreadPoolExecutor(4) as pool:
        pods = list(pool.map(lambda number: runtime.create(node.space, f"crowd-{number}"), range(PODS)))
    assert len({pod.address for pod in pods}) == PODS
    node.pods.update({pod.name: pod for pod in pods})
    for pod in pods[:3]:
        pod.serve()
    stage.expose("crowd", CROWD, [pod.name for pod in pods])
    wait(lambda: _entries(node, "backends") >= before["backends"] + 2 * PODS)  # type: ignore[operator]
    for pod in pods[:3]:
        assert names(ask(stage.place("ask-2"), "tcp", pod.address.v6, runtime.PORT)) == {pod.name}
    stage.source.delete("crowd")
    for pod in pods:
        del node.pods[pod.name]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(runtime.remove, pods))
    wait(lambda: _entries(node, "backends") == before["backends"])
    after = _traces(node)
    assert {key: after[key] for key in before} == before


def _traces(node: Node) -> dict[str, object]:
    """Everything that a pod could leave behind, by kind."""
    traces: dict[str, object] = {command: sorted(_shown(node, command)) for command in NETWORK}
    traces |= {name: _entries(node, name) for name in ("pods", "frontends", "slots", "backends", "remotes")}
    files = "find /var/lib/cni /var/lib/calico-ebpf /run/calico-ebpf /run/netns /etc/cni -not -name last_reserved_ip.*"
    traces["files"] = sorted(_shown(node, files))
    return traces


def _shown(node: Node, command: str) -> list[str]:
    """Lines without what changes by itself."""
    return [line for line in node.space.run(*command.split()).stdout.splitlines() if " cache " not in line]


def _entries(node: Node, name: str) -> int:
    return len(json.loads(node.space.run("bpftool", "-j", "map", "dump", "pinned", f"{MAPS}/{name}").stdout))
