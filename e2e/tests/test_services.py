# SPDX-License-Identifier: Apache-2.0
"""Services and pods as clients see them, on two nodes, from both sources, with plain routes and through the overlay."""

import json
from itertools import product

import pytest

from e2e.lab import addresses, runtime
from e2e.lab.node import PINS
from e2e.lab.taps import captured
from e2e.tests.stage import FAMILIES, PORT, PROTOCOLS, SYN_REPEATED_MS, WEB, Stage, ask, names, pick, wait

pytestmark = pytest.mark.root

EVERYWHERE = ("ask-1", "ask-2", "node1", "node2")


@pytest.mark.parametrize("where", EVERYWHERE)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cluster_ip_asked_often_is_answered_by_every_backend(
    stage: Stage, protocol: str, family: str, where: str
) -> None:
    """Of forty questions from a pod or a host process none is lost, and the client believes to talk to its Service."""
    service = pick(WEB, family)
    answers = ask(stage.place(where), protocol, service, count=40)
    assert names(answers) == {"web-1", "web-2"}
    assert {answer["believed_peer"] for answer in answers} == {service}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("client", ["ask-1", "ask-2"])
def test_cluster_ip_from_a_pod_keeps_the_clients_address(stage: Stage, client: str, protocol: str, family: str) -> None:
    """The server sees the pod that asked, on its own node and on the other."""
    answers = ask(stage.place(client), protocol, pick(WEB, family), count=20)
    assert {answer["peer"] for answer in answers} == {pick(stage.pod(client).address, family)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("server", ["web-1", "web-2"])
@pytest.mark.parametrize("where", EVERYWHERE)
def test_pod_asked_directly_answers(stage: Stage, where: str, server: str, protocol: str, family: str) -> None:
    """Pods and nodes reach each pod at its own address, on the same node and across."""
    (answer,) = ask(stage.place(where), protocol, pick(stage.pod(server).address, family), runtime.PORT)
    assert answer.get("name") == server, answer


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("where", EVERYWHERE)
def test_ping_between_pods_and_nodes_is_answered(stage: Stage, where: str, family: str) -> None:
    """Echo requests, small and of nearly the path's MTU, reach pods on both nodes."""
    for server in ("web-1", "web-2"):
        for size in ("56", "1300"):
            target = pick(stage.pod(server).address, family)
            stage.place(where).run("ping", "-n", "-c", "2", "-i", "0.05", "-W", "1", "-s", size, target)


@pytest.mark.parametrize("family", FAMILIES)
def test_large_transfer_through_a_service_arrives_whole(stage: Stage, family: str) -> None:
    """A megabyte each way crosses the nodes: segments of every size fit the path."""
    stage.expose("large", addresses.service(16), ["web-2"])
    target = pick(addresses.service(16), family)
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", target)) == {"web-2"})
    script = (
        f"import socket; c = socket.create_connection(({target!r}, {PORT}), 5); c.settimeout(5)\n"
        "c.sendall(b'x' * 1000000 + b'\\n' + b'?\\n' * 10000); seen = 0\n"
        "while seen < 10001: seen += c.recv(1 << 16).count(b'\\n')\n"
    )
    stage.place("ask-1").run("python3", "-I", "-S", "-c", script)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_hairpin_pod_asking_its_own_service_is_answered(stage: Stage, protocol: str, family: str) -> None:
    """A pod that is its Service's only backend gets an answer from itself."""
    stage.expose("hairpin", addresses.service(11), ["web-1"])
    service = pick(addresses.service(11), family)
    wait(lambda: names(ask(stage.place("ask-1"), protocol, service)) == {"web-1"})
    assert names(ask(stage.place("web-1"), protocol, service, count=5)) == {"web-1"}


@pytest.mark.parametrize("where", ["ask-1", "node1"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_service_without_endpoints_refuses_at_once(stage: Stage, protocol: str, family: str, where: str) -> None:
    """A reset or an ICMP error, not silence: the client knows before it would ask again."""
    stage.expose("empty", addresses.service(12), [])
    service = pick(addresses.service(12), family)
    wait(lambda: names(ask(stage.place(where), protocol, service)) == {"ECONNREFUSED"})
    answers = ask(stage.place(where), protocol, service, count=5)
    assert names(answers) == {"ECONNREFUSED"}
    assert max(answer["took_ms"] for answer in answers) < SYN_REPEATED_MS


@pytest.mark.parametrize("where", ["ask-1", "node1"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_port_that_the_service_does_not_have_refuses_at_once(
    stage: Stage, protocol: str, family: str, where: str
) -> None:
    """As the port of a machine on which nobody listens."""
    answers = ask(stage.place(where), protocol, pick(WEB, family), PORT + 1, count=5)
    assert names(answers) == {"ECONNREFUSED"}
    assert max(answer["took_ms"] for answer in answers) < SYN_REPEATED_MS


@pytest.mark.parametrize("where", ["ask-1", "node1"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_address_that_no_service_has_is_silent(stage: Stage, protocol: str, family: str, where: str) -> None:
    """What is sent to it does not leave the node: the default route would lead it out."""
    nobody, node = pick(addresses.service(99), family), stage.node(1)
    wait(lambda: "ranges of Services: 10.96" in node.calico("status"))
    with captured({"node": node.space}, (PORT,)) as seen:
        assert names(ask(stage.place(where), protocol, nobody, timeout_s=0.5)) == {"ETIMEDOUT"}
    assert not [packet for packet in seen["node"] if packet["dst"] == nobody and packet["way"] == "out"]
    assert "no_service" in node.calico("drops")


def test_endpoints_changed_are_followed(stage: Stage) -> None:
    """A backend that is added gets connections, one that is taken away gets none, and the last one's going refuses."""
    service = addresses.service(13)
    for backends in (["web-1"], ["web-1", "web-2"], ["web-2"]):
        stage.expose("changing", service, backends)
        for where in EVERYWHERE:
            wait(
                lambda where=where, backends=backends: (
                    names(  # type: ignore[misc]
                        ask(stage.place(where), "tcp", service.v4, count=20)
                    )
                    == set(backends)
                )
            )
    stage.expose("changing", service, [])
    wait(lambda: names(ask(stage.place("ask-2"), "tcp", service.v4)) == {"ECONNREFUSED"})


@pytest.mark.parametrize("family", FAMILIES)
def test_connected_udp_socket_of_a_host_process_outlives_its_backend(stage: Stage, family: str) -> None:
    """A resolver's, say: when every backend is replaced it hears an error, as from a server that is gone, and is
    answered by the others as soon as it has connected anew. It never waits in vain."""
    name, service = "resolver", addresses.service(18)
    target = pick(service, family)
    stage.expose(name, service, ["web-1"])
    wait(lambda: names(ask(stage.place("node1"), "udp", target)) == {"web-1"})
    with stage.place("node1").start("python3", "-I", "-S", "-c", RESOLVER, target, str(PORT)) as resolver:
        assert resolver.stdout
        assert resolver.stdout.readline() == "web-1\n"
        stage.expose(name, service, ["web-2"])
        assert resolver.stdout.read() == "web-2\n"


# Asks over one socket until somebody else answers; after an error over a new one. A time-out ends it.
RESOLVER = """
import json, socket, sys, time
def connected():
    client = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(2)
    client.connect((sys.argv[1], int(sys.argv[2])))
    return client
client, seen, end = connected(), "", time.monotonic() + 10
while seen != "web-2" and time.monotonic() < end:
    try:
        client.send(b"?\\n")
        name = json.loads(client.recv(2048))["name"]
    except TimeoutError:
        raise
    except OSError:
        client = connected()
        continue
    if name != seen:
        print(name, flush=True)
    seen = name
    time.sleep(0.01)
"""


def test_session_affinity_is_switched_on_and_off(stage: Stage) -> None:
    """Each client keeps one backend, for both families and protocols, as long as its Service says so."""
    service = addresses.service(17)

    def met(where: str, protocol: str, family: str) -> int:
        return len(names(ask(stage.place(where), protocol, pick(service, family), count=20)))

    for affinity, count in (("None", 2), ("ClientIP", 1), ("None", 2)):
        stage.expose("sticky", service, ["web-1", "web-2"], affinity=affinity)
        for client in product(EVERYWHERE, PROTOCOLS, FAMILIES):
            wait(lambda client=client, count=count: met(*client) == count)  # type: ignore[misc]


def test_service_deleted_is_gone_from_the_maps(stage: Stage) -> None:
    """Frontends, slots and backends of a deleted Service leave the maps."""
    before = _entries(stage)
    stage.expose("passing", addresses.service(14), ["web-1", "web-2"])
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", addresses.service(14).v4)) <= {"web-1", "web-2"})
    assert _entries(stage) != before
    stage.source.delete("passing")
    wait(lambda: _entries(stage) == before)


def test_unready_endpoint_gets_nothing(stage: Stage) -> None:
    """Of a Service whose only endpoint is not ready, the client hears a refusal."""
    stage.expose("unready", addresses.service(15), ["web-1"], ready=False)
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", addresses.service(15).v4)) == {"ECONNREFUSED"})


def test_encapsulation_is_used_only_where_asked_for(stage: Stage) -> None:
    """Pods' packets to the other node go through the overlay device with `always`, and as they are otherwise."""
    target = stage.pod("web-2").address
    before = _overlay_packets(stage)
    for address in target:
        ask(stage.place("ask-1"), "tcp", address, runtime.PORT, count=10)
    sent = _overlay_packets(stage) - before
    assert sent >= 60 if stage.kind == "overlay" else sent == 0


def _overlay_packets(stage: Stage) -> int:
    shown = stage.node(1).space.run("ip", "-json", "-s", "link", "show", "calico-vxlan", check=False)
    return int(json.loads(shown.stdout)[0]["stats64"]["tx"]["packets"]) if not shown.returncode else 0


def _entries(stage: Stage) -> list[int]:
    """How many entries each of the Services' maps has, on both nodes."""
    return [
        len(json.loads(node.space.run("bpftool", "-j", "map", "dump", "pinned", f"{MAPS}/{name}").stdout))
        for node in stage.lab.nodes
        for name in ("frontends", "slots", "backends")
    ]


MAPS = f"{PINS}/maps"
