# SPDX-License-Identifier: Apache-2.0
"""conf/base/daemonset.yaml agrees with the code that it starts."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.health import PROBES_ADDRESS

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def containers() -> dict[str, dict[str, Any]]:
    """Those of the pod, by name."""
    spec = yaml.safe_load((CONF / "base/daemonset.yaml").read_text())["spec"]["template"]["spec"]
    return {container["name"]: container for container in spec["containers"]}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_controller_is_probed_where_it_alone_answers(containers: dict[str, dict[str, Any]], probe: str) -> None:
    """Not at kube-proxy's address, whose answer would be kube-proxy's where both run."""
    asked = containers["controller"][probe]["httpGet"]
    assert f"{asked['host']}:{asked['port']}" == PROBES_ADDRESS
