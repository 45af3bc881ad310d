# SPDX-License-Identifier: Apache-2.0
"""1,000 changes of endpoints, spread over 100 Services, in ten seconds, while 2,000 connections a second are made to
them: how soon connections avoid an endpoint that was marked not ready, and whether any is refused.

Ours alone, on two nodes that follow an API server, with a client and two servers on each. Each write marks one endpoint
not ready, and another one ready: of a Service's four endpoints two are out, each for two seconds. Clients, servers, API
server, etcd and both controllers share the machine's cores. An idle sleeper tells when something else had them: such a
run is discarded, and counted.
"""

import json
import sys
import time
from dataclasses import dataclass, field

from e2e import kubernetes
from e2e.bench import misses
from e2e.bench.contenders import IN_FORCE_S, Ours
from e2e.bench.lab import BenchLab
from e2e.bench.misses import LATE_MS, SOON_MS, Connection, Found, Write
from e2e.bench.objects import PORT, endpoint_slice, service
from e2e.bench.outcome import OURS, Outcome, Series
from e2e.bench.tool import SOURCES, BenchError, Tool
from e2e.lab import addresses
from e2e.lab.runtime import Pod
from e2e.lab.source import ApiSource, Manifest

TITLE = "1,000 endpoint changes over 100 Services in ten seconds, at 2,000 new connections a second"
RUNS, DISCARDED_MAX = 10, 3
OVERSLEPT_MS = 50.0
SERVICES, ENDPOINTS, OUT = 100, 4, 2
WRITES, WRITES_S = 1000, 10.0
RATE = 2000
# The writer starts within the first second; the last writes want connections a second later.
LOAD_S = 14
# A run that falls short of the writes' or connections' rate by a larger share shows nothing.
SHORT = 0.05

FIRST_SERVICE = 100
# Each Service has a target port of its own: the address and port that answered tell the endpoint and its Service.
FIRST_PORT = 8100
API_PATH = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


@dataclass
class Run:
    """What came of a run.

    Attributes:
        overslept_ms: by how much the sleeper's longest sleep was too long.
    """

    overslept_ms: float
    writes: list[Write]
    connections: list[Connection]
    found: Found = field(default_factory=Found)

    @property
    def discarded(self) -> bool:
        return self.overslept_ms >= OVERSLEPT_MS

    @property
    def writes_s(self) -> float:
        return (self.writes[-1].returned_ns - self.writes[0].sent_ns) / 1e9

    @property
    def rate(self) -> float:
        """New connections a second."""
        began = [connection.began_ns for connection in self.connections]
        return len(began) / ((max(began) - min(began)) / 1e9)

    def describe(self) -> str:
        failed = ", ".join(f"{count} {what}" for what, count in self.found.failed.items()) or "none"
        return (
            f"{'discarded: ' if self.discarded else ''}overslept {self.overslept_ms:.1f} ms; "
            f"{len(self.writes)} writes in {self.writes_s:.2f} s; {self.rate:.0f} connections a second; "
            f"{self.found.later_than(SOON_MS)} of {self.found.judged} late by {SOON_MS:.0f} ms, "
            f"{self.found.later_than(LATE_MS)} by {LATE_MS:.0f} ms, the latest {self.found.latest_ms:.0f} ms; "
            f"failed: {failed}"
        )


def run() -> Outcome:
    """Raises LabError, BenchError, kubernetes.BuildError."""
    ours = Ours()
    outcome = Outcome(TITLE)
    with BenchLab("churn") as lab:
        source = lab.api_source()
        ours.set_up(lab, 2, source)
        outcome.versions = ours.versions() | {"kube-apiserver": kubernetes.version()}
        play(Stage(lab, ours, source), outcome)
    return outcome


def play(stage: "Stage", outcome: Outcome) -> None:
    """Makes the runs, and states what came of those that count. Raises BenchError: too many are discarded."""
    runs: list[Run] = []
    while len(runs) < RUNS and sum(run.discarded for run in runs) <= DISCARDED_MAX:
        runs.append(stage.run(len(runs)))
    outcome.notes += [f"run {number}: {run.describe()}" for number, run in enumerate(runs, 1)]
    state(outcome, runs)


def state(outcome: Outcome, runs: list[Run]) -> None:
    """States the worst of the runs that count.

    Raises:
        BenchError: too many were discarded, or one of the others had less load than it should.
    """
    kept = [run for run in runs if not run.discarded]
    told = "\n".join(outcome.notes)
    if len(runs) - len(kept) > DISCARDED_MAX:
        raise BenchError(f"{len(runs) - len(kept)} of {len(runs)} runs discarded: the machine was too busy\n{told}")
    if any(falls_short(run) for run in kept):
        raise BenchError(f"in a run that counts there was less load than there should be\n{told}")
    ages = Series("connection to an endpoint, after the write that marked it not ready returned", "ms")
    for run in kept:
        if run.found.ages_ms:
            ages.add(OURS, [run.found.ages_ms])
    outcome.series += [ages] * bool(ages.samples)
    share = max(100 * run.found.later_than(SOON_MS) / max(run.found.judged, 1) for run in kept)
    late = sum(run.found.later_than(LATE_MS) for run in kept)
    outcome.state(f"connections that met it {SOON_MS:.0f} ms later, in the worst run", "%", share, bar=0.1)
    outcome.state(f"connections that met it {LATE_MS:.0f} ms later, in all runs", "", late, bar=0)
    outcome.state("the latest of them", "ms", max(run.found.latest_ms for run in kept))
    failed = sum(run.found.failed.total() for run in kept)
    outcome.state("connections refused, reset, unanswered or misled, in all runs", "", failed, bar=0)
    outcome.state(f"runs discarded, of {RUNS}", "", len(runs) - len(kept), bar=DISCARDED_MAX)


