# SPDX-License-Identifier: Apache-2.0
"""What the demo shows, step by step, with real traffic on the lab. A step that sees otherwise raises StepError."""

import json
import statistics
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from e2e.demo import external
from e2e.demo.report import Box, Figure, Step, StepError
from e2e.lab import addresses, runtime, source
from e2e.lab.addresses import Dual
from e2e.lab.cluster import Lab
from e2e.lab.node import CNI_SERVER, CONTROLLER, PINS, Node
from e2e.lab.runtime import Pod, tool
from e2e.lab.space import Space
from e2e.lab.taps import captured

PORT = 80
WEB, FAR, EMPTY = addresses.service(10), addresses.service(11), addresses.service(12)
SERVERS = {"web-1": 1, "web-2": 1, "web-3": 2, "web-4": 2}
NODE_PORT, FAR_NODE_PORT = 30080, 30081
CLIENTS = {"client-1": 1, "client-2": 2}
FOLLOW_S = 10

LOAD_RATE, LOAD_LASTING, LOAD_S = 500, 20, 6


class Demo:
    """The steps, on one lab; `steps` gives them in order.

    Attributes:
        boxes: the picture, once there are pods.
    """

    def __init__(self, lab: Lab) -> None:
        self.boxes: list[Box] = []
        self._lab = lab
        self._source = lab.directory_source()

    def steps(self) -> list[Callable[[Step], None]]:
        """Each fills in what it is handed; its docstring is the title and the claim."""
        return [
            self.nodes,
            self.pods,
            self.balancing,
            self.udp,
            self.ipv6,
            self.host_process,
            self.path,
            self.refusal,
            self.nodeport,
            self.entry_return,
            self.direct_return,
            self.in_vxlan,
            self.endpoint_leaves,
            self.daemons_killed,
            self.pods_removed,
        ]

    def nodes(self, step: Step) -> None:
        """Two nodes start: Each runs the CNI server and the controller, which follows a directory of manifests."""
        self._lab.start_nodes(2, self._source)
        step.did = ["calico-ebpf cni-server", f"calico-ebpf controller   # source: {self._source.directory}"]
        rows = [
            (node.name, *node.address, " ".join(addresses.pod_ranges(node.index)), _programs(node))
            for node in self._lab.nodes
        ]
        step.figures.append(Figure(("node", "IPv4", "IPv6", "pod ranges", "programs loaded"), rows))

    def pods(self, step: Step) -> None:
        """Pods are made through the CNI executable: A runtime's call, its answer an address of either family."""
        rows = []
        for name, index in (SERVERS | CLIENTS).items():
            began = time.monotonic()
            pod = self._node(index).add_pod(name, serve=False)
            took_ms = (time.monotonic() - began) * 1000
            if name in SERVERS:
                pod.serve()
            rows.append((name, f"node{index}", *pod.address, pod.result["interfaces"][0]["name"], f"{took_ms:.0f}"))
        step.did = ["CNI_COMMAND=ADD CNI_NETNS=… /opt/cni/bin/calico-ebpf < 10-calico-ebpf.conf"]
        columns = ("pod", "node", "IPv4", "IPv6", "host end of the link", "ms, sandbox included")
        step.figures.append(Figure(columns, rows))
        self.boxes = self._picture()

    def balancing(self, step: Step) -> None:
        """Connections to a cluster IP are balanced: 200 from one pod reach all four backends, which see its address."""
        self._expose("web", WEB, SERVERS)
        step.seen.append(
            f"in force on node1 and node2 {self._until_served(WEB.v4, SERVERS):.0f} ms after the file was written"
        )
        step.did = [f"cp web.yaml {self._source.directory}/", f"# in client-1: 200 times connect {WEB.v4}:{PORT}"]
        self._show_balance(step, self._pod("client-1").space, "tcp", WEB.v4, self._pod("client-1").address.v4)

    def udp(self, step: Step) -> None:
        """UDP alike: 200 datagrams from sockets of their own, each answered from the Service's address."""
        step.did = [f"# in client-2: 200 times send to {WEB.v4}:{PORT}/udp"]
        self._show_balance(step, self._pod("client-2").space, "udp", WEB.v4, self._pod("client-2").address.v4)

    def ipv6(self, step: Step) -> None:
        """IPv6 alike: The same Service by its other cluster IP."""
        step.did = [f"# in client-1: 200 times connect [{WEB.v6}]:{PORT}"]
        self._show_balance(step, self._pod("client-1").space, "tcp", WEB.v6, self._pod("client-1").address.v6)

    def host_process(self, step: Step) -> None:
        """Processes of a node use Services: Translated once, at connect, they believe to talk to the Service."""
        node = self._node(1)
        step.did = [f"# on node1: 200 times connect {WEB.v4}:{PORT}"]
        self._show_balance(step, node.space, "tcp", WEB.v4, node.address.v4)

    def path(self, step: Step) -> None:
        """A packet's way to another node: One connection, seen at each hop."""
        self._expose("far", FAR, ["web-3"])
        self._until_served(FAR.v4, ["web-3"])
        client, server = self._pod("client-1"), self._pod("web-3")
        hops = {
            "client-1, eth0": client.space,
            "node1, eth0": self._node(1).space,
            "node2, eth0": self._node(2).space,
            "web-3, eth0": server.space,
        }
        with captured(hops, (PORT, runtime.PORT)) as seen:
            _ask(client.space, "tcp", FAR.v4)
        step.did = [f"# in client-1: connect {FAR.v4}:{PORT}, the only backend being web-3 on node2"]
        for flags, what in (("S", "the client's SYN"), ("SA", "the answer")):
            rows = [(hop, *_hop(seen[hop], flags)) for hop in (hops if flags == "S" else reversed(hops))]
            step.figures.append(Figure((what + " at", "from", "to", "carried"), rows))
            _expect(all(row[1] != "not seen" for row in rows), f"{what} was not seen at every hop")
        _expect(FAR.v4 in _hop(seen["client-1, eth0"], "SA")[0], "the answer does not come from the Service's address")

    def refusal(self, step: Step) -> None:
        """A Service without endpoints refuses at once: The client is told, and does not wait for a time-out."""
        self._expose("empty", EMPTY, [])
        places = {"client-1": self._pod("client-1").space, "node1": self._node(1).space}
        deadline = time.monotonic() + FOLLOW_S
        while any(
            answer.get("error") != "ECONNREFUSED"
            for place in places.values()
            for answer in _ask(place, "tcp", EMPTY.v4)
        ):
            _expect(
                time.monotonic() < deadline, f"{EMPTY.v4} is not refused {FOLLOW_S} s after its manifest was written"
            )
        rows = []
        for where, space in places.items():
            for protocol in ("tcp", "udp"):
                for address in EMPTY:
                    answer = _ask(space, protocol, address)[0]
                    rows.append((where, f"{address} {protocol}", str(answer.get("error")), str(answer["took_ms"])))
        step.figures.append(Figure(("from", "to", "what the client got", "after ms"), rows))
        _expect(all(row[2] == "ECONNREFUSED" for row in rows), "something other than a refusal")

    def nodeport(self, step: Step) -> None:
        """A client outside reaches a NodePort of any node: Backends on both nodes see its own address."""
        self._expose("web", WEB, SERVERS, node_port=NODE_PORT)
        entry, client = self._node(1).address, self._lab.client
        address = addresses.underlay(addresses.CLIENT)
        self._until_served(entry.v4, SERVERS, NODE_PORT, [client])
        self._show_balance(step, client, "tcp", entry.v4, address.v4, NODE_PORT)
        self._show_balance(step, client, "udp", entry.v6, address.v6, NODE_PORT)
        step.did = [
            f"# in client: 200 times connect {entry.v4}:{NODE_PORT}, 200 times send to [{entry.v6}]:{NODE_PORT}"
        ]

    def entry_return(self, step: Step) -> None:
        """Entered at node1 for a pod on node2: Handed over with the client's address, answered through node1."""
        self._expose("far", FAR, ["web-3"], node_port=FAR_NODE_PORT)
        self._until_served(self._node(1).address.v4, ["web-3"], FAR_NODE_PORT, [self._lab.client])
        external.show(step, self._scene(), direct=False, tunnel=False)

    def direct_return(self, step: Step) -> None:
        """The same with direct return: The pod's node answers the client itself, as the one it talked to."""
        self._switch(step, return_path="direct")
        external.show(step, self._scene(), direct=True, tunnel=False)

    def in_vxlan(self, step: Step) -> None:
        """The same where frames between the nodes may bear no foreign address: Handed over in VXLAN."""
        self._switch(step, handover="vxlan")
        external.show(step, self._scene(), direct=True, tunnel=True)
        self._switch(step, handover="auto", return_path="entry")

    def _switch(self, step: Step, **settings: str) -> None:
        """Changes settings of both nodes, and starts their controllers anew."""
        words = ", ".join(f"{name}: {value}" for name, value in settings.items())
        step.did.append(f"# on both nodes: {words} in /etc/calico-ebpf/config.yaml, and the controller anew")
        for node in self._lab.nodes:
            node.configure(**settings)
            node.stop(CONTROLLER)
            node.start(CONTROLLER)
        for node in self._lab.nodes:
            node.wait_ready()

    def _scene(self) -> external.Scene:
        return external.Scene(self._lab.client, self._node(1), self._node(2), self._pod("web-3"), FAR_NODE_PORT)

    def endpoint_leaves(self, step: Step) -> None:
        """An endpoint goes away under load without a lost request: It gets nothing new, and keeps what it has."""
        load = self._start_load()
        time.sleep(2)
        self._expose("web", WEB, SERVERS, terminating=["web-2"])
        time.sleep(2)
        report = _end_load(load)
        step.did = [
            f"# in client-1: {LOAD_RATE} connections a second to {WEB.v4}, and {LOAD_LASTING} that stay",
            "# after 2 s: web-2 is terminating (ready: false) in web.yaml",
        ]
        self._show_load(step, report)
        last = max(tick for tick, names in enumerate(report["by_tick"]) if names.get("web-2"))
        _expect(last < len(report["by_tick"]) - 2, "web-2 went on being given connections")
        step.seen.append(f"web-2 got its last new connection between {last / 2:.1f} and {last / 2 + 0.5:.1f} s")
        self._expose("web", WEB, [name for name in SERVERS if name != "web-2"])
        self._node(1).remove_pod("web-2")

    def daemons_killed(self, step: Step) -> None:
        """All daemons are killed under load, and nothing is lost: The data plane needs none of them."""
        load = self._start_load()
        time.sleep(1)
        for node in self._lab.nodes:
            node.kill(CONTROLLER)
            node.kill(CNI_SERVER)
        time.sleep(1.5)
        for node in self._lab.nodes:
            node.start(CNI_SERVER)
            node.start(CONTROLLER)
        for node in self._lab.nodes:
            node.wait_ready()
        report = _end_load(load)
        step.did = ["# after 1 s: kill -9 of controller and cni-server on node1 and node2; 1.5 s later, both again"]
        self._show_load(step, report)

    def pods_removed(self, step: Step) -> None:
        """Pods that go leave nothing: Their links, routes and map entries are gone with them."""
        crowd = [f"crowd-{number}" for number in range(10)]
        node = self._node(2)
        before = _traces(node)
        for name in crowd:
            node.add_pod(name, serve=False)
        during = _traces(node)
        for name in crowd:
            node.remove_pod(name)
        after = _traces(node)
        step.did = ["# on node2: ten pods, CNI_COMMAND=ADD, then DEL"]
        rows = [(kind, str(before[kind]), str(during[kind]), str(after[kind])) for kind in before]
        step.figures.append(Figure(("on node2", "before", "with ten more pods", "after"), rows))
        _expect(before == after, "something of the pods is left")

    def _picture(self) -> list[Box]:
        """The nodes with their pods, and the client outside."""
        boxes = []
        for node in self._lab.nodes:
            pods = [(name, f"{pod.address.v4} · {pod.address.v6}") for name, pod in node.pods.items()]
            lines = [f"{node.address.v4} · {node.address.v6}", f"pods {' · '.join(addresses.pod_ranges(node.index))}"]
            boxes.append(Box(node.name, lines, pods))
        return [*boxes, Box("client, outside", [" · ".join(addresses.underlay(addresses.CLIENT))])]

    def _node(self, index: int) -> Node:
        return self._lab.nodes[index - 1]

    def _pod(self, name: str) -> Pod:
        return self._node((SERVERS | CLIENTS)[name]).pods[name]

    def _expose(
        self, name: str, address: Dual, pods: Iterable[str], terminating: Iterable[str] = (), node_port: int = 0
    ) -> None:
        """Writes a Service's manifest: at PORT and, where there is one, a NodePort; backed by pods."""
        backends = [(self._pod(pod).address, self._pod(pod).node.name) for pod in pods]
        slices = source.endpoints(name, backends, runtime.PORT)
        going = {text for pod in terminating for text in self._pod(pod).address}
        for endpoint in (endpoint for one in slices for endpoint in one["endpoints"]):
            if endpoint["addresses"][0] in going:
                endpoint["conditions"] = {"ready": False, "serving": True, "terminating": True}
        service = source.service(name, address, PORT, runtime.PORT)
        if node_port:
            service = source.reached_from_outside(service, node_port)
        self._source.apply(name, [service, *slices])

    def _until_served(
        self, address: str, pods: Iterable[str], port: int = PORT, places: Iterable[Space] | None = None
    ) -> float:
        """Asks, from pods of both nodes or from `places`, until all of `pods` answer; how long that took, in ms."""
        began = time.monotonic()
        for place in places or (self._pod("client-1").space, self._pod("client-2").space):
            while not set(pods) <= {answer.get("name") for answer in _ask(place, "tcp", address, 20, port)}:
                _expect(time.monotonic() < began + FOLLOW_S, f"{address} is not served {FOLLOW_S} s after its manifest")
        return (time.monotonic() - began) * 1000

    def _show_balance(
        self, step: Step, where: Space, protocol: str, address: str, seen_as: str, port: int = PORT
    ) -> None:
        answers = _ask(where, protocol, address, 200, port)
        errors = Counter(answer["error"] for answer in answers if "error" in answer)
        _expect(not errors, f"of 200 questions failed: {dict(errors)}")
        counts = Counter(answer["name"] for answer in answers)
        rows = [(name, f"node{SERVERS[name]}", str(counts[name])) for name in sorted(counts)]
        step.figures.append(Figure(("backend", "on", "answers"), rows, bar_of="answers"))
        peers, took = {answer["peer"] for answer in answers}, statistics.median(answer["took_ms"] for answer in answers)
        step.seen.append(f"the servers saw the client as {', '.join(sorted(peers))}; {took:.2f} ms each (median)")
        believed = {answer["believed_peer"] for answer in answers}
        step.seen.append(f"the client believes to talk to {', '.join(sorted(believed))}")
        _expect(set(counts) == set(SERVERS), f"only {sorted(counts)} answered")
        _expect(peers == {seen_as}, f"the servers should have seen {seen_as}")
        _expect(believed == {address}, f"the client should believe to talk to {address}")

    def _start_load(self) -> "subprocess.Popen[str]":
        flags = ("--rate", str(LOAD_RATE), "--lasting", str(LOAD_LASTING), "--seconds", str(LOAD_S))
        load = self._pod("client-1").space.start(*tool("load", WEB.v4, str(PORT), *flags))
        if load.stdout is None or load.stdout.readline() != "started\n":
            raise StepError(f"the load did not start: {load.communicate()[1].strip()}")
        return load

    def _show_load(self, step: Step, report: dict[str, Any]) -> None:
        names = sorted(report["by_name"])
        rows = [
            (f"{tick / 2:.1f}", *(str(counts.get(name, 0)) for name in names))
            for tick, counts in enumerate(report["by_tick"])
        ]
        step.figures.append(Figure(("seconds", *names), rows))
        failed, lasting = report["failed"], report["lasting_failed"]
        step.seen.append(
            f"{report['asked']} connections, {sum(failed.values())} failed; of {LOAD_LASTING} lasting ones "
            f"{sum(lasting.values())} failed; the slowest answer took {report['slowest_ms']:.0f} ms"
        )
        _expect(not failed and not lasting, f"failed: {failed}, lasting: {lasting}")


