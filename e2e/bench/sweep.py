# SPDX-License-Identifier: Apache-2.0
"""What the sweep costs with a million flows in the table: how long a slice holds a CPU, and what connections feel.

Ours alone. The flows are written by tools/sweep.c, some or all of them expired; it also runs and times slices of its
own, while the controller stands still. Connections are made against the controller's sweeps at their own pace, in
turns: with them, and while it is stopped.
"""

import os
import signal
from statistics import median

from controller.sweep import SLICE_ENTRIES
from e2e.bench import rounds
from e2e.bench.connect import start_client, start_server
from e2e.bench.contenders import Ours
from e2e.bench.lab import BenchLab, BenchNode
from e2e.bench.objects import PORT, endpoint_slice, service
from e2e.bench.outcome import OURS, Outcome, Series
from e2e.bench.tool import BenchError, Tool
from e2e.lab import addresses
from e2e.lab.node import CONTROLLER, PINS
from e2e.lab.source import Source

TITLE = "The sweep with a million flows in the table"
FLOWS = 1_000_000
ENTRIES = 2 * FLOWS
ENTRIES_MAX = 1 << 22
# The slices are those of a table that is full: of two million flows.
ENTRIES_FULL = 4_000_000
ROUNDS, WARM_UP = 20, 2
CONNECTIONS = 8_000
PASSES = 3
# Percent of the flows.
EXPIRED = (0, 10, 25, 50, 100)

CONNECT = "connect + first byte"
WITHOUT = "without sweeps"
SERVICE = 140

SLICE_LIMIT_MS = 5
TAIL_LIMIT = 1.1


def run() -> Outcome:
    """Raises LabError, BenchError."""
    ours = Ours(flows_max=ENTRIES_MAX)
    outcome = Outcome(TITLE)
    with BenchLab("sweep") as lab:
        source = lab.directory_source()
        ours.set_up(lab, 1, source)
        outcome.versions = ours.versions()
        (node,) = ours.nodes
        assert isinstance(node, BenchNode)
        with Tool(node.space, "sweep", f"{PINS}/maps/flows", f"{PINS}/programs/sweep") as table:
            connections = Connections(node, source)
            for percent in (0, 100):
                # At the controller's pace what has expired lasts longer than the rounds.
                fill(table, ENTRIES, percent)
                connections.measure(outcome, percent)
            connections.close()
            os.kill(node.pid(CONTROLLER), signal.SIGSTOP)
            for percent in EXPIRED:
                measure_slices(outcome, percent, table)
            os.kill(node.pid(CONTROLLER), signal.SIGCONT)
    return outcome


def fill(table: Tool, entries: int, percent: int) -> None:
    """Writes the flows anew, so many of them expired. Raises BenchError."""
    (held,) = table.ask("fill", str(entries), str(percent))
    if held < 0.99 * entries:
        raise BenchError(f"the table holds {held:.0f} of {entries} entries")


def measure_slices(outcome: Outcome, percent: int, table: Tool) -> None:
    """Sweeps the whole table a few times, slice by slice.

    What is stated is the middle one of the passes' longest slices: what interrupts this machine lengthens one or two.
    """
    slices = Series(f"slice, {percent} % expired", "ms")
    for _ in range(PASSES):
        fill(table, ENTRIES_FULL, percent)
        slices.add(OURS, [[nanoseconds / 1e6 for nanoseconds in table.ask("sweep", str(SLICE_ENTRIES))]])
    outcome.series.append(slices)
    passes = slices.samples[OURS]
    longest, all_slices = median(map(max, passes)), median(map(sum, passes))
    outcome.state(f"longest slice, {percent} % expired", "ms", longest, bar=SLICE_LIMIT_MS, aim=2)
    outcome.state(f"all slices of a round, {percent} % expired", "ms", all_slices)


class Connections:
    """A client and a server behind a Service, on one node."""

    def __init__(self, node: BenchNode, source: Source) -> None:
        client, server = (node.add_pod(name, serve=False) for name in ("client", "server"))
        # Each port is used again and again: none may wait.
        client.space.run("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")
        self._listening = start_server(server)
        cluster_ip = addresses.service(SERVICE).v4
        source.apply("bench", [service("bench", cluster_ip), endpoint_slice("bench", [(server.address.v4, node.name)])])
        self._client = start_client(client.space, cluster_ip, PORT)
        self._controller = node.pid(CONTROLLER)

    def close(self) -> None:
        self._client.close()
        self._listening.close()

    def measure(self, outcome: Outcome, percent: int) -> None:
        """Plays the rounds; `percent` of the table's flows had expired before."""
        connect = Series(f"{CONNECT}, {percent} % expired", "us")
        turns = {OURS: self._sweeping, WITHOUT: self._without}
        rounds.play(turns, {CONNECT: connect}, ROUNDS, WARM_UP)
        outcome.series.append(connect)
        outcome.compare(connect, WITHOUT)
        outcome.compare_tails(connect, WITHOUT, bar=TAIL_LIMIT)

    def _sweeping(self) -> dict[str, list[float]]:
        return {CONNECT: [nanoseconds / 1e3 for nanoseconds in self._client.ask(str(CONNECTIONS))]}

    def _without(self) -> dict[str, list[float]]:
        os.kill(self._controller, signal.SIGSTOP)
        try:
            return self._sweeping()
        finally:
            os.kill(self._controller, signal.SIGCONT)
