# SPDX-License-Identifier: Apache-2.0
"""How long `kubectl apply` takes to make two bare nodes ready: image there, everything else to be installed.

The slowest of the turns is stated; each is a cluster of its own.
"""

import os
import time

from e2e.bench.outcome import OURS, Outcome, Series
from e2e.bench.tool import BenchError
from e2e.lab import real
from e2e.lab.cluster import Lab
from e2e.lab.machine import BareMachine
from e2e.manifests import INSTALL

TITLE = "From kubectl apply to nodes that are ready"
TURNS, NODES = 3, 2
LIMIT_S = 30


def run() -> Outcome:
    """Raises LabError, BenchError."""
    outcome = Outcome(TITLE)
    took = Series("ready", "s")
    for _ in range(TURNS):
        took.add(OURS, [[_turn()]])
    outcome.series.append(took)
    outcome.state("slowest", "s", max(value for turn in took.samples[OURS] for value in turn), bar=LIMIT_S)
    return outcome


def _turn() -> float:
    with Lab(f"bench-{os.getpid()}-install") as lab:
        cluster = real.start(lab, NODES, kind=BareMachine)
        if "NotReady" not in cluster.kubectl("get", "nodes"):
            raise BenchError("the nodes are ready before anything is installed")
        began = time.monotonic()
        cluster.kubectl("apply", "-f", str(INSTALL))
        cluster.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=120s")
        return time.monotonic() - began
