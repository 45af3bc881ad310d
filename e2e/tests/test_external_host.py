# SPDX-License-Identifier: Apache-2.0
"""Services whose backend is a process of a node, in the host's own network, asked by the client outside."""

import json

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.cluster import Lab
from e2e.tests.outside import CLIENT, MODES, NODE_PORT, RETURNS, SERVICES, Outside, target, transfer
from e2e.tests.stage import FAMILIES, PORT, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

HOST_NODE_PORT = 30092
LARGE = [("l2-entry", "IPv6"), ("l2-direct", "IPv4"), ("vxlan-entry", "IPv4"), ("vxlan-direct", "IPv4")]


@pytest.mark.parametrize(("mode", "family"), LARGE)
@pytest.mark.parametrize("name", ["host-near", "host-far"])
def test_large_transfer_with_a_backend_in_the_hosts_network_arrives_whole(
    outside: Outside, family: str, name: str
) -> None:
    """A megabyte each way, though a host's socket knows nothing of the tunnel's MTU: IPv4 tunnels send fragments."""
    transfer(outside.client, target(outside.node(1), SERVICES[name], NODE_PORT, family))


@pytest.mark.parametrize("mode", MODES[:1])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
@pytest.mark.parametrize("first", ["Service", "host"])
def test_client_port_may_ask_the_service_and_the_host_itself_at_once(
    outside: Outside, family: str, kind: str, first: str
) -> None:
    """From one port, to one process: either is answered by whom it has asked, and goes on being."""
    node = outside.node(1)
    ends = [target(node, SERVICES["host-near"], NODE_PORT, family), (pick(node.address, family), runtime.PORT)]
    ends = ends if first == "Service" else ends[::-1]
    script = (
        "import socket; ends = []; port = 0\n"
        f"for end in {ends}:\n"
        f"    ends.append(socket.socket(socket.AF_INET{'6' if family == 'IPv6' else ''}, socket.{kind}))\n"
        "    ends[-1].settimeout(2); ends[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "    ends[-1].bind(('', port)); port = ends[-1].getsockname()[1]\n"
        "    ends[-1].connect(end)\n"
        "    for end in ends: end.sendall(b'?\\n'); print(end.recv(2048).decode(), end='')\n"
    )
    answers = [json.loads(line) for line in outside.client.run("python3", "-c", script).stdout.splitlines()]
    assert len(answers) == 3
    assert {(answer["name"], answer["peer"]) for answer in answers} == {(node.name, pick(CLIENT, family))}


@pytest.mark.parametrize("way_back", RETURNS)
def test_backend_in_the_hosts_network_answers_where_sources_are_checked_strictly(fresh: Lab, way_back: str) -> None:
    """The client's packet comes out of the tunnel while its source is routed elsewhere: rp_filter 1 is no hindrance."""
    services, nodes = fresh.directory_source(), [fresh.add_node(), fresh.add_node()]
    for node in nodes:
        node.space.run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=1", "net.ipv4.conf.default.rp_filter=1")
    fresh.bring_up(nodes, services, {"handover": "vxlan", "return_path": way_back})
    entry, far = nodes
    runtime.serve(far.space, far.name)
    manifest = source.service("web", addresses.service(62), PORT, runtime.PORT)
    backends = source.endpoints("web", [(far.address, far.name)], runtime.PORT)
    services.apply("web", [source.reached_from_outside(manifest, HOST_NODE_PORT), *backends])
    wait(lambda: names(ask(fresh.client, "tcp", entry.address.v4, HOST_NODE_PORT)) == {far.name})
    (answer,) = ask(fresh.client, "udp", entry.address.v4, HOST_NODE_PORT)
    assert (answer.get("name"), answer.get("peer")) == (far.name, CLIENT.v4)
