# SPDX-License-Identifier: Apache-2.0
"""What pods send out of the cluster leaves under the node's address, and never by a port that another flow has."""

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from e2e.lab import network
from e2e.lab.cluster import Lab
from e2e.lab.node import CNI_SERVER, CONTROLLER, Node
from e2e.lab.runtime import tool
from e2e.lab.space import Space
from e2e.tests.outside import CLIENT, MODES, Outside, drops
from e2e.tests.stage import FAMILIES, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

ECHO_PORT, MANY_PORT = 9100, 9200
FIRST_PORT, PORTS = 10000, 20000
FLOWS = 19_000
RESERVED = "net.ipv4.ip_local_reserved_ports"
MASQ_AGENT_FILE = "/etc/calico-ebpf/ip-masq-agent"


@pytest.fixture
def mode() -> str:
    """It makes no difference to what pods send."""
    return MODES[0]


@pytest.fixture(scope="module")
def servers(_outsides: Callable[[str], Outside]) -> Iterator[None]:
    """Servers outside: one that tells whom it saw, one for very many flows."""
    client = _outsides(MODES[0]).client
    started = [
        client.start(*tool("server", "--name", "outsider", "--port", str(ECHO_PORT))),
        client.start(*tool("many", "serve", str(MANY_PORT))),
    ]
    for process in started:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    yield
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["tcp", "udp", "udp-unconnected"])
def test_pod_asking_outside_is_seen_as_its_node(outside: Outside, protocol: str, family: str) -> None:
    """The outside server sees the node's address and a port of the range; the pod, the server's own."""
    address = pick(CLIENT, family)
    for node in outside.lab.nodes:
        answers = ask(outside.pod(f"ask-{node.index}").space, protocol, address, ECHO_PORT, count=5)
        assert names(answers) == {"outsider"}, answers
        assert {answer["peer"] for answer in answers} == {pick(node.address, family)}
        assert all(FIRST_PORT <= answer["peer_port"] < FIRST_PORT + PORTS for answer in answers)
        assert {answer["believed_peer"] for answer in answers} == {address}


@pytest.mark.parametrize("family", FAMILIES)
def test_pod_pinging_outside_is_answered(outside: Outside, family: str) -> None:
    """Echo requests come back, of two pods of one node at the same time as well."""
    pings = [
        outside.pod(name).space.start("ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", pick(CLIENT, family))
        for name in ("ask-1", "web-1", "ask-2")
    ]
    for ping in pings:
        said, _ = ping.communicate(timeout=10)
        assert ping.returncode == 0, said


@pytest.mark.parametrize("family", FAMILIES)
def test_pod_asking_nodes_and_pods_keeps_its_address(outside: Outside, family: str) -> None:
    """Towards a server on a node's own address, here and there, the pod is seen as itself."""
    known_as = pick(outside.pod("ask-1").address, family)
    for node in outside.lab.nodes:
        server = node.space.start(*tool("server", "--name", node.name, "--port", str(ECHO_PORT)))
        try:
            assert server.stdout
            assert server.stdout.readline() == "ready\n"
            answers = ask(outside.pod("ask-1").space, "tcp", pick(node.address, family), ECHO_PORT)
            assert [(answer.get("name"), answer.get("peer")) for answer in answers] == [(node.name, known_as)]
        finally:
            server.kill()
            server.wait()


@pytest.mark.usefixtures("servers")
def test_range_that_is_not_masqueraded_sees_the_pod(outside: Outside) -> None:
    """Where a node's settings name it, or ip-masq-agent's file as it changes, and pods' addresses are routed back; the
    other node masquerades on."""
    node, pod = outside.node(1), outside.pod("ask-1")
    file = node.space.path(MASQ_AGENT_FILE)

    def seen_as(family: str, protocol: str, name: str = "ask-1") -> set[object]:
        answers = ask(outside.pod(name).space, protocol, pick(CLIENT, family), ECHO_PORT, count=3)
        return {answer.get("peer") for answer in answers}

    try:
        for family in FAMILIES:
            via = pick(node.address, family)
            outside.client.run("ip", "route", "add", pick(pod.address, family), "via", via, "dev", network.DEVICE)
        _set_unmasqueraded(node, [f"{CLIENT.v4}/32"], MASQ_AGENT_FILE)
        assert seen_as("IPv6", "tcp") == {node.address.v6}
        file.write_text(f"nonMasqueradeCIDRs: ['{CLIENT.v6}/128']")
        wait(lambda: seen_as("IPv6", "tcp") == {pod.address.v6})
        for family in FAMILIES:
            for protocol in ("tcp", "udp"):
                assert seen_as(family, protocol) == {pick(pod.address, family)}
                assert seen_as(family, protocol, "ask-2") == {pick(outside.node(2).address, family)}
        file.unlink()
        wait(lambda: seen_as("IPv6", "tcp") == {node.address.v6})
    finally:
        file.unlink(missing_ok=True)
        _set_unmasqueraded(node, [], "")
        for family in FAMILIES:
            outside.client.run("ip", "route", "del", pick(pod.address, family), check=False)


