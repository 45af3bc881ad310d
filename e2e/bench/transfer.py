# SPDX-License-Identifier: Apache-2.0
"""Large transfers through a NodePort whose backend is on another node, against the same from pod to pod across nodes by
the same encapsulation and MTU.

The client is outside, and comes in by the first node; the backend is on the second. So the bytes of a NodePort cross a
link and a node more than those of pods: to the backend always, back where answers return by the entry node. All of it
is done by one core: a ratio is that of the CPU time which a byte takes on all hops together. Between machines of their
own the entry node works beside the others, and only the slowest of them is seen.

UDP goes in buffers that are to be cut into datagrams (UDP_SEGMENT), and are received uncut (UDP_GRO): that they come
whole shows that nothing on the way has cut them up. TCP's share of that is its speed.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import NamedTuple

from e2e.bench import rounds
from e2e.bench.connect import core
from e2e.bench.contenders import IN_FORCE_S, Ours
from e2e.bench.lab import BenchLab
from e2e.bench.objects import PORT, TARGET_PORT
from e2e.bench.outcome import OURS, Outcome, Series
from e2e.bench.stats import Interval
from e2e.bench.tool import BenchError, Tool
from e2e.lab import addresses, source
from e2e.lab.addresses import Dual
from e2e.lab.runtime import Pod
from e2e.lab.source import Source
from e2e.lab.space import Space

TITLE = "1 GiB each way through a NodePort with its backend on another node, and from pod to pod across nodes"
PODS = "pod to pod"

SETTINGS = {
    "layer 2": {"handover": "l2", "encapsulation": "never"},
    "VXLAN": {"handover": "vxlan", "encapsulation": "always"},
}
MTUS = (1280, 1500, 9000)
# IPv6 wants 1,280 bytes in pods, too; a tunnel between IPv6 addresses adds 70.
TUNNEL_MTU_MIN = 1350
FAMILIES = ("IPv4", "IPv6")

# Services by the way of their answers, and their NodePorts.
NODE_PORTS = {"entry": 30140, "direct": 30141}
FIRST_SERVICE = 140


class Kind(NamedTuple):
    """What is transferred.

    Attributes:
        words: the tool's, by direction.
        question: what it is told besides, from the bytes on.
        rounds: to begin with.
        receives_max: by more of them it comes in pieces; 0: so it may.
        bar: of the ratio of times; while an interval holds it, rounds are added, then the median decides.
        mtus: at which it is.
    """

    words: Mapping[str, str]
    question: Sequence[str]
    rounds: int
    receives_max: int = 0
    bar: float | None = None
    mtus: Sequence[int] = MTUS


WARM_UP = 1
ROUNDS_ADDED, ROUNDS_MAX = 10, 45
TO, FROM = "to the pod", "from the pod"
GIBIBYTE, SEGMENT_BYTES = 1 << 30, 1300
# 50 segments of 1,300 bytes, which fit into every tunnel, are what a buffer of UDP takes.
BUFFERS = 4_000
TCP = Kind({TO: "up", FROM: "down"}, [str(GIBIBYTE)], rounds=15, bar=1 / 0.8)
# Who sends it does nothing with the bytes: what is left is the way, and who receives them.
FILE = Kind({f"a file {TO}": "file-up", f"a file {FROM}": "file-down"}, [str(GIBIBYTE)], rounds=5, mtus=[1500, 9000])
UDP = Kind(
    {f"UDP {TO}": "udp-up", f"UDP {FROM}": "udp-down"},
    [str(BUFFERS * 50 * SEGMENT_BYTES), str(SEGMENT_BYTES)],
    rounds=4,
    receives_max=BUFFERS,
    mtus=[1500],
)


def run() -> Outcome:
    """Raises LabError, BenchError."""
    outcome = Outcome(TITLE)
    for mode, mtu in product(SETTINGS, MTUS):
        with BenchLab("transfer", underlay_mtu(mode, mtu)) as lab:
            _set_up_and_play(outcome, lab, mode, mtu)
    return outcome


def underlay_mtu(mode: str, mtu: int) -> int:
    """The MTU of the nodes' and the client's devices: more than `mtu` where pods would have too little for IPv6."""
    return max(mtu, TUNNEL_MTU_MIN) if mode == "VXLAN" else mtu


def _set_up_and_play(outcome: Outcome, lab: BenchLab, mode: str, mtu: int) -> None:
    ours, services = Ours(**SETTINGS[mode]), lab.directory_source()
    ours.set_up(lab, 2, services)
    outcome.versions |= ours.versions()
    near, far = ours.nodes
    asker, server = near.add_pod("asker", serve=False), far.add_pod("server", serve=False)
    _expose(services, server, far.name)
    with Tool(server.space, "transfer", "server", str(TARGET_PORT), cpu=core()) as serving:
        serving.answer()
        for family in FAMILIES:
            entry, pod = _pick(near.address, family), _pick(server.address, family)
            with Ends(lab.client, entry, asker.space, pod) as ends:
                for kind in (TCP, FILE, UDP):
                    if mtu in kind.mtus:
                        _measure(outcome, ends, kind, f"{mode}, {family}, MTU {mtu}")


def _expose(services: Source, server: Pod, node: str) -> None:
    """Makes a Service for each way back."""
    for number, (back, node_port) in enumerate(NODE_PORTS.items(), FIRST_SERVICE):
        manifest = source.service(back, addresses.service(number), PORT, TARGET_PORT)
        manifest["metadata"]["annotations"] = {"calico-ebpf.io/return": back}
        slices = source.endpoints(back, [(server.address, node)], TARGET_PORT)
        services.apply(back, [source.reached_from_outside(manifest, node_port), *slices])


class Ends:
    """Those who ask one server: the outside client at either NodePort, and a pod."""

    def __init__(self, client: Space, entry: str, asker: Space, pod: str) -> None:
        self._outside = {back: _start(client, entry, node_port) for back, node_port in NODE_PORTS.items()}
        self._beside = _start(asker, pod, TARGET_PORT)

    def __enter__(self) -> "Ends":
        return self

    def __exit__(self, *_: object) -> None:
        for tool in (*self._outside.values(), self._beside):
            tool.close()

    def outside(self, kind: Kind, word: str) -> dict[str, list[float]]:
        """Seconds, by the way back."""
        return {back: [_transfer(tool, kind, word)] for back, tool in self._outside.items()}

    def beside(self, kind: Kind, word: str) -> dict[str, list[float]]:
        """Seconds from pod to pod, under the same names."""
        took = [_transfer(self._beside, kind, word)]
        return dict.fromkeys(self._outside, took)


def _measure(outcome: Outcome, ends: Ends, kind: Kind, path: str) -> None:
    """Plays the rounds of a path in either direction, and states the ratios."""
    for direction, word in kind.words.items():
        series = {back: Series(f"{direction}, {path}, return {back}", "s") for back in NODE_PORTS}
        turns: dict[str, rounds.Turn] = {
            OURS: partial(ends.outside, kind, word),
            PODS: partial(ends.beside, kind, word),
        }
        rounds.play(turns, series, kind.rounds, WARM_UP)
        for _ in range(kind.rounds, ROUNDS_MAX, ROUNDS_ADDED):
            if kind.bar is None or not any(_holds(one.ratio(PODS), kind.bar) for one in series.values()):
                break
            rounds.play(turns, series, ROUNDS_ADDED, 0)
        for one in series.values():
            outcome.series.append(one)
            outcome.compare(one, PODS, bar=kind.bar, by_value=True)


def _holds(interval: Interval, bar: float) -> bool:
    """Whether a bar lies within an interval, so that it is not known on which side of it the figure is."""
    return interval.low <= bar < interval.high


def _transfer(tool: Tool, kind: Kind, word: str) -> float:
    """The seconds that a transfer took. Raises BenchError where it failed, or came in pieces."""
    took_ns, receives = tool.ask(word, *kind.question)
    if kind.receives_max and receives > kind.receives_max:
        raise BenchError(f"{word}: {kind.receives_max} buffers came in {receives:.0f} pieces")
    return took_ns / 1e9


def _start(where: Space, address: str, port: int) -> Tool:
    """A client, once it gets through. Raises BenchError."""
    deadline = time.monotonic() + IN_FORCE_S
    while True:
        client = Tool(where, "transfer", "client", address, str(port), cpu=core())
        try:
            client.ask(TCP.words[TO], "1")
            return client
        except BenchError:
            client.close()
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def _pick(address: Dual, family: str) -> str:
    return address.v6 if family == "IPv6" else address.v4
