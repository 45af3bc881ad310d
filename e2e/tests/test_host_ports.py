# SPDX-License-Identifier: Apache-2.0
"""Host ports of a pod of node1, asked for with ADD: from outside, from pods and host processes of either node."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.tests.outside import CLIENT
from e2e.tests.stage import FAMILIES, PORT, PROTOCOLS, Stage, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

HOST_PORT = 8053
LOOPBACK = {"IPv4": "127.0.0.1", "IPv6": "::1"}


def mapping(protocol: str, host_ip: str = "", port: int = HOST_PORT) -> dict[str, Any]:
    return {"hostPort": port, "containerPort": runtime.PORT, "protocol": protocol, "hostIP": host_ip}


@contextmanager
def serving(stage: Stage, name: str, *mappings: dict[str, Any]) -> Iterator[None]:
    """A pod of node1 with these host ports."""
    stage.node(1).add_pod(name, port_mappings=mappings)
    try:
        yield
    finally:
        stage.node(1).remove_pod(name)


def test_host_port_is_reached_from_everywhere(stage: Stage) -> None:
    """The pod sees who asks, whoever that is; and the port of that number of the other node is another's."""
    node, other = stage.node(1), stage.node(2)
    with serving(stage, "dns", *map(mapping, PROTOCOLS)):
        for family in FAMILIES:
            for protocol in PROTOCOLS:
                for where, peer in (
                    (stage.lab.client, CLIENT),
                    (stage.place("ask-1"), stage.pod("ask-1").address),
                    (stage.place("ask-2"), stage.pod("ask-2").address),
                    (stage.place("dns"), None),
                    (node.space, None),
                    (other.space, None),
                ):
                    address = pick(node.address, family)
                    (answer,) = ask(where, protocol, address, HOST_PORT)
                    assert names([answer]) == {"dns"}, (where.name, protocol, family, answer)
                    assert (answer["believed_peer"], answer["believed_port"]) == (address, HOST_PORT)
                    if peer:
                        assert answer["peer"] == pick(peer, family)
                assert names(ask(node.space, protocol, LOOPBACK[family], HOST_PORT)) == {"dns"}
                for where in (stage.lab.client, stage.place("ask-1"), node.space):
                    refused = ask(where, protocol, pick(other.address, family), HOST_PORT)
                    assert names(refused) == {"ECONNREFUSED"}, (where.name, protocol, family)
    assert names(ask(stage.lab.client, "tcp", node.address.v4, HOST_PORT)) == {"ECONNREFUSED"}


def test_same_port_of_two_addresses_and_protocols_is_as_many_pods(directory_stage: Stage) -> None:
    """As upstream's conformance test has it: by hostIP and protocol they are told apart."""
    stage = directory_stage
    address = stage.node(1).address.v4
    with (
        serving(stage, "one", mapping("tcp", "127.0.0.1")),
        serving(stage, "two", mapping("tcp", address)),
        serving(stage, "three", mapping("udp", address)),
    ):
        host = stage.node(1).space
        found = [names(ask(host, *where)) for where in (("tcp", "127.0.0.1", HOST_PORT), ("tcp", address, HOST_PORT))]
        assert [*found, names(ask(host, "udp", address, HOST_PORT))] == [{"one"}, {"two"}, {"three"}]
        assert names(ask(stage.lab.client, "tcp", address, HOST_PORT)) == {"two"}


def test_host_port_is_there_and_gone_without_the_daemons(directory_stage: Stage) -> None:
    """ADD and DEL need neither controller nor server; and a controller that starts leaves the host port alone."""
    stage, node = directory_stage, directory_stage.node(1)
    node.stop(CONTROLLER)
    node.kill(CNI_SERVER)
    try:
        with serving(stage, "lone", mapping("tcp")):
            assert names(ask(stage.lab.client, "tcp", node.address.v4, HOST_PORT)) == {"lone"}
            node.start(CNI_SERVER)
            node.start(CONTROLLER)
            node.wait_ready()
            assert names(ask(stage.lab.client, "tcp", node.address.v6, HOST_PORT)) == {"lone"}
            assert f"this-node:{HOST_PORT}/TCP->{runtime.PORT}" in node.calico("pods")
            assert f"this-node:{HOST_PORT}" in node.calico("services")
            node.calico("backends")
            node.stop(CONTROLLER)
            node.kill(CNI_SERVER)
        assert names(ask(stage.lab.client, "tcp", node.address.v4, HOST_PORT)) == {"ECONNREFUSED"}
    finally:
        node.start(CNI_SERVER)
        node.start(CONTROLLER)
        node.wait_ready()


def test_node_port_of_the_same_number_comes_first_and_goes(directory_stage: Stage) -> None:
    """A Service has the port while it is there, and the pod has it again when it is gone."""
    stage, node = directory_stage, directory_stage.node(1)
    number = 30099

    def answers(name: str) -> bool:
        return names(ask(stage.lab.client, "tcp", node.address.v4, number)) == {name}

    with serving(stage, "mapped", mapping("tcp", port=number)):
        assert answers("mapped")
        manifest = source.service("rival", addresses.service(63), PORT, runtime.PORT)
        backends = source.endpoints("rival", [(stage.pod("web-1").address, node.name)], runtime.PORT)
        stage.source.apply("rival", [source.reached_from_outside(manifest, number), *backends])
        wait(lambda: answers("web-1"))
        stage.source.delete("rival")
        wait(lambda: answers("mapped"))