def falls_short(run: Run) -> bool:
    """Whether a run had too few writes or connections a second, or these did not last."""
    began = [connection.began_ns for connection in run.connections]
    lasted = min(began) < run.writes[0].sent_ns and max(began) > run.writes[-1].returned_ns + LATE_MS * 1e6
    return run.writes_s > WRITES_S * (1 + SHORT) or run.rate < RATE * (1 - SHORT) or not lasted


class Stage:
    """A client and two servers on each of the nodes, behind all Services."""

    def __init__(self, lab: BenchLab, ours: Ours, source: ApiSource) -> None:
        self._switch, self._source = lab.switch, source
        self._sleeper = Tool(lab.client, "churn", "sleeper")
        self._writes: list[Write] = []
        servers = [
            node.add_pod(f"server-{number}", serve=False) for number in range(ENDPOINTS // 2) for node in ours.nodes
        ]
        self._listening = [start_server(pod, number) for number, pod in enumerate(servers)]
        self._endpoints = [(pod.address.v4, pod.node.name) for pod in servers]
        source.apply("churn", self._objects())
        first = addresses.service(FIRST_SERVICE).v4
        words = ("client", first, str(SERVICES), str(PORT), str(RATE // len(ours.nodes)))
        self._clients = [Tool(node.add_pod("client", serve=False).space, "churn", *words) for node in ours.nodes]
        self._wait_in_force()

    def run(self, number: int) -> Run:
        """Makes a run, and judges it. Raises LabError, BenchError."""
        asking = [self._sleeper, *self._clients]
        for tool in asking:
            tool.tell(str(LOAD_S))
        time.sleep(0.5)
        writes = self._write(number * WRITES)
        self._writes += writes
        (overslept_ns,) = self._sleeper.answer()
        connections = self._connections()
        found = misses.judge(self._writes, connections, ENDPOINTS)
        return Run(overslept_ns / 1e6, writes, connections, found)

    def _objects(self) -> list[Manifest]:
        services = [
            service(name_of(number), addresses.service(FIRST_SERVICE + number).v4) for number in range(SERVICES)
        ]
        return services + [slice_of(number, -1, self._endpoints) for number in range(SERVICES)]

    def _write(self, first: int) -> list[Write]:
        """Makes the changes from a number on, the Services in turn."""
        numbers = [divmod(number, SERVICES) for number in range(first, first + WRITES)]
        slices = [slice_of(number, turn, self._endpoints) for turn, number in numbers]
        lines = [f"{API_PATH}/{one['metadata']['name']} {json.dumps(one)}\n" for one in slices]
        rate = str(round(WRITES / WRITES_S))
        command = (sys.executable, "-I", "-S", str(SOURCES / "put.py"), str(self._source.kubeconfig), rate)
        told = self._switch.run(*command, stdin="".join(lines)).stdout.splitlines()
        times = (map(int, line.split()) for line in told)
        return [
            Write(sent_ns, returned_ns, number, *marked(turn))
            for (sent_ns, returned_ns), (turn, number) in zip(times, numbers, strict=True)
        ]

    def _connections(self) -> list[Connection]:
        """What came of the connections that the clients were told to make."""
        answers = [client.answer() for client in self._clients]
        return [one for numbers in answers for one in misses.connections_of(numbers, FIRST_PORT)]

    def _wait_in_force(self) -> None:
        """Waits until every connection of a second is answered. Raises BenchError."""
        deadline = time.monotonic() + IN_FORCE_S
        while True:
            for client in self._clients:
                client.tell("1")
            failed = misses.judge((), self._connections(), ENDPOINTS).failed
            if not failed:
                return
            if time.monotonic() > deadline:
                raise BenchError(f"not in force after {IN_FORCE_S} s: {dict(failed)}")


def start_server(pod: Pod, number: int) -> Tool:
    """A server of all Services in a pod, once it listens. Raises BenchError."""
    server = Tool(pod.space, "churn", "server", str(number), str(FIRST_PORT), str(SERVICES))
    server.answer()
    return server


def slice_of(number: int, turn: int, endpoints: list[tuple[str, str]]) -> Manifest:
    """A Service's endpoints after its change of that turn.

    Args:
        endpoints: (address, name of its node) of each.
    """
    manifest = endpoint_slice(name_of(number), endpoints, FIRST_PORT + number)
    for before in range(OUT):
        manifest["endpoints"][marked(turn - before)[0]]["conditions"] = {"ready": False, "serving": False}
    return manifest


def marked(turn: int) -> tuple[int, int]:
    """Which endpoint of a Service its change of that turn marks not ready, and which one ready."""
    return turn % ENDPOINTS, (turn - OUT) % ENDPOINTS


def name_of(number: int) -> str:
    return f"churn-{number}"
