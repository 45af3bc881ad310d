# SPDX-License-Identifier: Apache-2.0
"""loadBalancerSourceRanges as clients meet them: outside, in pods, and on nodes."""

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.addresses import BALANCER, EXTERNAL, Dual
from e2e.lab.space import Space
from e2e.tests.outside import BALANCER_IP, CLIENT, EXTERNAL_IP, NODE_PORT, Exposed, Outside, service_addresses, target
from e2e.tests.stage import FAMILIES, PORT, ask, names, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

# The way back by the backend's node has that node see the load balancer's address again.
MODES = pytest.mark.parametrize("mode", ["l2-entry", "vxlan-direct"])
GUARDED = Exposed(41, ["web-1", "web-2"], "Cluster")
WHO = ("client", "ask-1", "node1")


@MODES
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("allowed", WHO)
def test_load_balancer_address_is_for_its_ranges_alone(outside: Outside, allowed: str, family: str) -> None:
    """Everybody else waits in vain there, and is served at the NodePort and the external IP."""
    guard(outside, address_of(outside, allowed))
    for who in WHO:
        expected = {"web-1", "web-2"} if who == allowed else {"ETIMEDOUT"}
        wait(lambda who=who, expected=expected: asked(outside, who, BALANCER_IP, family) <= expected)  # type: ignore[misc]
        for kind in (NODE_PORT, EXTERNAL_IP):
            assert asked(outside, who, kind, family) <= {"web-1", "web-2"}


def guard(outside: Outside, allowed: Dual) -> None:
    """Makes the Service, with a load balancer's addresses for one client of each family."""
    reached = source.reached_from_outside(
        source.service("guarded", addresses.service(GUARDED.number), PORT, runtime.PORT),
        GUARDED.node_port,
        service_addresses(EXTERNAL, GUARDED.number),
        service_addresses(BALANCER, GUARDED.number),
    )
    reached["spec"]["loadBalancerSourceRanges"] = [f"{allowed.v4}/32", f" {allowed.v6}/128"]
    backends = [(outside.pod(pod).address, outside.pod(pod).node.name) for pod in GUARDED.pods]
    outside.source.apply("guarded", [reached, *source.endpoints("guarded", backends, runtime.PORT)])


def asked(outside: Outside, who: str, kind: str, family: str) -> set[str]:
    """Who answers, of several times, in TCP and UDP."""
    address, port = target(outside.node(1), GUARDED, kind, family)
    found = (ask(place(outside, who), protocol, address, port, count=2, timeout_s=0.4) for protocol in ("tcp", "udp"))
    return {name for answers in found for name in names(answers)}


def place(outside: Outside, who: str) -> Space:
    return outside.client if who == "client" else outside.place(who)


def address_of(outside: Outside, who: str) -> Dual:
    if who == "client":
        return CLIENT
    return outside.node(1).address if who == "node1" else outside.pod(who).address
