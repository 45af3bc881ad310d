# SPDX-License-Identifier: Apache-2.0
"""Services reached at their external addresses: every way in, every way back, and the client's address kept."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from e2e.lab import runtime
from e2e.lab.network import DEVICE
from e2e.lab.node import CONTROLLER, Node
from e2e.lab.space import Space
from e2e.lab.taps import Packet, captured
from e2e.tests.load import load
from e2e.tests.outside import (
    CLIENT,
    EXTERNAL_IP,
    KINDS,
    MODES,
    NODE_PORT,
    SERVICES,
    Exposed,
    Outside,
    counter,
    drops,
    target,
    transfer,
)
from e2e.tests.stage import FAMILIES, ONE_SYN_S, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

HANDOVER_VNI = 207
CLIENT_TTL = 64


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("protocol", "family", "kind"),
    [("tcp", "IPv4", NODE_PORT), ("udp", "IPv6", NODE_PORT), ("tcp", "IPv6", EXTERNAL_IP)],
)
def test_packets_of_a_remote_backend_wear_the_headers_of_their_mode(
    outside: Outside, protocol: str, family: str, kind: str
) -> None:
    """Handed over once, and answered by the way that is set: through the entry node, or past it.

    With direct return, the backend's node answers with the address and port that the client talked to, and the entry
    node sees none of it; through the entry node, it sees all of it, and the client gets nothing from anybody else.
    """
    entry, far = outside.node(1), outside.node(2)
    address, port = target(entry, SERVICES["far"], kind, family)
    hops = {"entry": entry.space, "far": far.space, "client": outside.client}
    with captured(hops, (port, runtime.PORT)) as seen:
        (answer,) = ask(outside.client, protocol, address, port)
    assert answer.get("name") == "web-2", answer
    requests, replies = _both_ways(seen, answer["peer_port"])
    pod, talked_to = (pick(outside.pod("web-2").address, family), runtime.PORT), (address, port)
    direct = outside.way_back == "direct"
    _assert_handed_over(outside, requests, family, talked_to if direct else pod)
    assert _sources(replies["client"]) == {talked_to}
    if direct:
        assert replies["entry"] == []
        assert _sources(replies["far"]) == {talked_to}
        assert _seen(replies["client"], "src_mac") == {_mac(far.space)}
        assert not any("outer" in packet for packet in replies["far"])
    else:
        handed_back, sent = (_going(replies["entry"], way) for way in ("in", "out"))
        assert _sources(handed_back) == _sources(replies["far"]) == {pod}
        assert _sources(sent) == {talked_to}
        assert len(handed_back) == len(sent) == len(replies["far"]) == len(replies["client"])
        assert _seen(replies["client"], "src_mac") == {_mac(entry.space)}
        _assert_carried(outside, handed_back, far, entry, family)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_service_says_itself_how_its_answers_return(outside: Outside, family: str) -> None:
    """Its annotation counts where the nodes' setting is another, and changes under load: what has begun goes on."""
    entry, exposed = outside.node(1), Exposed(35, ["web-2"], "Cluster")
    at = target(entry, exposed, NODE_PORT, family)

    def answers_pass_by_the_entry_node() -> bool:
        with captured({"entry": entry.space}, (at[1], runtime.PORT)) as seen:
            assert names(ask(outside.client, "tcp", *at)) == {"web-2"}
        return any(packet["dst"] == pick(CLIENT, family) for packet in seen["entry"])

    try:
        outside.expose_outside("says", exposed)
        wait(lambda: names(ask(outside.client, "tcp", *at)) == {"web-2"})
        assert answers_pass_by_the_entry_node() == (outside.way_back == "entry")
        with load(outside.client, *at, 3, rate=300) as answered:
            for way_back in ("entry", "direct") * 4:
                outside.expose_outside("says", exposed, way_back=way_back)
                time.sleep(0.3)
        assert answered == {"web-2"}
        for way_back in ("entry", "direct"):
            outside.expose_outside("says", exposed, way_back=way_back)
            wait(lambda wanted=way_back == "entry": answers_pass_by_the_entry_node() == wanted)  # type: ignore[misc]
    finally:
        outside.source.delete("says")


def _assert_handed_over(outside: Outside, requests: dict[str, list[Packet]], family: str, to: tuple[str, int]) -> None:
    """What the client sent, the backend's node gets once each, from the entry node, the client's address untouched."""
    entry, far = outside.node(1), outside.node(2)
    sent, got = _going(requests["entry"], "out"), requests["far"]
    assert len(requests["client"]) == len(_going(requests["entry"], "in")) == len(sent) == len(got) > 0
    assert _seen(got, "src") == {pick(CLIENT, family)}
    assert {(packet["dst"], packet["dport"]) for packet in got} == {to}
    assert _seen(got, "way") == {"in"}
    assert _seen(got, "ttl") == {CLIENT_TTL - 1}
    _assert_carried(outside, got, entry, far, family)


