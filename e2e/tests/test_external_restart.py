# SPDX-License-Identifier: Apache-2.0
"""Our daemons killed and started again while outside clients keep asking: the data plane does not notice."""

import pytest

from e2e.tests.load import kill_daemons_twice, load
from e2e.tests.outside import EXTERNAL_IP, MODES, NODE_PORT, SERVICES, Outside, target

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SECONDS = 8

# The whole matrix belongs to the soak.
SELECTION = [("l2-direct", "IPv4", NODE_PORT), ("vxlan-entry", "IPv6", NODE_PORT)]
MATRIX = [(mode, family, kind) for mode in MODES for family in ("IPv4", "IPv6") for kind in (NODE_PORT, EXTERNAL_IP)]
ROWS = [*SELECTION, *(pytest.param(*row, marks=pytest.mark.soak) for row in MATRIX if row not in SELECTION)]


@pytest.mark.parametrize(("mode", "family", "kind"), ROWS)
def test_daemons_killed_and_restarted_under_load_from_outside_lose_nothing(
    outside: Outside, family: str, kind: str
) -> None:
    """Of 1,000 new connections a second and 20 lasting ones, half of them handed over, none is refused or reset."""
    address, port = target(outside.node(1), SERVICES["both"], kind, family)
    with load(outside.client, address, port, SECONDS) as answered:
        kill_daemons_twice(outside.lab.nodes)
    assert answered == {"web-1", "web-2"}
