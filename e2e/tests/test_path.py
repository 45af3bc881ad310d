# SPDX-License-Identifier: Apache-2.0
"""What nodes say as routers: packets that a tunnel does not take are their senders' to make smaller, and each node on
the way to a Service's backend is one that traceroute shows."""

import json

import pytest

from e2e.lab import addresses, runtime
from e2e.lab.space import Space
from e2e.tests.outside import MODES, NODE_PORT, SERVICES, Outside, target, transfer
from e2e.tests.stage import FAMILIES, PORT, pick

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

BACKENDS = pytest.mark.parametrize("name", ["far", "host-far"])
MTUS = pytest.mark.parametrize("mtu", [1500, *(pytest.param(mtu, marks=pytest.mark.soak) for mtu in (1280, 9000))])
SMALLEST = {"IPv4": 28 + 1, "IPv6": 48 + 1}


def path(where: Space, *arguments: str | int) -> object:
    return json.loads(where.run(*runtime.tool("path", *map(str, arguments))).stdout)


def forget_paths(outside: Outside) -> None:
    """Has everybody learn the MTUs of paths anew."""
    for space in (outside.client, outside.pod("web-2").space, *(node.space for node in outside.lab.nodes)):
        for family in ("-4", "-6"):
            space.run("ip", family, "route", "flush", "cache")


@MTUS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@BACKENDS
def test_datagrams_of_all_sizes(outside: Outside, name: str, family: str) -> None:
    """Through a NodePort, both ways, from a byte on: all are answered where they may be cut up; where not, those that
    fit, and who sends others hears the MTU from the address to which it talks, or from its own device."""
    address, port = target(outside.node(1), SERVICES[name], NODE_PORT, family)
    span = SMALLEST[family], outside.mtu + 100, 5
    fits = outside.fits
    forget_paths(outside)
    whole = path(outside.client, "sizes", address, port, *span, "--whole")
    assert whole == {
        "answered": [size for size in range(*span) if size <= fits],
        "refused": [size for size in range(*span) if size > fits],
        "lost": [],
        "mtu": fits,
        "said_by": [address] if fits < outside.mtu else [],
    }
    # with what has been learned; without; and the largest first: it comes in fragments that are too big
    for cut in (span, span, (span[1], span[0], -5)):
        assert path(outside.client, "sizes", address, port, *cut)["answered"] == list(range(*cut))
        forget_paths(outside)


@MTUS
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
@BACKENDS
def test_megabytes_through_a_tunnel(outside: Outside, name: str, family: str) -> None:
    """TCP asks for segments as large as its own device's: a host's backend is told by its node that a tunnel takes
    less, and so is the client."""
    forget_paths(outside)
    transfer(outside.client, target(outside.node(1), SERVICES[name], NODE_PORT, family))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_traceroute_shows_the_nodes(outside: Outside, family: str) -> None:
    """From outside and from a pod: the entry node, or the pod's own, and the backend's; then the answer."""
    entry, far = (pick(node.address, family) for node in outside.lab.nodes)
    assert path(outside.client, "hops", *target(outside.node(1), SERVICES["far"], NODE_PORT, family)) == [
        entry,
        far,
        "answer",
    ]
    cluster_ip = pick(addresses.service(SERVICES["far"].number), family)
    assert path(outside.place("ask-1"), "hops", cluster_ip, PORT) == [entry, far, "answer"]
