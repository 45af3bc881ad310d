# SPDX-License-Identifier: Apache-2.0
"""Addresses of the pods' range that nobody has: whoever asks is told at once, and nothing goes round in circles. And
Services' addresses as a client outside sees them."""

import signal
import time
from collections.abc import Callable
from ipaddress import ip_network

import pytest

from e2e.lab import addresses, network, runtime
from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.lab.space import Space
from e2e.lab.taps import captured
from e2e.tests.stage import FAMILIES, PORT, PROTOCOLS, SYN_REPEATED_MS, WEB, Stage, ask, names, pick, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

UNREACHABLE = {"EHOSTUNREACH", "ENETUNREACH"}
# Within one machine the ICMP error is there while connect() still holds the socket: an IPv6 client then learns it by
# the answer to its second SYN (TcpExtLockDroppedIcmps), or to the one after.
AT_ONCE_MS = {"IPv4": SYN_REPEATED_MS, "IPv6": 3 * SYN_REPEATED_MS}
PATIENCE_S = 10
# The CNI server deletes a pod's flows within two seconds.
FLOWS_DELETED_S = 3


@pytest.fixture(params=["directory", "overlay"])
def place(request: pytest.FixtureRequest, _stages: Callable[[str], Stage]) -> Stage:
    """The shared stages with plain routes and with the overlay between nodes."""
    return _stages(request.param)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["ask-1", "ask-2", "node1", "node2"])
def test_address_that_no_pod_has_is_unreachable_at_once(place: Stage, who: str, family: str) -> None:
    """For pods and processes of its node and of the other one; the node sends none of it on."""
    _assert_unreachable(place, place.place(who), family)


@pytest.mark.parametrize("family", FAMILIES)
def test_address_that_no_pod_has_is_unreachable_from_outside(directory_stage: Stage, family: str) -> None:
    """For a client whose network routes pods' addresses to their nodes."""
    stage, client = directory_stage, directory_stage.lab.client
    route = (pick(addresses.pod_ranges(1), family), "via", pick(stage.node(1).address, family), "dev", network.DEVICE)
    client.run("ip", "route", "add", *route)
    try:
        _assert_unreachable(stage, client, family)
    finally:
        client.run("ip", "route", "delete", *route)


@pytest.mark.parametrize("family", FAMILIES)
def test_services_addresses_from_outside(directory_stage: Stage, family: str) -> None:
    """For a client whose network routes them to a node: a port that the Service does not have refuses, an address that
    none has is silent, and the node sends neither on."""
    stage, client = directory_stage, directory_stage.lab.client
    services = str(addresses.SERVICES[FAMILIES.index(family)])
    route = (services, "via", pick(stage.node(1).address, family), "dev", network.DEVICE)
    client.run("ip", "route", "add", *route)
    try:
        with captured({"node": stage.node(1).space}, (PORT, PORT + 1)) as seen:
            for protocol in PROTOCOLS:
                assert names(ask(client, protocol, pick(WEB, family))) <= {"web-1", "web-2"}
                assert names(ask(client, protocol, pick(WEB, family), PORT + 1)) == {"ECONNREFUSED"}
                nobody = pick(addresses.service(99), family)
                assert names(ask(client, protocol, nobody, timeout_s=0.5)) == {"ETIMEDOUT"}
        assert not [packet for packet in seen["node"] if packet["dst"] == nobody and packet["way"] == "out"]
    finally:
        client.run("ip", "route", "delete", *route)


@pytest.mark.parametrize("family", FAMILIES)
def test_pod_that_is_gone_is_unreachable_at_once(directory_stage: Stage, family: str) -> None:
    """The address that a pod had until now, while the node's controller is away."""
    stage, node = directory_stage, directory_stage.node(1)
    pod = node.add_pod("gone")
    node.kill(CONTROLLER)
    try:
        node.remove_pod("gone")
        for who in ("ask-1", "ask-2"):
            (answer,) = ask(stage.place(who), "tcp", pick(pod.address, family), runtime.PORT, timeout_s=PATIENCE_S)
            assert answer.get("error") in UNREACHABLE, who
            assert answer["took_ms"] < AT_ONCE_MS[family]
    finally:
        node.start(CONTROLLER)
        node.wait_ready()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["ask-1", "ask-2", "node2"])
@pytest.mark.parametrize("flows", ["kept", "deleted"])
def test_connection_to_a_pod_that_is_gone_is_reset(place: Stage, flows: str, who: str, family: str) -> None:
    """The pod went without a word: who sends to it, through its Service, hears of it at once, and need not wait for
    TCP's own patience. Also when the CNI server has deleted the pod's flows on its node."""
    stage, node, service = place, place.node(1), addresses.service(30)
    node.add_pod("leaver")
    stage.expose("leaving", service, ["leaver"])
    try:
        asked = stage.place(who), "tcp", pick(service, family)
        wait(lambda: names(ask(*asked)) == {"leaver"})
        if flows == "kept":
            node.kill(CNI_SERVER)
        script = ("python3", "-I", "-S", "-c", TALK, pick(service, family), str(PORT))
        with stage.place(who).start(*script) as talk:
            assert talk.stdout
            assert talk.stdout.readline() == "answered\n"
            node.pods["leaver"].space.run("ip", "link", "set", runtime.INTERFACE, "down")
            node.remove_pod("leaver")
            if flows == "deleted":
                time.sleep(FLOWS_DELETED_S)
            talk.send_signal(signal.SIGUSR1)
            assert talk.stdout.readline() == "ECONNRESET\n"
    finally:
        stage.source.delete("leaving")
        if flows == "kept":
            node.start(CNI_SERVER)
            node.wait_ready()


# Asks once, and after SIGUSR1 again; prints what comes of that.
TALK = """
import errno, signal, socket, sys
talk = socket.create_connection((sys.argv[1], int(sys.argv[2])), 5)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
talk.send(b"?\\n")
talk.recv(2048)
print("answered", flush=True)
signal.sigwait([signal.SIGUSR1])
try:
    talk.send(b"?\\n")
    print(talk.recv(2048), flush=True)
except TimeoutError:
    print("nothing", flush=True)
except OSError as error:
    print(errno.errorcode[error.errno], flush=True)
"""


def _assert_unreachable(stage: Stage, where: Space, family: str) -> None:
    nobody = str(ip_network(pick(addresses.pod_ranges(1), family))[-6])
    with captured({"node": stage.node(1).space}, (runtime.PORT,)) as seen:
        (answer,) = ask(where, "tcp", nobody, runtime.PORT, timeout_s=PATIENCE_S)
    assert answer.get("error") in UNREACHABLE
    assert answer["took_ms"] < AT_ONCE_MS[family]
    assert not [packet for packet in seen["node"] if packet["dst"] == nobody and packet["way"] == "out"]
