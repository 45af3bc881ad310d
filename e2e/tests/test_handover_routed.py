# SPDX-License-Identifier: Apache-2.0
"""Nodes of different subnets, whose router knows the way to pods: `encapsulation: never`, and what that leaves to
outside clients."""

import json

import pytest

from e2e.lab import addresses, network, runtime, source
from e2e.lab.cluster import Lab
from e2e.lab.node import Node
from e2e.lab.taps import captured
from e2e.tests.outside import CLIENT, drops
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NODE_PORT = 30091
HANDOVER_VNI = 207
WITHOUT_ANSWER = "handover is l2 and encapsulation never"


@pytest.mark.parametrize("way_back", ["entry", "direct"])
def test_client_is_handed_over_by_the_tunnel_while_pods_take_plain_routes(fresh: Lab, way_back: str) -> None:
    """The router's MAC tells the backend's node nothing of a packet's sender; the tunnel does."""
    entry, far = _routed(fresh, {"encapsulation": "never", "return_path": way_back})
    pod, asker = far.pods["web"], entry.pods["ask"]
    for family in FAMILIES:
        hops = {"far": far.space}
        address = pick(entry.address, family)
        wait(lambda to=address: names(ask(fresh.client, "tcp", to, NODE_PORT)) == {"web"})  # type: ignore[misc]
        with captured(hops, (NODE_PORT, runtime.PORT)) as seen:
            answers = ask(fresh.client, "tcp", address, NODE_PORT, count=3)
        assert {answer["peer"] for answer in answers} == {pick(CLIENT, family)}, answers
        requests = [packet for packet in seen["far"] if packet["src"] == pick(CLIENT, family)]
        assert {packet.get("outer", {}).get("vni") for packet in requests} == {HANDOVER_VNI}
        with captured(hops, (runtime.PORT,)) as seen:
            answers = ask(asker.space, "tcp", pick(pod.address, family), runtime.PORT)
        assert {answer["peer"] for answer in answers} == {pick(asker.address, family)}, answers
        assert seen["far"]
        assert not any("outer" in packet for packet in seen["far"])


def test_client_without_a_way_to_be_handed_over_is_counted_and_told(fresh: Lab) -> None:
    """Layer 2 alone does not reach over a router."""
    entry, far = _routed(fresh, {"encapsulation": "never", "handover": "l2"})
    for family in FAMILIES:
        before = drops(entry).get("no_handover", 0)
        (answer,) = ask(fresh.client, "udp", pick(entry.address, family), NODE_PORT)
        assert "error" in answer
        assert drops(entry)["no_handover"] > before
    told = entry.calico("status")
    assert f"nothing is handed over to {far.name}" in told
    assert f"Node {far.name}: outside clients' packets cannot be handed over to" in told
    checks = json.loads(entry.calico("doctor", "--output", "json"))["checks"]
    (handover,) = [check for check in checks if check["name"] == "handover"]
    assert (handover["verdict"], WITHOUT_ANSWER in handover["seen"]) == ("warn", True)


def _routed(lab: Lab, settings: dict[str, object]) -> tuple[Node, Node]:
    """Two nodes with the switch as the router between them: a client's entry, and its backend's."""
    services, nodes = lab.directory_source(), [lab.add_node(), lab.add_node()]
    entry, far = nodes
    gateway = addresses.underlay(addresses.SWITCH)
    lab.switch.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    lab.switch.run(
        "sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", f"net.ipv4.conf.{network.BRIDGE}.send_redirects=0"
    )
    for node, other in ((entry, far), (far, entry)):
        for family in FAMILIES:
            via = pick(gateway, family)
            node.space.run("ip", "route", "add", pick(other.address, family), "via", via, "dev", network.DEVICE)
            pods, via = pick(addresses.pod_ranges(node.index), family), pick(node.address, family)
            lab.switch.run("ip", "route", "add", pods, "via", via)
    lab.bring_up(nodes, services, settings)
    entry.add_pod("ask", serve=False)
    pod = far.add_pod("web")
    manifest = source.reached_from_outside(source.service("web", addresses.service(61), PORT, runtime.PORT), NODE_PORT)
    services.apply("web", [manifest, *source.endpoints("web", [(pod.address, far.name)], runtime.PORT)])
    wait(lambda: f"{pod.address.v4}:{runtime.PORT}" in entry.calico("services"))
    return entry, far