def _set_unmasqueraded(node: Node, ranges: list[str], file: str) -> None:
    node.configure(non_masquerade_cidrs=ranges, ip_masq_agent_file=file)
    node.stop(CONTROLLER)
    node.start(CONTROLLER)
    node.wait_ready()


@pytest.mark.usefixtures("servers")
def test_host_asking_outside_has_ports_beside_the_range_that_nobody_guesses(outside: Outside) -> None:
    """The host's own sockets are given other ports, so that neither takes the other's answers, and as varied ones as
    without us: who forges a resolver's answers must not know its port."""
    answers = ask(outside.node(1).space, "udp", CLIENT.v4, ECHO_PORT, count=300)
    assert names(answers) == {"outsider"}
    ports = Counter(answer["peer_port"] for answer in answers)
    assert not any(FIRST_PORT <= port < FIRST_PORT + PORTS for port in ports)
    # of 28,232; five of 300 at one port are seen once in thirty million runs
    assert ports.most_common(1)[0][1] < 5


@pytest.mark.usefixtures("servers")
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_nineteen_thousand_flows_to_one_address_and_port_all_stand(outside: Outside, protocol: str) -> None:
    """None hangs, and each is answered once more when all stand; past exhaustion each refusal is counted.

    The host's own connections to that address are answered meanwhile, those from ports of the range as well.
    """
    node, held, extra = outside.node(1), 50, 1500
    own = _ask_many(node.space, protocol, held, first_port=FIRST_PORT + 5000)
    assert _line(own) | {"slowest_ms": 0} == _all_answered(held)
    halves = [_ask_many(outside.pod(name).space, protocol, FLOWS // 2) for name in ("ask-1", "web-1")]
    try:
        for half in halves:
            report = _line(half)
            print(report)
            assert report | {"slowest_ms": 0} == _all_answered(FLOWS // 2)
            assert report["slowest_ms"] < 1000
        before = drops(node).get("ports_exhausted", 0)
        rest = _ask_many(outside.pod("ask-1").space, protocol, extra, timeout_s=0.8)
        past = _line(rest)
        print(past)
        refused = drops(node).get("ports_exhausted", 0) - before
        assert past["answered"] <= PORTS - FLOWS - held
        assert past["answered"] + past["silent"] == extra
        assert refused == past["silent"] > 0
        host = _ask_many(node.space, protocol, 500)
        assert _line(host) | {"slowest_ms": 0} == _all_answered(500)
        for process in (own, *halves, host):
            process.send_signal(signal.SIGUSR1)
        assert [_line(one)["answered"] for one in (own, *halves, host)] == [held, FLOWS // 2, FLOWS // 2, 500]
        rest.kill()
    finally:
        for process in (own, *halves):
            process.kill()
            process.wait()


def test_ports_of_the_range_are_reserved_beside_what_was_there(fresh: Lab) -> None:
    """Other entries of ip_local_reserved_ports are kept, and `uninstall` leaves what it found."""
    services = fresh.directory_source()
    node = fresh.add_node()
    node.space.run("sysctl", "-qw", f"{RESERVED}=1234,12000-12001")
    fresh.bring_up([node], services)
    assert _reserved(node) == {1234, *range(30000, 32768), *range(FIRST_PORT, FIRST_PORT + PORTS)}
    for daemon in (CONTROLLER, CNI_SERVER):
        node.stop(daemon)
    node.calico("uninstall", "--yes")
    assert _reserved(node) == {1234, 12000, 12001}


def _ask_many(
    where: Space, protocol: str, count: int, timeout_s: float = 5, first_port: int = 0
) -> "subprocess.Popen[str]":
    flags = ("--count", str(count), "--timeout", str(timeout_s), "--first-port", str(first_port))
    return where.start(*tool("many", "ask", protocol, CLIENT.v4, str(MANY_PORT), *flags))


def _line(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    report: dict[str, Any] = json.loads(line)
    return report


def _all_answered(count: int) -> dict[str, Any]:
    return {"answered": count, "silent": 0, "failed": {}, "slowest_ms": 0}


def _reserved(node: Node) -> set[int]:
    ports: set[int] = set()
    for part in node.space.run("sysctl", "-n", RESERVED).stdout.strip().split(","):
        first, _, last = part.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports
