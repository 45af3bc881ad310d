# SPDX-License-Identifier: Apache-2.0
"""The controller with 10,000 Services of 10 endpoints: from its start until the maps hold them, and from one changed
endpoint until the kernel knows. Ours alone, watched from the kernel's side by tools/watch.c.

The source is a directory of JSON lists with 100 objects each, so a change costs reading a whole file.
"""

import json
import random
import time
from ipaddress import IPv4Address
from pathlib import Path

from e2e.bench import stats
from e2e.bench.contenders import Ours
from e2e.bench.lab import BenchLab, BenchNode
from e2e.bench.objects import PORT, TARGET_PORT, endpoint_slice, service
from e2e.bench.outcome import OURS, Outcome, Series
from e2e.bench.tool import Tool
from e2e.lab import cgroups
from e2e.lab.node import CONTROLLER, PINS
from e2e.lab.source import DirectorySource, Manifest

TITLE = "Control plane: 10,000 Services of 10 endpoints each, from a directory"
SERVICES, ENDPOINTS = 10_000, 10
SERVICES_A_FILE = 50
FIRST_SERVICE = IPv4Address("10.96.64.0")
FIRST_ENDPOINT = IPv4Address("10.160.0.0")
# What endpoints change to: addresses that no endpoint had before.
FIRST_CHANGED = IPv4Address("10.192.0.0")

STARTS = 5
START_S = 120
CHANGES, CHANGES_WARM_UP = 400, 20
# Longer than the controller's least time between two syncs, and never in step with it.
PAUSE_S = (0.05, 0.1)
SETTLE_S, IDLE_S = 5, 30
# Audits come every 300 s, and none falls into an idle window: what they cost is measured at a shorter interval.
AUDIT_S, OFTEN_S, OFTEN_WINDOW_S = 300, 15, 60

START_LIMIT_S = 6
CHANGE_LIMIT_MS, CHANGE_TAIL_LIMIT_MS = 10, 50
IDLE_LIMIT_PERCENT = 1


def run() -> Outcome:
    """Raises LabError, BenchError."""
    outcome = Outcome(TITLE, versions=Ours().versions())
    with BenchLab("control-plane") as lab:
        source = lab.directory_source()
        manifests = Manifests(source.directory, lab.directory / "staged")
        nodes = [lab.add_node_of(BenchNode) for _ in range(STARTS)]
        lab.announce(source)
        *others, last = nodes
        starts = Series("start, until the maps hold everything", "s")
        for node in others:
            with start_watch(node) as watch:
                starts.add(OURS, [[start(node, source, watch)]])
            cgroups.kill(node.space.group)
        with start_watch(last) as watch:
            starts.add(OURS, [[start(last, source, watch)]])
            outcome.series.append(starts)
            state_start(outcome, starts, last)
            measure_idle(outcome, last)
            measure_changes(outcome, manifests, watch)
        measure_memory(outcome, last)
        measure_audits(outcome, last, source)
    return outcome


class Manifests:
    """The files of the source.

    Args:
        directory: that the controller follows.
        staged: on the same file system; where a file is written before it is renamed into place.
    """

    def __init__(self, directory: Path, staged: Path) -> None:
        self._directory, self._staged = directory, staged
        self._chance = random.Random(stats.SEED)
        self._changed = int(FIRST_CHANGED)
        staged.mkdir()
        self._files = [list_of(first) for first in range(0, SERVICES, SERVICES_A_FILE)]
        for number, objects in enumerate(self._files):
            (directory / self._name(number)).write_text(text_of(objects))

    def stage_change(self) -> tuple[str, str, str, str]:
        """Writes the file in which one endpoint of one Service has another address.

        Returns:
            The written file, the one to be replaced by it, the number of the Service, the new address.
        """
        number = self._chance.randrange(SERVICES)
        file, place = divmod(number, SERVICES_A_FILE)
        address = str(IPv4Address(self._changed))
        self._changed += 1
        endpoints = self._files[file][SERVICES_A_FILE + place]["endpoints"]
        self._chance.choice(endpoints)["addresses"] = [address]
        name = self._name(file)
        (self._staged / name).write_text(text_of(self._files[file]))
        return str(self._staged / name), str(self._directory / name), str(number), address

    @staticmethod
    def _name(number: int) -> str:
        return f"services-{number:03}.json"


