# SPDX-License-Identifier: Apache-2.0
"""Three entry nodes behind a router that spreads packets over them: which of them a connection comes by may change."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.addresses import BALANCER
from e2e.lab.cluster import Lab
from e2e.lab.network import DEVICE
from e2e.lab.node import Node
from e2e.lab.runtime import tool
from e2e.tests.outside import FIRST_NODE_PORT, MODES, service_addresses
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

CONNECTIONS = 1000
SERVICES = {"maglev": 41, "random": 42}


@pytest.fixture(scope="module")
def trio(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Three nodes, of which the first has no backend, and a Service of each balancing, with backends of its own: where
    both had the same, a port of the client's that has just been at one would be exchanged on its way to the other."""
    handover, _, way_back = request.param.partition("-")
    with Lab(f"test-{os.getpid()}-trio") as lab:
        services = lab.directory_source()
        lab.start_nodes(3, services, {"handover": handover, "return_path": way_back})
        for balancing, number in SERVICES.items():
            manifest = source.service(balancing, addresses.service(number), PORT, runtime.PORT)
            manifest = source.reached_from_outside(
                manifest, FIRST_NODE_PORT + number, [], service_addresses(BALANCER, number), "Cluster"
            )
            manifest["metadata"]["annotations"] = {"calico-ebpf.io/balancing": balancing}
            pods = [node.add_pod(f"{balancing}-{node.index}") for node in lab.nodes[1:]]
            backends = [(pod.address, pod.node.name) for pod in pods]
            services.apply(balancing, [manifest, *source.endpoints(balancing, backends, runtime.PORT)])
        for family, version in (("IPv4", "ipv4"), ("IPv6", "ipv6")):
            lab.client.run("sysctl", "-qw", f"net.{version}.fib_multipath_hash_policy=1")  # by ports, too
            for number in SERVICES.values():
                for node in lab.nodes:
                    _spread(lab, family, number, [node])
                    at = _balancer(family, number)
                    wait(lambda to=at: {len(names(ask(lab.client, "tcp", to, count=20)))} == {2}, 30)  # type: ignore[misc]
        yield lab


@pytest.mark.parametrize("trio", MODES, indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_connections_go_on_by_other_entry_nodes(trio: Lab, family: str) -> None:
    """One node vanishes, comes back, and so do its connections; less than one in a hundred breaks."""
    answered = _answered_through_changes(trio, family, "maglev")
    assert answered[0] == CONNECTIONS
    assert min(answered) > 0.99 * CONNECTIONS, answered


@pytest.mark.parametrize("trio", MODES[:1], indirect=True)
@pytest.mark.parametrize("family", FAMILIES)
def test_connections_break_where_each_node_chooses_for_itself(trio: Lab, family: str) -> None:
    """What the table is for: by chance, those of the node that vanished are refused by the others."""
    answered = _answered_through_changes(trio, family, "random")
    assert answered[0] == CONNECTIONS
    assert answered[1] < 0.9 * CONNECTIONS, answered


def _answered_through_changes(lab: Lab, family: str, balancing: str) -> list[int]:
    """How many of CONNECTIONS were answered at first, without the first node, with it again, and without the last."""
    number = SERVICES[balancing]
    first, *others = lab.nodes
    _spread(lab, family, number, lab.nodes)
    flags = ("--count", str(CONNECTIONS), "--again", "3")
    asking = lab.client.start(*tool("many", "ask", "tcp", _balancer(family, number), str(PORT), *flags))
    try:
        answered = [_line(asking)]
        for node in lab.nodes:
            assert _flows(node, family, number) > CONNECTIONS / 5  # it has its share
        lab.switch.run("ip", "link", "set", first.name, "down")
        for nodes in (others, lab.nodes, lab.nodes[:2]):
            _spread(lab, family, number, nodes)
            asking.send_signal(signal.SIGUSR1)
            answered.append(_line(asking))
            lab.switch.run("ip", "link", "set", first.name, "up")
        return answered
    finally:
        lab.switch.run("ip", "link", "set", first.name, "up")
        asking.kill()
        asking.wait()


def _spread(lab: Lab, family: str, number: int, nodes: list[Node]) -> None:
    """Has the client's packets for the load balancer's address go by these nodes, each connection by one of them."""
    hops = [part for node in nodes for part in ("nexthop", "via", pick(node.address, family), "dev", DEVICE)]
    lab.client.run("ip", "route", "replace", _balancer(family, number), *hops)


def _balancer(family: str, number: int) -> str:
    return pick(addresses.outside(BALANCER, 1, number), family)


def _flows(node: Node, family: str, number: int) -> int:
    """Connections of clients to a Service that come by a node."""
    flows: list[dict[str, Any]] = json.loads(node.calico("flows", "--output", "json"))
    return sum(_balancer(family, number) in json.dumps(flow) for flow in flows)


def _line(process: Any) -> int:
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    print(line)
    return int(json.loads(line)["answered"])
