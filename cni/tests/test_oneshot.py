# SPDX-License-Identifier: Apache-2.0
"""The one-shot process imports little, for its start is most of its time."""

import json
import subprocess
import sys

HEAVY = {"click", "kubernetes", "msgspec", "prometheus_client", "pyroute2", "rich", "structlog", "yaml"}


def test_imports_of_oneshot_leave_out_the_heavy_ones() -> None:
    """None of the packages that other commands need is imported: not a stopwatch, but a list."""
    program = "import json, sys, cni.oneshot; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(process.stdout))
