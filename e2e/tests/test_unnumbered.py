# SPDX-License-Identifier: Apache-2.0
"""Nodes whose links have no addresses but link-local ones: theirs are at lo, and IPv4 goes by next hops of IPv6."""

import pytest

from e2e.lab import addresses, network, runtime, source
from e2e.lab.cluster import Lab
from e2e.lab.node import Node
from e2e.lab.runtime import tool
from e2e.lab.space import Space
from e2e.lab.taps import captured
from e2e.tests.outside import CLIENT
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

NODE_PORT = 30092
ECHO_PORT = 9101
ROUTER = "fe80::1"


@pytest.mark.parametrize("encapsulation", ["never", "auto"])
def test_pods_reach_each_other_and_outside_over_links_without_addresses(fresh: Lab, encapsulation: str) -> None:
    """By the router's IPv6 address alone, in the tunnel or not; outside they are seen as their node."""
    asker, far = _unnumbered(fresh, encapsulation)
    server = fresh.client.start(*tool("server", "--name", "outsider", "--port", str(ECHO_PORT)))
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    pod, web = asker.pods["ask"], far.pods["web"]
    for family in FAMILIES:
        for protocol in ("tcp", "udp"):
            answers = ask(pod.space, protocol, pick(CLIENT, family), ECHO_PORT)
            assert [answer.get("peer") for answer in answers] == [pick(asker.address, family)], answers
        with captured({"far": far.space}, (runtime.PORT,)) as seen:
            answers = ask(pod.space, "tcp", pick(web.address, family), runtime.PORT)
        assert [answer.get("peer") for answer in answers] == [pick(pod.address, family)], answers
        assert {"outer" in packet for packet in seen["far"]} == {encapsulation == "auto"}
        answers = ask(asker.space, "tcp", pick(web.address, family), runtime.PORT)
        assert [answer.get("peer") for answer in answers] == [pick(asker.address, family)], answers
        entry = pick(asker.address, family)
        wait(lambda to=entry: names(ask(fresh.client, "tcp", to, NODE_PORT)) == {"web"})  # type: ignore[misc]
    server.kill()
    server.wait()


def _unnumbered(lab: Lab, encapsulation: str) -> tuple[Node, Node]:
    """Two nodes behind the switch as their router, which knows the way to their pods; the second has a backend."""
    services, nodes = lab.directory_source(), [lab.add_node(), lab.add_node()]
    lab.switch.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    lab.switch.run(
        "sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", f"net.ipv4.conf.{network.BRIDGE}.send_redirects=0"
    )
    _batch(lab.switch, f"addr add {ROUTER}/64 dev {network.BRIDGE} nodad")
    for node in nodes:
        here = f"fe80::{node.index + 1}"
        _batch(
            node.space,
            f"addr flush dev {network.DEVICE}",
            f"addr add {here}/64 dev {network.DEVICE} nodad",
            f"addr add {node.address.v4}/32 dev lo",
            f"addr add {node.address.v6}/128 dev lo nodad",
            f"route add 0.0.0.0/0 via inet6 {ROUTER} dev {network.DEVICE} src {node.address.v4}",
            f"route replace ::/0 via {ROUTER} dev {network.DEVICE} src {node.address.v6}",
        )
        behind = (*node.address, *addresses.pod_ranges(node.index))
        _batch(lab.switch, *(f"route add {one} via inet6 {here} dev {network.BRIDGE}" for one in behind))
        gateway = addresses.underlay(addresses.SWITCH)
        for family in FAMILIES:
            lab.client.run("ip", "route", "add", pick(node.address, family), "via", pick(gateway, family))
    lab.bring_up(nodes, services, {"encapsulation": encapsulation})
    asker, far = nodes
    asker.add_pod("ask", serve=False)
    pod = far.add_pod("web")
    manifest = source.reached_from_outside(source.service("web", addresses.service(62), PORT, runtime.PORT), NODE_PORT)
    services.apply("web", [manifest, *source.endpoints("web", [(pod.address, far.name)], runtime.PORT)])
    wait(lambda: f"{pod.address.v4}:{runtime.PORT}" in asker.calico("services"))
    return asker, far


def _batch(space: Space, *commands: str) -> None:
    """Runs lines of ip(8)."""
    space.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")
