# SPDX-License-Identifier: Apache-2.0
"""Which of the kernel's words wake the controller, in a network namespace of the test's own."""

import socket
from collections.abc import Callable, Iterator

import pytest

from controller import monitor
from controller.tests.space import Space

pytestmark = pytest.mark.root

POD_LINK = "ce0123456789a"


def heard(space: Space, action: Callable[[], object]) -> tuple[int, bool]:
    """How many words the kernel said there of an action, and whether one of them matters."""
    with space.run(monitor.opened) as netlink:
        action()
        found: list[tuple[int, bytes]] = []
        while True:
            try:
                found += monitor.messages(netlink.recv(65536, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return len(found), any(monitor.matters(kind, body) for kind, body in found)


@pytest.fixture
def space() -> Iterator[Space]:
    made = Space()
    yield made
    made.close()


@pytest.fixture
def pod() -> Iterator[Space]:
    made = Space()
    yield made
    made.close()


def test_pod_link_comes_and_goes_unheard(space: Space, pod: Space) -> None:
    """Made as the CNI plugin does: each end has its name, and its network namespace, from the beginning."""
    for action in (
        f"link add {POD_LINK} type veth peer name eth0 netns {pod.path}",
        f"link set {POD_LINK} addrgenmode none up",
        f"route add 10.244.0.5/32 dev {POD_LINK} proto 206",
        f"-6 route add fd00:10:244::5/128 dev {POD_LINK} proto 206",
        f"link del {POD_LINK}",
    ):
        count, matters = heard(space, lambda command=action: space.ip(command))  # type: ignore[misc]
        assert count, action
        assert not matters, action


@pytest.mark.parametrize("name", ["eth0", "veth0", "vethcafe", "ceph-storage0", "calico-vxlan"])
def test_any_other_device_is_heard(space: Space, pod: Space, name: str) -> None:
    """An underlay may well be a veth with a name of the kernel's."""
    for action in (
        f"link add {name} type veth peer name far0 netns {pod.path}",
        f"link set {name} up",
        f"link del {name}",
    ):
        assert heard(space, lambda command=action: space.ip(command))[1], action  # type: ignore[misc]
