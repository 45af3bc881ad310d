# SPDX-License-Identifier: Apache-2.0
"""Our daemons killed and started again while outside clients keep asking: the data plane does not notice."""

import json
import time

import pytest

from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.lab.runtime import tool
from e2e.tests.outside import EXTERNAL_IP, MODES, NODE_PORT, SERVICES, Outside, target

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

RATE, LASTING, SECONDS = 1000, 20, 8

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
    flags = (address, str(port), "--rate", str(RATE), "--lasting", str(LASTING), "--seconds", str(SECONDS))
    load = outside.client.start(*tool("load", *flags))
    assert load.stdout
    assert load.stdout.readline() == "started\n"
    for _ in range(2):
        time.sleep(1)
        _kill_everything(outside)
        time.sleep(1)
        _start_everything(outside)
    output, complaint = load.communicate(timeout=60)
    report = json.loads(output)
    print(report)
    assert report["asked"] >= 0.9 * RATE * SECONDS, complaint
    assert report["failed"] == {}
    assert report["lasting_failed"] == {}
    assert report["by_name"].keys() == {"web-1", "web-2"}


def _kill_everything(outside: Outside) -> None:
    for node in outside.lab.nodes:
        node.kill(CONTROLLER)
        node.kill(CNI_SERVER)


def _start_everything(outside: Outside) -> None:
    for node in outside.lab.nodes:
        node.start(CONTROLLER)
        node.start(CNI_SERVER)
    for node in outside.lab.nodes:
        node.wait_ready()
