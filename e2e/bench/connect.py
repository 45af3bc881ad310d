# SPDX-License-Identifier: Apache-2.0
"""Connect and first byte through a cluster IP, on one node and across two: ours against kube-proxy in nftables mode.
Beside them the floor: routed straight to the server's address, without any Service.

All nodes are up at once on one switch, and follow the same Services of one API server. Client and server share a core,
so that the path is what is seen, and not how fast the scheduler wakes another core.
"""

import os
import time

from e2e.bench import rounds
from e2e.bench.contenders import IN_FORCE_S, Contender, Nftables, Ours, Routing
from e2e.bench.lab import BenchLab
from e2e.bench.objects import PORT, TARGET_PORT, endpoint_slice, service
from e2e.bench.outcome import Outcome, Series
from e2e.bench.tool import BenchError, Tool
from e2e.lab import addresses
from e2e.lab.runtime import Pod
from e2e.lab.source import Source
from e2e.lab.space import Space

TITLE = "New connections: connect and first byte through a cluster IP, IPv4"
# Short turns, so that what disturbs the machine meets every contender. Each has two in a round: all its connections
# together are fewer than the ports that there are.
ROUNDS, WARM_UP = 60, 5
# Where things come to lie in memory makes a set-up's ratio differ from another's by a hundredth or two.
SET_UPS = 6
CONNECTIONS = 60

SAME, ACROSS = "same node", "across nodes"
FIRST_SERVICE = 100


def run() -> Outcome:
    """Raises LabError, BenchError, kubernetes.BuildError."""
    outcome = Outcome(TITLE)
    series = {path: Series(f"connect + first byte, {path}", "us", group=ROUNDS) for path in (SAME, ACROSS)}
    for _ in range(SET_UPS):
        set_up_and_play(outcome, series)
    outcome.series = list(series.values())
    for path in (SAME, ACROSS):
        outcome.compare(series[path], Nftables.name, bar=0.85, aim=0.75)
        outcome.compare_tails(series[path], Nftables.name, aim=0.9)
        outcome.compare(series[path], Routing.name)
    return outcome


def set_up_and_play(outcome: Outcome, series: dict[str, Series]) -> None:
    """Plays a lab's rounds, and adds their samples."""
    contenders: list[Contender] = [Ours(), Nftables(), Routing()]
    turns: dict[str, rounds.Turn] = {}
    with BenchLab("connect") as lab:
        source = lab.api_source()
        for contender in contenders:
            contender.set_up(lab, 2, source)
            outcome.versions |= contender.versions()
        for number, contender in enumerate(contenders):
            turns[contender.name] = Clients(contender, source, FIRST_SERVICE + 2 * number).turn
        rounds.play(turns, series, ROUNDS, WARM_UP)


class Clients:
    """A contender's client on its first node, with a server on each, each behind a Service of its own.

    Args:
        first_service: number of the first Service's address; the second has the next.
    """

    def __init__(self, contender: Contender, source: Source, first_service: int) -> None:
        near, far = contender.nodes
        client = near.add_pod("client", serve=False)
        servers = {SAME: near.add_pod("server", serve=False), ACROSS: far.add_pod("server", serve=False)}
        self._tools = {}
        self._servers = []
        for number, (path, server) in enumerate(servers.items(), first_service):
            self._servers.append(start_server(server))
            name, cluster_ip = f"bench-{number}", addresses.service(number).v4
            slices = endpoint_slice(name, [(server.address.v4, server.node.name)])
            source.apply(name, [service(name, cluster_ip), slices])
            if contender.has_services:
                self._tools[path] = start_client(client.space, cluster_ip, PORT)
            else:
                self._tools[path] = start_client(client.space, server.address.v4, TARGET_PORT)

    def turn(self) -> dict[str, list[float]]:
        """Microseconds of each connection, by path."""
        took = {}
        for path, tool in self._tools.items():
            took[path] = [nanoseconds / 1e3 for nanoseconds in tool.ask(str(CONNECTIONS))]
        return took


def start_server(pod: Pod) -> Tool:
    """A server in a pod, once it listens. Raises BenchError."""
    server = Tool(pod.space, "connect", "server", str(TARGET_PORT), cpu=core())
    server.answer()
    return server


def start_client(where: Space, address: str, port: int, first_source_port: int = 1024) -> Tool:
    """A client, once it gets through. Raises BenchError."""
    deadline = time.monotonic() + IN_FORCE_S
    while True:
        client = Tool(where, "connect", "client", address, str(port), str(first_source_port), cpu=core())
        try:
            client.ask("1")
            return client
        except BenchError as error:
            client.close()
            if time.monotonic() > deadline:
                raise BenchError(f"{where.name}: not in force after {IN_FORCE_S} s: {error}") from error
            time.sleep(0.2)


def core() -> int:
    """The last core: interrupts and daemons tend to run on the first."""
    return max(os.sched_getaffinity(0))
