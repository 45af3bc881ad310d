# SPDX-License-Identifier: Apache-2.0
"""A NodePort whose backend is on another node, asked by a client outside: connect and first byte, and throughput, IPv4.

Ours against kube-proxy in nftables mode, which loses the client's address on the way. At layer 2 ours adds nothing to a
packet, and the peer routes it. In VXLAN ours is shown beside the peer with plain routes, which only nodes on one subnet
have, and held against one whose pods are joined by VXLAN as well. All nodes are up at once, and follow one API server.
Client and server share a core: on two, the queue between them overflows, and what is seen is how TCP gets over its
losses.
"""

import json
import time

from e2e.bench import rounds
from e2e.bench.connect import core, start_client, start_server
from e2e.bench.contenders import IN_FORCE_S, Contender, Nftables, NftablesOverlay, Ours
from e2e.bench.lab import BenchLab
from e2e.bench.objects import TARGET_PORT, endpoint_slice, node_port_service
from e2e.bench.outcome import Outcome, Series
from e2e.bench.tool import BenchError
from e2e.lab import addresses
from e2e.lab.runtime import Pod
from e2e.lab.source import Source
from e2e.lab.space import Space

TITLE = "NodePort with its backend on another node, from outside, IPv4"
# See connect: one set-up is no evidence.
SET_UPS = 4
ROUNDS, WARM_UP = 50, 5
CONNECTIONS = 40
STREAM_ROUNDS, STREAM_WARM_UP = 6, 1
STREAM_S = 1
STREAM_PORT = 5201

# Each contender's client counts up from a source port of its own: no port of another's stands in its way.
FIRST_SOURCE_PORT, SOURCE_PORTS = 1024, 7_000
FIRST_SERVICE, FIRST_NODE_PORT = 120, 30120

LAYER_2, VXLAN, DIRECT = "layer 2", "VXLAN", "VXLAN and direct return"
CONNECT, STREAM = "connect + first byte", "time for a gigabyte"
GIGABYTE_BITS = 8e9


def run() -> Outcome:
    """Raises LabError, BenchError, kubernetes.BuildError."""
    outcome = Outcome(TITLE)
    series = {mode: _series(mode) for mode in (LAYER_2, VXLAN, DIRECT)}
    for _ in range(SET_UPS):
        _set_up_and_play(outcome, series)
    outcome.series = [one for both in series.values() for one in both.values()]
    _compare(outcome, series)
    return outcome


def _series(mode: str) -> dict[str, Series]:
    return {
        CONNECT: Series(f"{CONNECT}, {mode}", "us", group=ROUNDS),
        STREAM: Series(f"{STREAM}, {mode}", "s", group=STREAM_ROUNDS),
    }


def _set_up_and_play(outcome: Outcome, series: dict[str, dict[str, Series]]) -> None:
    """Plays a lab's rounds, and adds their samples."""
    ours = {
        LAYER_2: Ours(handover="l2", encapsulation="never"),
        VXLAN: Ours(handover="vxlan"),
        DIRECT: Ours(handover="vxlan", return_path="direct"),
    }
    peers: list[Contender] = [Nftables(), NftablesOverlay()]
    with BenchLab("nodeport") as lab:
        source = lab.api_source()
        clients: dict[Contender, Client] = {}
        for number, contender in enumerate([*ours.values(), *peers]):
            contender.set_up(lab, 2, source)
            outcome.versions |= contender.versions()
            clients[contender] = Client(lab.client, contender, source, number)
        for mode, contender in ours.items():
            # what has nothing added is held against what has nothing added
            beside = peers[:1] if mode == LAYER_2 else peers
            _play(series[mode], [clients[one] for one in (contender, *beside)])


def _play(series: dict[str, Series], clients: list["Client"]) -> None:
    asking: dict[str, rounds.Turn] = {client.name: client.connect for client in clients}
    rounds.play(asking, {CONNECT: series[CONNECT]}, ROUNDS, WARM_UP)
    streaming: dict[str, rounds.Turn] = {client.name: client.stream for client in clients}
    rounds.play(streaming, {STREAM: series[STREAM]}, STREAM_ROUNDS, STREAM_WARM_UP)


def _compare(outcome: Outcome, series: dict[str, dict[str, Series]]) -> None:
    """States the ratios. At least 1.15 times the throughput is at most 1 / 1.15 of the time."""
    layer_2 = series[LAYER_2]
    outcome.compare(layer_2[CONNECT], Nftables.name, bar=0.85, aim=0.76)
    outcome.compare_tails(layer_2[CONNECT], Nftables.name, aim=0.9)
    outcome.compare(layer_2[STREAM], Nftables.name, bar=1 / 1.15)
    for mode in (VXLAN, DIRECT):
        for one in series[mode].values():
            outcome.compare(one, Nftables.name)
            is_held = one is series[VXLAN][STREAM]
            outcome.compare(one, NftablesOverlay.name, bar=1 / 0.95 if is_held else None)


class Client:
    """The outside client of a contender's NodePorts: one for connections, one for streams, served by its second node.

    Args:
        number: the contender's: its Services and source ports follow from it.
    """

    def __init__(self, client: Space, contender: Contender, source: Source, number: int) -> None:
        entry, far = contender.nodes
        self.name = contender.name
        self._client, self._entry = client, entry.address.v4
        server = far.add_pod("server", serve=False)
        self._server = start_server(server)
        first = FIRST_SERVICE + 2 * number
        connect_port = _expose(source, server, first, TARGET_PORT)
        self._stream_port = _expose(source, server, first + 1, STREAM_PORT)
        # Its report of every stream would fill the pipe, and then it would wait for a reader.
        self._stream_server = server.space.start("iperf3", "-s", "-p", str(STREAM_PORT), "--logfile", "/dev/null")
        source_port = FIRST_SOURCE_PORT + number * SOURCE_PORTS
        self._tool = start_client(client, self._entry, connect_port, source_port)
        _wait_stream(self)

    def connect(self) -> dict[str, list[float]]:
        """Microseconds of each connection."""
        return {CONNECT: [nanoseconds / 1e3 for nanoseconds in self._tool.ask(str(CONNECTIONS))]}

    def stream(self) -> dict[str, list[float]]:
        """Seconds in which a gigabyte arrives at the pod, by one connection."""
        command = ("iperf3", "-c", self._entry, "-p", str(self._stream_port), "-C", "cubic", "-t", str(STREAM_S))
        process = self._client.run(*command, "-A", f"{core()},{core()}", "-J", check=False)
        report = json.loads(process.stdout or "{}")
        if process.returncode or "error" in report:
            raise BenchError(f"iperf3 to {self._entry}: {report.get('error') or process.stderr.strip()}")
        return {STREAM: [GIGABYTE_BITS / report["end"]["sum_received"]["bits_per_second"]]}


def _expose(source: Source, server: Pod, number: int, target_port: int) -> int:
    """Makes a Service of one port of a pod; its NodePort."""
    name, node_port = f"bench-{number}", FIRST_NODE_PORT + number - FIRST_SERVICE
    manifest = node_port_service(name, addresses.service(number).v4, node_port, target_port)
    slices = endpoint_slice(name, [(server.address.v4, server.node.name)], target_port)
    source.apply(name, [manifest, slices])
    return node_port


def _wait_stream(client: Client) -> None:
    deadline = time.monotonic() + IN_FORCE_S
    while True:
        try:
            client.stream()
            return
        except BenchError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
