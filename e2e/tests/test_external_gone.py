# SPDX-License-Identifier: Apache-2.0
"""What an outside client sends for something that is gone: it ends at the first node that knows, and is counted there.

A Service that the backend's node knows to be deleted and the entry node does not; a pod that was killed under a
client's connection.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from e2e.lab import runtime
from e2e.lab.node import CNI_SERVER, CONTROLLER, Node
from e2e.lab.taps import Packet, captured
from e2e.tests.outside import CLIENT, MODES, NODE_PORT, Exposed, Outside, drops, target
from e2e.tests.stage import FAMILIES, ONE_SYN_S, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

PACKETS = 5

# Asks once, and after SIGUSR1 goes on sending, whether or not anybody is there, until it is reset.
TALK = f"""
import signal, socket, sys, time
kind, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
talk = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, getattr(socket, kind))
talk.connect((address, port))
if kind == "SOCK_STREAM":
    talk.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
talk.send(b"?\\n")
talk.recv(2048)
print("answered", flush=True)
signal.sigwait([signal.SIGUSR1])
try:
    for _ in range({PACKETS}):
        talk.send(b"?\\n")
        time.sleep(0.05)
    print("sent", flush=True)
except ConnectionResetError:
    print("reset", flush=True)
"""
KINDS = {"tcp": "SOCK_STREAM", "udp": "SOCK_DGRAM"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_service_that_is_gone_where_it_is_handed_to_ends_there(outside: Outside, protocol: str, family: str) -> None:
    """The entry node does not know yet, and hands over; the other drops, counts, and sends nothing on."""
    entry, far = outside.node(1), outside.node(2)
    with _service_gone(outside, family) as exposed:
        address, port = target(entry, exposed, NODE_PORT, family)
        before = drops(far).get("no_local_backend", 0)
        with captured({"entry": entry.space, "far": far.space}, (port, runtime.PORT)) as seen:
            assert names(ask(outside.client, protocol, address, port, timeout_s=ONE_SYN_S)) == {"ETIMEDOUT"}
        assert drops(far)["no_local_backend"] - before == 1
        at_far, at_entry = (_of_the_client(seen[hop], family) for hop in ("far", "entry"))
        assert [packet["way"] for packet in at_far] == ["in"]
        assert [packet["way"] for packet in at_entry] == ["in", "out"]


@contextmanager
def _service_gone(outside: Outside, family: str) -> Iterator[Exposed]:
    """A Service with one backend, on node2, both gone: node2 knows, node1, whose controller is away, does not."""
    entry, far = outside.node(1), outside.node(2)
    exposed = Exposed(32, ["leaver"], "Cluster")
    by_far = target(far, exposed, NODE_PORT, family)
    with _leaver(outside, exposed):
        entry.kill(CONTROLLER)
        try:
            outside.source.apply("leaving", [])
            far.remove_pod("leaver")
            wait(lambda: names(ask(outside.client, "tcp", *by_far)) == {"ECONNREFUSED"})
            yield exposed
        finally:
            entry.start(CONTROLLER)
            entry.wait_ready()


@contextmanager
def _leaver(outside: Outside, exposed: Exposed) -> Iterator[None]:
    """A pod `leaver` on node2, and its Service, in force on both nodes; the pod may be gone at the end."""
    far = outside.node(2)
    far.add_pod("leaver")
    try:
        outside.expose_outside("leaving", exposed)
        for node in outside.lab.nodes:
            for family in FAMILIES:
                at = target(node, exposed, NODE_PORT, family)
                wait(lambda to=at: names(ask(outside.client, "tcp", *to)) == {"leaver"})  # type: ignore[misc]
        yield
    finally:
        outside.source.delete("leaving")
        if "leaver" in far.pods:
            far.remove_pod("leaver")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("protocol", "family"), [("tcp", "IPv4"), ("udp", "IPv6")])
@pytest.mark.parametrize("entry", [1, 2], ids=["handed-over", "local"])
def test_flow_to_a_pod_that_was_killed_ends_at_its_node(
    outside: Outside, entry: int, protocol: str, family: str
) -> None:
    """Its packets go on coming, while the CNI server, which deletes a pod's flows, is away: each is counted, and a
    connection is reset by the first."""
    far, exposed = outside.node(2), Exposed(33, ["leaver"], "Cluster")
    with _leaver(outside, exposed):
        address, port = target(outside.node(entry), exposed, NODE_PORT, family)
        far.kill(CNI_SERVER)
        try:
            talk = outside.client.start("python3", "-I", "-S", "-c", TALK, KINDS[protocol], address, str(port))
            assert talk.stdout
            assert talk.stdout.readline() == "answered\n"
            _kill_without_a_word(far, "leaver")
            before = drops(far).get("no_pod", 0)
            with captured({"far": far.space}, (port, runtime.PORT)) as seen:
                talk.send_signal(signal.SIGUSR1)
                assert talk.stdout.readline() == ("reset\n" if protocol == "tcp" else "sent\n")
            sent = _of_the_client(seen["far"], family)
            assert len(sent) >= (1 if protocol == "tcp" else PACKETS)
            assert {packet["way"] for packet in sent} == {"in"}
            assert drops(far)["no_pod"] - before >= len(sent)
        finally:
            far.start(CNI_SERVER)
            far.wait_ready()


def _kill_without_a_word(node: Node, name: str) -> None:
    """Takes a pod away without a FIN or RST of its own: its client does not know."""
    node.pods[name].space.run("ip", "link", "set", runtime.INTERFACE, "down")
    node.remove_pod(name)


def _of_the_client(packets: list[Packet], family: str) -> list[Packet]:
    return [packet for packet in packets if packet["src"] == pick(CLIENT, family)]
