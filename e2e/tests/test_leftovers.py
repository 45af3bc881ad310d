# SPDX-License-Identifier: Apache-2.0
"""Pods that come and go leave a node as it was."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from e2e.lab import addresses, runtime
from e2e.tests.stage import Stage, ask, names, wait
from e2e.tests.traces import entries, traces

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PODS = 50
CROWD = addresses.service(40)


def test_fifty_pods_made_and_removed_leave_nothing(stage: Stage) -> None:
    """No link, address, route, neighbour, map entry or file stays of fifty pods that served a Service."""
    node, before = stage.node(1), traces(stage.node(1))
    with ThreadPoolExecutor(4) as pool:
        pods = list(pool.map(lambda number: runtime.create(node.space, f"crowd-{number}"), range(PODS)))
    assert len({pod.address for pod in pods}) == PODS
    node.pods.update({pod.name: pod for pod in pods})
    for pod in pods[:3]:
        pod.serve()
    stage.expose("crowd", CROWD, [pod.name for pod in pods])
    wait(lambda: entries(node, "backends") >= before["backends"] + 2 * PODS)  # type: ignore[operator]
    for pod in pods[:3]:
        assert names(ask(stage.place("ask-2"), "tcp", pod.address.v6, runtime.PORT)) == {pod.name}
    stage.source.delete("crowd")
    for pod in pods:
        del node.pods[pod.name]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(runtime.remove, pods))
    wait(lambda: entries(node, "backends") == before["backends"])
    after = traces(node)
    assert {key: after[key] for key in before} == before
