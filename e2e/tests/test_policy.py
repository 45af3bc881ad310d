# SPDX-License-Identifier: Apache-2.0
"""Traffic policies Local as the cluster's own clients meet them, on two nodes, with plain routes and by the overlay."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.addresses import Dual
from e2e.tests.outside import drops
from e2e.tests.stage import FAMILIES, PORT, PROTOCOLS, Stage, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

WAYS = [(protocol, family) for protocol in PROTOCOLS for family in FAMILIES]
READY = {"ready": True}
TERMINATING = {"ready": False, "serving": True, "terminating": True}
# What is dropped is answered by nobody: so long, and so often, is asked in vain.
PATIENCE_S, IN_VAIN = 0.3, 3
SILENCE = "ETIMEDOUT"


@contextmanager
def served(
    stage: Stage, number: int, backends: Mapping[str, Mapping[str, bool]], **policies: str
) -> Iterator[tuple[Dual, int]]:
    """A Service of that number, until the end: its cluster IPs and its NodePort.

    Args:
        backends: conditions by the name of a pod, or of a node, which stands for a process of its own.
        policies: of its spec.
    """
    name, cluster_ip, node_port = f"policy-{number}", addresses.service(number), 30000 + number
    manifest = source.reached_from_outside(source.service(name, cluster_ip, PORT, runtime.PORT), node_port)
    slices = []
    for backend, conditions in backends.items():
        node = next((node for node in stage.lab.nodes if node.name == backend), None)
        at = (node.address, node.name) if node else (stage.pod(backend).address, stage.pod(backend).node.name)
        for one in source.endpoints(name, [at], runtime.PORT, **conditions):
            named = one["metadata"] | {"name": f"{one['metadata']['name']}-{backend}"}
            slices.append(one | {"metadata": named})
    stage.source.apply(name, [manifest | {"spec": manifest["spec"] | policies}, *slices])
    try:
        yield cluster_ip, node_port
    finally:
        stage.source.delete(name)


def assert_answered(stage: Stage, where: str, target: tuple[Dual, int], expected: str) -> None:
    """A client somewhere comes to be answered by one backend alone, or by nobody, whichever way it asks."""
    count, timeout_s = (IN_VAIN, PATIENCE_S) if expected == SILENCE else (10, 2)
    for protocol, family in WAYS:
        asked = protocol, pick(target[0], family), target[1]
        wait(lambda asked=asked: names(ask(stage.place(where), *asked, 1, timeout_s)) == {expected})  # type: ignore[misc]
        answers = ask(stage.place(where), *asked, count, timeout_s)
        assert names(answers) == {expected}, (asked, answers)


def test_internal_policy_local_gives_pods_and_processes_what_is_on_their_node(stage: Stage) -> None:
    """Each gets the backend of its own node, though there are two."""
    with served(stage, 17, {"web-1": READY, "web-2": READY}, internalTrafficPolicy="Local") as (cluster_ip, _):
        for where in ("ask-1", "node1"):
            assert_answered(stage, where, (cluster_ip, PORT), "web-1")
        for where in ("ask-2", "node2"):
            assert_answered(stage, where, (cluster_ip, PORT), "web-2")


def test_internal_policy_local_without_local_endpoint_is_silence(stage: Stage) -> None:
    """On the node without one it is dropped, and counted; the NodePort has a policy of its own."""
    with served(stage, 18, {"web-1": READY}, internalTrafficPolicy="Local") as (cluster_ip, node_port):
        before = drops(stage.node(2)).get("no_local_backend", 0)
        for where in ("ask-2", "node2"):
            assert_answered(stage, where, (cluster_ip, PORT), SILENCE)
            assert_answered(stage, where, (stage.node(2).address, node_port), "web-1")
        assert drops(stage.node(2))["no_local_backend"] - before >= 2 * len(WAYS) * IN_VAIN
        assert_answered(stage, "ask-1", (cluster_ip, PORT), "web-1")


def test_last_terminating_endpoint_of_a_node_serves_under_policy_local(stage: Stage) -> None:
    """By the cluster IP its own node's clients; by the NodePort the other's. Where any endpoint will do, none comes."""
    backends = {"web-1": TERMINATING, "web-2": READY}
    with served(stage, 19, backends, internalTrafficPolicy="Local", externalTrafficPolicy="Local") as (ip, node_port):
        for where in ("ask-1", "node1"):
            assert_answered(stage, where, (ip, PORT), "web-1")
            assert_answered(stage, where, (stage.node(1).address, node_port), "web-2")
        for where in ("ask-2", "node2"):
            assert_answered(stage, where, (stage.node(1).address, node_port), "web-1")
        assert_answered(stage, "ask-2", (ip, PORT), "web-2")


def test_node_port_under_external_policy_local_is_for_the_node_that_is_asked(stage: Stage) -> None:
    """It answers with what it has itself; its own clients it serves in any case, and who asks keeps his address."""
    with served(stage, 27, {"web-1": READY}, externalTrafficPolicy="Local") as (cluster_ip, node_port):
        for where, address in (("ask-2", stage.pod("ask-2").address), ("node2", stage.node(2).address)):
            assert_answered(stage, where, (stage.node(1).address, node_port), "web-1")
            assert_answered(stage, where, (stage.node(2).address, node_port), "web-1")
            assert_answered(stage, where, (cluster_ip, PORT), "web-1")
            for protocol, family in WAYS:
                (answer,) = ask(stage.place(where), protocol, pick(stage.node(1).address, family), node_port)
                assert answer["peer"] == pick(address, family)
                assert answer["believed_peer"] == pick(stage.node(1).address, family)
        for where in ("ask-1", "node1"):
            assert_answered(stage, where, (stage.node(2).address, node_port), SILENCE)
            assert_answered(stage, where, (stage.node(1).address, node_port), "web-1")


def test_process_of_the_node_that_is_asked_answers_other_nodes_clients(stage: Stage) -> None:
    """A backend in the host's network: its answers come from the NodePort, by plain routes and by the overlay."""
    runtime.serve(stage.place("node1"), "node1")
    with served(stage, 28, {"node1": READY}, externalTrafficPolicy="Local") as (_, node_port):
        for where in ("ask-2", "node2", "ask-1", "node1"):
            assert_answered(stage, where, (stage.node(1).address, node_port), "node1")


def test_node_port_under_external_policy_local_refuses_where_there_is_no_endpoint_at_all(stage: Stage) -> None:
    """Another node's clients as its own, at once."""
    with served(stage, 29, {}, externalTrafficPolicy="Local") as (_, node_port):
        for where in ("ask-2", "node2"):
            assert_answered(stage, where, (stage.node(1).address, node_port), "ECONNREFUSED")
