# SPDX-License-Identifier: Apache-2.0
"""CNI ADD and DEL, each executed as a container runtime does: ours against ptp with host-local, IPv4 pods.

Sandboxes are made beforehand and used again: making and removing network namespaces is not what is measured, and the
kernel takes them down in the background, holding locks that a call under the clock would wait for.
"""

import json
import secrets
import time
from itertools import cycle
from pathlib import Path

from e2e.bench import rounds
from e2e.bench.contenders import Contender, Ours, Reference
from e2e.bench.lab import BenchLab
from e2e.bench.outcome import Outcome, Series
from e2e.bench.tool import BenchError, Tool
from e2e.lab import addresses, runtime
from e2e.lab.node import Node

TITLE = "CNI: ADD and DEL of an IPv4 pod"
ROUNDS, WARM_UP = 100, 5
AT_ONCE = 30
AT_ONCE_ROUNDS = 8
# What the kernel does after a call, such as freeing a device, belongs to nobody's next call.
SETTLE_S = 0.02
AT_ONCE_SETTLE_S = 0.3

ADD, DEL = "ADD", "DEL"
ADDS, DELS = f"{AT_ONCE} ADD at once", f"{AT_ONCE} DEL at once"


def run() -> Outcome:
    """Raises LabError, BenchError."""
    ours, reference = Ours(), Reference()
    outcome = Outcome(TITLE)
    series = {name: Series(name, "ms") for name in (ADD, DEL, ADDS, DELS)}
    with BenchLab("cni") as lab:
        runtimes = []
        for contender in (ours, reference):
            contender.set_up(lab, 1, lab.directory_source())
            runtimes.append(Runtime(contender))
            outcome.versions |= contender.versions()
        one_by_one = {runtime.name: runtime.one for runtime in runtimes}
        rounds.play(one_by_one, {name: series[name] for name in (ADD, DEL)}, ROUNDS, WARM_UP)
        at_once = {runtime.name: runtime.many for runtime in runtimes}
        rounds.play(at_once, {name: series[name] for name in (ADDS, DELS)}, AT_ONCE_ROUNDS, 1)
    outcome.series = list(series.values())
    outcome.compare(series[ADD], reference.name, bar=1.0, aim=0.7)
    for name in (DEL, ADDS, DELS):
        outcome.compare(series[name], reference.name)
    return outcome


class Runtime:
    """A container runtime on a contender's node, with a stock of sandboxes."""

    def __init__(self, contender: Contender) -> None:
        self.name = contender.name
        node = contender.nodes[0]
        use_ipv4(node)
        prove(node)
        self._sandboxes = [f"bench-{number}" for number in range(AT_ONCE)]
        for sandbox in self._sandboxes:
            node.space.run("ip", "netns", "add", sandbox)
            node.space.run("ip", "-n", sandbox, "link", "set", "lo", "up")
        self._next = cycle(self._sandboxes)
        config = runtime.plugins(node.space)[0]
        path = node.space.path("/run/bench-config.json")
        path.write_text(json.dumps(config))
        executable = f"{runtime.CNI_BIN}/{config['type']}"
        self._tool = Tool(node.space, "spawn", executable, "/run/bench-config.json", env=environment())

    def one(self) -> dict[str, list[float]]:
        """One ADD and its DEL, milliseconds."""
        return self._add_and_delete([next(self._next)], (ADD, DEL), SETTLE_S)

    def many(self) -> dict[str, list[float]]:
        """ADD in all sandboxes at once, then DEL, milliseconds until the last had ended."""
        return self._add_and_delete(self._sandboxes, (ADDS, DELS), AT_ONCE_SETTLE_S)

    def _add_and_delete(self, sandboxes: list[str], names: tuple[str, str], settle_s: float) -> dict[str, list[float]]:
        calls = [word for sandbox in sandboxes for word in (secrets.token_hex(32), f"/run/netns/{sandbox}")]
        took = {}
        for verb, name in zip((ADD, DEL), names, strict=True):
            took[name] = [self._tool.ask(verb, *calls)[0] / 1e6]
            time.sleep(settle_s)
        return took


def environment() -> dict[str, str]:
    """What a runtime sets, but for what differs from call to call."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_IFNAME": runtime.INTERFACE,
        "CNI_PATH": runtime.CNI_BIN,
        "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=bench",
    }


def use_ipv4(node: Node) -> None:
    """Has a node's pods get an IPv4 address alone: what the reference gives."""
    path: Path = node.space.path(runtime.CNI_CONF)
    network = json.loads(path.read_text())
    network["plugins"][0]["ipam"]["ranges"] = [[{"subnet": addresses.pod_ranges(node.index).v4}]]
    path.write_text(json.dumps(network))


def prove(node: Node) -> None:
    """Makes a pod and pings it. Raises BenchError."""
    pod = runtime.create(node.space, "proof")
    pinged = node.space.run("ping", "-c", "1", "-W", "2", pod.address.v4, check=False)
    runtime.remove(pod)
    if pinged.returncode:
        raise BenchError(f"{node.name}: a pod does not answer its node")