def _expect(so: bool, otherwise: str) -> None:
    if not so:
        raise StepError(otherwise)


def _ask(where: Space, protocol: str, address: str, count: int = 1, port: int = PORT) -> list[dict[str, Any]]:
    process = where.run(*tool("ask", protocol, address, str(port), "--count", str(count)))
    return [json.loads(line) for line in process.stdout.splitlines()]


def _end_load(load: "subprocess.Popen[str]") -> dict[str, Any]:
    output, complaint = load.communicate(timeout=60)
    try:
        report: dict[str, Any] = json.loads(output)
    except ValueError:
        raise StepError(f"the load failed: {complaint.strip()[-500:]}") from None
    return report


def _hop(packets: list[dict[str, Any]], flags: str) -> tuple[str, str, str]:
    """The first packet with these TCP flags: from, to, how it was carried."""
    for packet in packets:
        if packet["flags"] == flags:
            how = "in VXLAN" if "outer" in packet else "as it is"
            return f"{packet['src']}:{packet['sport']}", f"{packet['dst']}:{packet['dport']}", how
    return "not seen", "", ""


def _programs(node: Node) -> str:
    """How many of our programs are pinned on a node."""
    return str(len(list(node.space.path(f"{PINS}/programs/").iterdir())))


def _traces(node: Node) -> dict[str, int]:
    """How much a node holds that belongs to pods, by kind."""
    count: Callable[..., int] = lambda *command: len(node.space.run(*command).stdout.splitlines())  # noqa: E731
    pods_map = f"{PINS}/maps/pods"
    return {
        "links": count("ip", "-o", "link"),
        "routes": count("ip", "-o", "route") + count("ip", "-o", "-6", "route"),
        "neighbour entries": count("ip", "-o", "neigh", "show", "nud", "permanent"),
        "pods in the map": len(json.loads(node.space.run("bpftool", "-j", "map", "dump", "pinned", pods_map).stdout)),
        "addresses taken": count(
            "sh", "-c", "find /var/lib/cni/networks -type f -name '*[.:]*' ! -name last_reserved*"
        ),
    }
