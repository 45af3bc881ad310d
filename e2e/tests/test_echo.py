# SPDX-License-Identifier: Apache-2.0
"""Ping at a load balancer's address, which no device has."""

import pytest

from e2e.tests.outside import BALANCER_IP, MODES, SERVICES, Outside, target
from e2e.tests.stage import FAMILIES

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]


@pytest.mark.parametrize("mode", MODES[:1])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["near", "far", "far-local"])
def test_ping_is_answered_by_whichever_node_it_comes_to(outside: Outside, name: str, family: str) -> None:
    """To clients outside, pods and host processes, wherever the backends are: three requests, three answers."""
    for node in outside.lab.nodes:
        address, _ = target(node, SERVICES[name], BALANCER_IP, family)
        for where in (outside.client, outside.pod(f"ask-{node.index}").space, node.space):
            said = where.run("ping", "-c", "3", "-i", "0.05", "-W", "2", address).stdout
            assert f"bytes from {address}" in said
            assert "3 packets transmitted, 3 received, 0% packet loss" in said
