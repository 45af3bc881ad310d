# SPDX-License-Identifier: Apache-2.0
"""Nodes with `xdp: on`: what is in the middle of a flow, or dropped early, is done in the driver, where no capture on
the node sees it; all else as without."""

import json
import os
from collections.abc import Iterator

import pytest

from e2e.lab import runtime
from e2e.lab.cluster import Lab
from e2e.lab.node import CONTROLLER, Node
from e2e.lab.taps import Packet, captured
from e2e.tests.load import load
from e2e.tests.outside import BALANCER_IP, CLIENT, KINDS, NODE_PORT, SERVICES, Outside, drops, target, transfer
from e2e.tests.stage import FAMILIES, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

CLIENT_TTL = 64
QUESTIONS = 100
# What TC may see of a flow, of every packet once in and once out: its ends, and one a second.
FEW = 40


@pytest.fixture(scope="module")
def early() -> Iterator[Outside]:
    """A stage of this module's own, return by the entry node at layer 2: what XDP can do, it does."""
    with Lab(f"test-{os.getpid()}-xdp") as lab:
        stage = Outside(lab, "l2-entry", xdp="on")
        stage.set_up()
        yield stage


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_middle_of_a_flow_passes_in_the_driver(early: Outside, protocol: str, family: str) -> None:
    """Both ways, whole, with the addresses that they would have without."""
    entry, far = early.node(1), early.node(2)
    server = target(entry, SERVICES["far"], NODE_PORT, family)
    hops = {"client": early.client, "entry": entry.space, "far": far.space}
    with captured(hops, (server[1], runtime.PORT)) as seen:
        ask_by_one_socket(early, protocol, server)
    requests, replies = going(seen, "dst", family), going(seen, "src", family)
    assert len(requests["far"]) == len(requests["client"]) >= QUESTIONS
    assert len(replies["client"]) == len(replies["far"]) >= QUESTIONS
    assert len(seen["entry"]) < FEW
    client, pod = pick(CLIENT, family), pick(early.pod("web-2").address, family)
    assert facts(requests["far"], "src", "dst", "dport", "ttl") == {(client, pod, runtime.PORT, CLIENT_TTL - 1)}
    assert facts(replies["client"], "src", "sport", "dst") == {(*server, client)}
    if protocol == "tcp":
        transfer(early.client, server)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_services_are_as_without(early: Outside, kind: str, family: str) -> None:
    """Backends here and there, in pods and on nodes, by either node."""
    for name in ("near", "far", "both", "near-local", "host-near", "host-far"):
        entry, exposed = early.node(1), SERVICES[name]
        for protocol in ("tcp", "udp"):
            answers = ask(early.client, protocol, *target(entry, exposed, kind, family), count=3)
            assert names(answers) <= set(exposed.pods), name
            assert {answer["peer"] for answer in answers} == {pick(CLIENT, family)}


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_denied_ends_in_the_driver(early: Outside, family: str) -> None:
    """Counted, and seen by nobody behind."""
    entry = early.node(1)
    server, client = target(entry, SERVICES["far"], NODE_PORT, family), pick(CLIENT, family)
    entry.calico("deny", "add", client)
    try:
        assert_ends_early(early, entry, server, "denied")
    finally:
        entry.calico("deny", "remove", client)
    assert names(ask(early.client, "tcp", *server)) == {"web-2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_port_that_a_load_balancer_does_not_have_ends_in_the_driver(early: Outside, family: str) -> None:
    """In place of going back to the router."""
    entry = early.node(1)
    address, _ = target(entry, SERVICES["far"], BALANCER_IP, family)
    assert_ends_early(early, entry, (address, 4444), "no_service")


def test_setting_comes_and_goes_under_load(early: Outside) -> None:
    """No connection fails, and what was attached is gone."""
    entry = early.node(1)
    server = target(entry, SERVICES["far"], NODE_PORT, "IPv4")
    assert on_devices(entry) == ["eth0"]
    with load(early.client, *server, 3, rate=200) as answered:
        for value, devices in (("off", []), ("on", ["eth0"])):
            entry.stop(CONTROLLER)
            entry.configure(xdp=value)
            entry.start(CONTROLLER)
            entry.wait_ready()
            wait(lambda devices=devices: on_devices(entry) == devices)  # type: ignore[misc]
    assert answered == {"web-2"}
    checks = json.loads(entry.calico("doctor", "--output", "json"))["checks"]
    (check,) = (one for one in checks if one["name"] == "xdp")
    assert (check["verdict"], check["seen"]) == ("warn", "on eth0, of a veth pair")


def ask_by_one_socket(stage: Outside, protocol: str, server: tuple[str, int]) -> None:
    """Asks question by question, and waits for each answer. Raises LabError: one did not come."""
    family = "AF_INET6" if ":" in server[0] else "AF_INET"
    kind = "SOCK_STREAM" if protocol == "tcp" else "SOCK_DGRAM"
    script = (
        f"import socket; s = socket.socket(socket.{family}, socket.{kind}); s.settimeout(5); s.connect({server!r})\n"
        f"for number in range({QUESTIONS}): s.send(b'%d\\n' % number); s.recv(2000)\n"
    )
    stage.client.run("python3", "-I", "-S", "-c", script)


def assert_ends_early(stage: Outside, entry: Node, server: tuple[str, int], reason: str) -> None:
    """What the client sends is dropped for this reason, and a capture on the node sees none of it."""
    before = drops(entry).get(reason, 0)
    with captured({"client": stage.client, "entry": entry.space}, (server[1],)) as seen:
        for protocol in ("tcp", "udp"):
            (answer,) = ask(stage.client, protocol, *server, timeout_s=0.4)
            assert "name" not in answer
    assert len(seen["client"]) >= 2
    assert seen["entry"] == []
    assert drops(entry)[reason] - before == len(seen["client"])


def going(seen: dict[str, list[Packet]], end: str, family: str) -> dict[str, list[Packet]]:
    """Packets of each hop to servers (`dst`) or from them (`src`)."""
    other = {"dst": "src", "src": "dst"}[end]
    client = pick(CLIENT, family)
    return {hop: [packet for packet in packets if packet[other] == client] for hop, packets in seen.items()}


def facts(packets: list[Packet], *fields: str) -> set[tuple[object, ...]]:
    return {tuple(packet[field] for field in fields) for packet in packets}


def on_devices(node: Node) -> list[str]:
    """Devices with an XDP program in the driver."""
    (found,) = json.loads(node.space.run("bpftool", "-j", "net", "show").stdout)
    return [one["devname"] for one in found["xdp"] if one["mode"] == "driver"]
