# SPDX-License-Identifier: Apache-2.0
"""ICMP errors find who has sent what they are about, through Services, hand-overs and masquerade: closed ports, and
routers that want smaller packets."""

import pytest

from e2e.lab import addresses, network, runtime, source
from e2e.lab.cluster import Lab
from e2e.tests.outside import CLIENT, MODES, NODE_PORT, Exposed, Outside, counter, target, transfer
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PATH_MTU = 1280


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_port_of_a_backend_refuses_datagrams(outside: Outside, family: str) -> None:
    """The backend's own kernel says so: to pods and a client outside, on its node and on the other."""
    exposed, far = Exposed(34, ["mute"], "Cluster"), outside.node(2)
    pod = far.add_pod("mute", serve=False)
    try:
        outside.expose_outside("mute", exposed)
        for node in outside.lab.nodes:
            wait(lambda one=node: f"{pod.address.v4}:{runtime.PORT}" in one.calico("services"))  # type: ignore[misc]
        before = [counter(node, "refusals") for node in outside.lab.nodes]
        cluster_ip = pick(addresses.service(exposed.number), family), PORT
        asked = [(outside.client, target(node, exposed, NODE_PORT, family)) for node in outside.lab.nodes]
        asked += [(outside.place(who), cluster_ip) for who in ("ask-1", "ask-2")]
        for where, at in asked:
            assert names(ask(where, "udp", *at)) == {"ECONNREFUSED"}
        assert [counter(node, "refusals") for node in outside.lab.nodes] == before
    finally:
        outside.source.delete("mute")
        far.remove_pod("mute")


@pytest.mark.parametrize("way_back", ["entry", "direct"])
def test_router_on_the_way_to_a_client_is_heard(fresh: Lab, way_back: str) -> None:
    """Behind it packets must be smaller. Backends hear it through the node that the client talks to, and a pod that
    has asked the client through its own."""
    services, gateway = fresh.directory_source(), addresses.underlay(addresses.SWITCH)
    fresh.start_nodes(2, services, {"return_path": way_back})
    fresh.switch.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    fresh.switch.run(
        "sysctl", "-qw", "net.ipv4.conf.all.send_redirects=0", f"net.ipv4.conf.{network.BRIDGE}.send_redirects=0"
    )
    for family in FAMILIES:
        client, via = pick(CLIENT, family), pick(gateway, family)
        fresh.switch.run("ip", "route", "add", client, "dev", network.BRIDGE, "mtu", str(PATH_MTU))
        for node in fresh.nodes:
            node.space.run("ip", "route", "add", client, "via", via, "dev", network.DEVICE)
    for node in fresh.nodes:
        pod = node.add_pod(f"web-{node.index}")
        manifest = source.service(pod.name, addresses.service(60 + node.index), PORT, runtime.PORT)
        manifest = source.reached_from_outside(manifest, 30060 + node.index)
        services.apply(pod.name, [manifest, *source.endpoints(pod.name, [(pod.address, node.name)], runtime.PORT)])
    runtime.serve(fresh.client, "client")
    asker = fresh.nodes[0].add_pod("ask", serve=False)
    for family in FAMILIES:
        for node in fresh.nodes:
            entry = pick(fresh.nodes[0].address, family), 30060 + node.index
            wait(lambda at=entry: "name" in ask(fresh.client, "tcp", *at)[0])  # type: ignore[misc]
            transfer(fresh.client, entry)
        transfer(asker.space, (pick(CLIENT, family), runtime.PORT))
