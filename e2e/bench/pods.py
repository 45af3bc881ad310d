# SPDX-License-Identifier: Apache-2.0
"""200 pods started at once on two nodes of a real cluster, and removed: ours against ptp with host-local, IPv4 pods.

Each turn has a cluster of its own, made anew. What a pod's network took is containerd's own figure: its histogram of
the whole set-up, the waiting for a processor included, which 200 starting containers do all the time.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from typing import ClassVar

from e2e.bench import machine, rounds
from e2e.bench.contenders import Ours, Reference, ReferenceNode
from e2e.bench.lab import make_wire
from e2e.bench.outcome import Outcome, Series
from e2e.bench.tool import BenchError
from e2e.lab import images, real
from e2e.lab.cluster import Lab
from e2e.lab.machine import KUBELET, METRICS_PORT, Machine
from e2e.lab.real import Cluster

TITLE = "200 pods started at once on two nodes"
PODS, NODES = 200, 2
ROUNDS = 1
TIMEOUT_S = 300

RUNNING, GONE = "all run", "all gone"
SET_UP, TEAR_DOWN = "network set-up of a pod, containerd's mean", "network tear-down of a pod, containerd's mean"
OPERATIONS = {SET_UP: "set_up_pod", TEAR_DOWN: "tear_down_pod"}
# Releases of containerd have named it with one `_seconds` or two.
METRIC = r'network_plugin_operations_duration_seconds(?:_seconds)?_{part}{{operation_type="{operation}"}} (\S+)'


class ReferenceMachine(ReferenceNode, Machine):
    """A machine with the reference plugins, and none of our daemons."""

    daemons: ClassVar[tuple[str, ...]] = (KUBELET,)

    def install(self, settings: Mapping[str, object]) -> None:
        del settings
        self.install_plugins()

    def _is_ready(self) -> bool:
        return True


def run() -> Outcome:
    """Raises LabError, BenchError."""
    ours, reference = Ours(), Reference()
    outcome = Outcome(TITLE)
    series = {name: Series(name, "s") for name in (RUNNING, GONE)}
    series |= {name: Series(name, "ms") for name in OPERATIONS}
    turns = {ours.name: lambda: _turn(Machine), reference.name: lambda: _turn(ReferenceMachine)}
    rounds.play(turns, series, ROUNDS, 0)
    outcome.versions = ours.versions() | reference.versions() | {"containerd": machine.package("containerd")}
    outcome.series = list(series.values())
    for one in outcome.series:
        outcome.compare(one, reference.name)
    return outcome


def _turn(kind: type[Machine]) -> dict[str, list[float]]:
    """One cluster: what its pods took."""
    with Lab(f"bench-{os.getpid()}-pods") as lab:
        make_wire(lab.switch)
        cluster = real.start(lab, NODES, "ipv4", kind=kind)
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(_deployment()))
        # Waits for service accounts and images, and whatever the first pod needs of a node.
        _scale(cluster, NODES)
        _scale(cluster, 0)
        before = _network(cluster)
        took = {RUNNING: [_scale(cluster, PODS)], GONE: [_scale(cluster, 0)]}
        after = _network(cluster)
    for name, operation in OPERATIONS.items():
        seconds, count = (after[operation][place] - before[operation][place] for place in (0, 1))
        if count < PODS:
            raise BenchError(f"containerd counted {count:.0f} operations {operation} for {PODS} pods")
        took[name] = [seconds / count * 1000]
    return took


def _scale(cluster: Cluster, replicas: int) -> float:
    """Seconds until as many pods run, and no others are left."""
    began = time.monotonic()
    cluster.kubectl("scale", "deployment/many", f"--replicas={replicas}")
    if replicas:
        cluster.kubectl("rollout", "status", "deployment/many", f"--timeout={TIMEOUT_S - 10}s")
    while len(pods := cluster.kubectl("get", "pods", "-o", "name").splitlines()) != replicas:
        if time.monotonic() - began > TIMEOUT_S:
            raise BenchError(f"{len(pods)} pods, not {replicas}, after {TIMEOUT_S} s")
        time.sleep(1)
    return time.monotonic() - began


def _network(cluster: Cluster) -> dict[str, tuple[float, float]]:
    """(seconds, count) of containerd's network operations on all nodes, by operation."""
    told = [
        node.space.run("curl", "-s", "-f", f"http://127.0.0.1:{METRICS_PORT}/v1/metrics").stdout
        for node in cluster.machines
    ]
    found = {}
    for operation in OPERATIONS.values():
        seconds, count = (sum(_value(text, part, operation) for text in told) for part in ("sum", "count"))
        found[operation] = seconds, count
    return found


def _value(metrics: str, part: str, operation: str) -> float:
    found = re.search(METRIC.format(part=part, operation=operation), metrics)
    if not found:
        raise BenchError(f"containerd has no metric of {operation}")
    return float(found[1])


def _deployment() -> dict[str, object]:
    labels = {"app": "many"}
    container = {"name": "many", "image": images.PAUSE}
    spec = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "automountServiceAccountToken": False,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "many"},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