def _assert_carried(outside: Outside, packets: list[Packet], sender: Node, receiver: Node, family: str) -> None:
    """From one node to the other as the mode says: with its MAC alone, or in the tunnel."""
    if outside.handover == "l2":
        assert {(packet["src_mac"], packet["dst_mac"]) for packet in packets} == {
            (_mac(sender.space), _mac(receiver.space))
        }
        assert not any("outer" in packet for packet in packets)
    else:
        ends = {(packet["outer"]["src"], packet["outer"]["dst"], packet["outer"]["vni"]) for packet in packets}
        assert ends == {(pick(sender.address, family), pick(receiver.address, family), HANDOVER_VNI)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_large_transfer_from_outside_to_a_remote_backend_arrives_whole(outside: Outside, family: str) -> None:
    """A megabyte each way: what is handed over fits the path, and so do the answers."""
    transfer(outside.client, target(outside.node(1), SERVICES["far"], NODE_PORT, family))


@pytest.mark.parametrize("mode", MODES)
def test_policy_local_without_local_endpoint_drops_what_comes_from_outside(outside: Outside) -> None:
    """Silence, and a count of the reason; the node itself and its pods go on being served."""
    entry = outside.node(1)
    address, port = target(entry, SERVICES["far-local"], NODE_PORT, "IPv4")
    before = drops(entry).get("no_local_backend", 0)
    process = outside.client.run(*runtime.tool("ask", "udp", address, str(port), "--timeout", "0.3", "--count", "3"))
    assert names(json.loads(line) for line in process.stdout.splitlines()) == {"ETIMEDOUT"}
    assert drops(entry)["no_local_backend"] - before == 3
    assert names(ask(entry.space, "tcp", address, port)) == {"web-2"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_service_without_endpoints_refuses_the_outside_client(outside: Outside, family: str) -> None:
    """The client is told at once, by every kind of address."""
    exposed = Exposed(30, [], "Cluster")
    outside.expose_outside("outside-empty", exposed)
    try:
        for kind in KINDS:
            address, port = target(outside.node(1), exposed, kind, family)
            for protocol in ("tcp", "udp"):
                wait(lambda a=address, p=port, how=protocol: names(ask(outside.client, how, a, p)) == {"ECONNREFUSED"})  # type: ignore[misc]
    finally:
        outside.source.delete("outside-empty")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_handed_to_a_node_whose_backend_is_gone_waits_until_the_entry_node_knows(outside: Outside, family: str) -> None:
    """The other node knows that the pod is gone: it drops, counts, and sends no frame on. The entry node leads who asks
    again to the backend that is left, once it has heard."""
    entry, far = outside.node(1), outside.node(2)
    with _backend_gone(outside, family) as exposed:
        address, port = target(entry, exposed, NODE_PORT, family)
        before = drops(far).get("no_local_backend", 0)
        hops = {"entry": entry.space, "far": far.space}
        with captured(hops, (port, runtime.PORT)) as seen:
            answers = ask(outside.client, "tcp", address, port, count=20, timeout_s=ONE_SYN_S)
        dropped = [answer for answer in answers if answer.get("error") == "ETIMEDOUT"]
        assert names(answers) == {"web-1", "ETIMEDOUT"}
        assert drops(far)["no_local_backend"] - before == len(dropped)
        at_far = [packet for packet in seen["far"] if packet["flags"] == "S"]
        assert len(at_far) == len({packet["sport"] for packet in at_far}) == len(dropped)
        assert _seen(at_far, "way") == {"in"}
        for packet in at_far:
            passed = [one["way"] for one in seen["entry"] if one["flags"] == "S" and one["sport"] == packet["sport"]]
            assert sorted(passed) == ["in", "out"]
        asked = runtime.tool("ask", "tcp", address, str(port), "--timeout", "20")
        waiting = []

        def one_is_dropped() -> bool:
            waiting.append(outside.client.start(*asked))
            return drops(far)["no_local_backend"] - before > len(dropped)

        wait(one_is_dropped)
        entry.start(CONTROLLER)
        entry.wait_ready()
        assert names(json.loads(process.communicate(timeout=30)[0]) for process in waiting) == {"web-1"}


@contextmanager
def _backend_gone(outside: Outside, family: str) -> Iterator[Exposed]:
    """A Service of two backends, one of which is gone: node2 knows, node1, whose controller is away, does not."""
    entry, far = outside.node(1), outside.node(2)
    exposed = Exposed(31, ["web-1", "leaver"], "Cluster")
    far.add_pod("leaver")
    by_entry, by_far = (target(node, exposed, NODE_PORT, family) for node in (entry, far))
    try:
        outside.expose_outside("leaving", exposed)
        wait(lambda: names(ask(outside.client, "tcp", *by_entry, count=20)) == {"web-1", "leaver"})
        wait(lambda: names(ask(outside.client, "tcp", *by_far, count=20)) == {"web-1", "leaver"})
        entry.kill(CONTROLLER)
        outside.expose_outside("leaving", exposed, ["web-1"])
        wait(lambda: names(ask(outside.client, "tcp", *by_far, count=20)) == {"web-1"})
        far.remove_pod("leaver")
        yield exposed
    finally:
        if "leaver" in far.pods:
            far.remove_pod("leaver")
        if not entry.runs(CONTROLLER):
            entry.start(CONTROLLER)
            entry.wait_ready()
        outside.source.delete("leaving")


@pytest.mark.parametrize("mode", MODES[:1])
@pytest.mark.parametrize(
    ("protocol", "family"), [("tcp", "IPv4"), ("udp", "IPv4"), ("udp-unconnected", "IPv4"), ("tcp", "IPv6")]
)
@pytest.mark.parametrize("name", ["near", "far", "far-local"])
def test_nodeport_over_the_loopback_address_serves_host_processes(
    outside: Outside, name: str, protocol: str, family: str
) -> None:
    """127.0.0.1 and ::1 are addresses of the node for its own processes, backend here or on the other node."""
    node = outside.node(1)
    loopback = "::1" if family == "IPv6" else "127.0.0.1"
    answers = ask(node.space, protocol, loopback, SERVICES[name].node_port, count=3)
    assert names(answers) == set(SERVICES[name].pods), answers


@pytest.mark.parametrize("mode", MODES)
def test_handover_is_counted_once_for_each_flow(outside: Outside) -> None:
    """Ten connections to a remote backend are ten flows handed over, by the entry node."""
    entry = outside.node(1)
    before = counter(entry, "handed_over")
    ask(outside.client, "tcp", *target(entry, SERVICES["far"], NODE_PORT, "IPv4"), count=10)
    assert counter(entry, "handed_over") - before == 10
    ask(outside.client, "tcp", *target(entry, SERVICES["near"], NODE_PORT, "IPv4"), count=10)
    assert counter(entry, "handed_over") - before == 10


@pytest.mark.parametrize("mode", MODES)
def test_flows_tell_entry_node_backend_and_way_back(outside: Outside) -> None:
    """`calico-ebpf flows` says on the entry node where a flow went, and on the backend's node where it came in."""
    entry, far = outside.node(1), outside.node(2)
    (answer,) = ask(outside.client, "tcp", *target(entry, SERVICES["far"], NODE_PORT, "IPv4"))
    here, there = (_flow(node, f"{CLIENT.v4}:{answer['peer_port']}") for node in (entry, far))
    pod = f"{outside.pod('web-2').address.v4}:{runtime.PORT}"
    direct = outside.way_back == "direct"
    assert here["entry"] == "this node"
    assert far.address.v4 in here["handed_to"]
    assert here["way_back"] == ("direct" if direct else "this node")
    assert there["entry"] == entry.address.v4
    assert there["backend"] == pod
    assert there["way_back"] == ("direct" if direct else entry.address.v4)


def _flow(node: Node, source: str) -> dict[str, Any]:
    """The last one from there: the port may have been another connection's a moment ago."""
    port = source.rpartition(":")[2]
    found = json.loads(node.calico("flows", "--output", "json", "--port", port))
    return dict(next(one for one in found if one["source"] == source))


def _both_ways(
    seen: dict[str, list[Packet]], client_port: int
) -> tuple[dict[str, list[Packet]], dict[str, list[Packet]]]:
    """By hop, what came from the client's port and what went to it."""
    requests = {hop: [one for one in packets if one["sport"] == client_port] for hop, packets in seen.items()}
    replies = {hop: [one for one in packets if one["dport"] == client_port] for hop, packets in seen.items()}
    return requests, replies


def _going(packets: list[Packet], way: str) -> list[Packet]:
    return [packet for packet in packets if packet["way"] == way]


def _sources(packets: list[Packet]) -> set[tuple[str, int]]:
    return {(packet["src"], packet["sport"]) for packet in packets}


def _seen(packets: list[Packet], field: str) -> set[Any]:
    return {packet[field] for packet in packets}


def _mac(space: Space) -> str:
    (link,) = json.loads(space.run("ip", "-json", "link", "show", DEVICE).stdout)
    return str(link["address"])
