# SPDX-License-Identifier: Apache-2.0
"""Addresses of the pods' range that nobody has: whoever asks is told at once, and nothing goes round in circles."""

from collections.abc import Callable
from ipaddress import ip_network

import pytest

from e2e.lab import addresses, network, runtime
from e2e.lab.node import CONTROLLER
from e2e.lab.space import Space
from e2e.lab.taps import captured
from e2e.tests.stage import FAMILIES, SYN_REPEATED_MS, Stage, ask, pick

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

UNREACHABLE = {"EHOSTUNREACH", "ENETUNREACH"}
# Within one machine the ICMP error is there while connect() still holds the socket: an IPv6 client then learns it by
# the answer to its second SYN (TcpExtLockDroppedIcmps), or to the one after.
AT_ONCE_MS = {"IPv4": SYN_REPEATED_MS, "IPv6": 3 * SYN_REPEATED_MS}
PATIENCE_S = 10


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


def _assert_unreachable(stage: Stage, where: Space, family: str) -> None:
    nobody = str(ip_network(pick(addresses.pod_ranges(1), family))[-6])
    with captured({"node": stage.node(1).space}, (runtime.PORT,)) as seen:
        (answer,) = ask(where, "tcp", nobody, runtime.PORT, timeout_s=PATIENCE_S)
    assert answer.get("error") in UNREACHABLE
    assert answer["took_ms"] < AT_ONCE_MS[family]
    assert not [packet for packet in seen["node"] if packet["dst"] == nobody and packet["way"] == "out"]