def list_of(first: int) -> list[Manifest]:
    """The objects of a file: some Services, then their EndpointSlices in the same order."""
    numbers = range(first, first + SERVICES_A_FILE)
    services = [service(f"bench-{number}", str(FIRST_SERVICE + number)) for number in numbers]
    slices = [endpoint_slice(f"bench-{number}", endpoints_of(number)) for number in numbers]
    return services + slices


def endpoints_of(number: int) -> list[tuple[str, str]]:
    first = FIRST_ENDPOINT + number * ENDPOINTS
    return [(str(first + index), f"node{index + 1}") for index in range(ENDPOINTS)]


def text_of(objects: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def start_watch(node: BenchNode) -> Tool:
    """The watcher, which waits for the maps to be made."""
    plan = (SERVICES, ENDPOINTS, FIRST_SERVICE, PORT, FIRST_ENDPOINT, TARGET_PORT)
    return Tool(node.space, "watch", f"{PINS}/maps", *map(str, plan))


def start(node: BenchNode, source: DirectorySource, watch: Tool) -> float:
    """Starts a controller on a node that has nothing; seconds from before it is executed until all is in the maps."""
    node.install(source.settings())
    watch.tell("all")
    began_ns = time.monotonic_ns()
    node.start(CONTROLLER)
    (done_ns,) = watch.answer(START_S)
    return (done_ns - began_ns) / 1e9


def state_start(outcome: Outcome, starts: Series, node: BenchNode) -> None:
    """Also the CPU time of the last, bpftool's included: where others use the machine, it tells more than the clock."""
    slowest = max(sample for samples in starts.samples[OURS] for sample in samples)
    outcome.state(f"start, the slowest of {STARTS}", "s", slowest, bar=START_LIMIT_S)
    outcome.state("CPU time of a start", "s", node.cpu_s())


def measure_changes(outcome: Outcome, manifests: Manifests, watch: Tool) -> None:
    """One endpoint at a time, milliseconds from rename(2) until the maps lead to it."""
    took: list[float] = []
    chance = random.Random(stats.SEED)
    for _ in range(CHANGES_WARM_UP + CHANGES):
        words = manifests.stage_change()
        time.sleep(chance.uniform(*PAUSE_S))
        took += [nanoseconds / 1e6 for nanoseconds in watch.ask("change", *words)]
    del took[:CHANGES_WARM_UP]
    outcome.series.append(
        Series("one changed endpoint, until the maps lead to it", "ms", samples={OURS: [[one] for one in took]})
    )
    outcome.state("one changed endpoint, median", "ms", stats.interval(took), bar=CHANGE_LIMIT_MS)
    tail = stats.interval(took, stats.p99)
    outcome.state("one changed endpoint, 99th percentile", "ms", tail, bar=CHANGE_TAIL_LIMIT_MS)


def measure_memory(outcome: Outcome, node: BenchNode) -> None:
    outcome.state("memory of the controller after the changes", "MB", node.memory_mb(CONTROLLER, "VmRSS"))
    outcome.state("memory of the controller at its most", "MB", node.memory_mb(CONTROLLER, "VmHWM"))


def measure_idle(outcome: Outcome, node: BenchNode) -> None:
    time.sleep(SETTLE_S)
    share = cpu_percent(node, IDLE_S)
    outcome.state(f"CPU of the idle controller over {IDLE_S} s", "%", share, bar=IDLE_LIMIT_PERCENT)


def measure_audits(outcome: Outcome, node: BenchNode, source: DirectorySource) -> None:
    """Restarts the controller with more frequent audits, and spreads what they take over the usual interval."""
    node.stop(CONTROLLER)
    node.install({**source.settings(), "audit_interval_s": OFTEN_S})
    node.start(CONTROLLER)
    time.sleep(OFTEN_S)
    share = cpu_percent(node, OFTEN_WINDOW_S) * OFTEN_S / AUDIT_S
    outcome.state(f"CPU of its audits, one every {AUDIT_S} s", "%", share, bar=IDLE_LIMIT_PERCENT)


def cpu_percent(node: BenchNode, seconds: float) -> float:
    """The CPU time that a node's processes take meanwhile, in percent of a core."""
    before_s, began = node.cpu_s(), time.monotonic()
    time.sleep(seconds)
    return (node.cpu_s() - before_s) / (time.monotonic() - began) * 100
