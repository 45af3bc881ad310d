# SPDX-License-Identifier: Apache-2.0
"""What the sweep costs with a million flows in the table: how long a slice holds a CPU, and what connections feel.

Ours alone. The flows are written by tools/sweep.c, which also runs and times slices of its own; the controller sweeps
at its own pace meanwhile. Against itself, in turns: with its sweeps, and while it is stopped.
"""

import os
import signal

from e2e.bench import rounds, stats
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
SHARDS = 64
ROUNDS, WARM_UP = 20, 2
CONNECTIONS = 8_000
PASSES = 3

CONNECT = "connect + first byte, same node"
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
            fill(table, 0)
            _measure_connections(outcome, node, source)
            measure_slices(outcome, "none expired", table)
            fill(table, 1)
            measure_slices(outcome, "all expired", table)
    return outcome


def fill(table: Tool, expired: int) -> None:
    """Writes the flows anew, live or expired. Raises BenchError."""
    (held,) = table.ask("fill", str(ENTRIES), str(expired))
    if held < 0.99 * ENTRIES:
        raise BenchError(f"the table holds {held:.0f} of {ENTRIES} entries")


def measure_slices(outcome: Outcome, what: str, table: Tool) -> None:
    """Sweeps the whole table a few times, shard by shard; what has expired goes with the first pass."""
    slices = Series(f"slice, {what}", "ms")
    for _ in range(1 if what == "all expired" else PASSES):
        slices.add(OURS, [[table.ask("sweep", str(shard))[0] / 1e6 for shard in range(SHARDS)]])
    outcome.series.append(slices)
    longest = max(sample for samples in slices.samples[OURS] for sample in samples)
    outcome.state(f"longest slice, {what}", "ms", longest, bar=SLICE_LIMIT_MS, aim=2)


def _measure_connections(outcome: Outcome, node: BenchNode, source: Source) -> None:
    client, server = (node.add_pod(name, serve=False) for name in ("client", "server"))
    # Each port is used again and again: none may wait.
    client.space.run("sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0")
    listening = start_server(server)
    cluster_ip = addresses.service(SERVICE).v4
    source.apply("bench", [service("bench", cluster_ip), endpoint_slice("bench", [(server.address.v4, node.name)])])
    tool = start_client(client.space, cluster_ip, PORT)
    controller = node.pid(CONTROLLER)

    def without() -> dict[str, list[float]]:
        os.kill(controller, signal.SIGSTOP)
        try:
            return sweeping()
        finally:
            os.kill(controller, signal.SIGCONT)

    def sweeping() -> dict[str, list[float]]:
        return {CONNECT: [nanoseconds / 1e3 for nanoseconds in tool.ask(str(CONNECTIONS))]}

    connect = Series(CONNECT, "us")
    rounds.play({OURS: sweeping, WITHOUT: without}, {CONNECT: connect}, ROUNDS, WARM_UP)
    outcome.series.append(connect)
    outcome.compare(connect, WITHOUT)
    tails = stats.round_ratios(connect.samples[OURS], connect.samples[WITHOUT], stats.p99)
    outcome.state(f"{CONNECT}, 99th percentile, ratio to {WITHOUT}", "", stats.interval(tails), bar=TAIL_LIMIT)
    tool.close()
    listening.close()
