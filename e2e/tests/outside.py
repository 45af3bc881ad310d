# SPDX-License-Identifier: Apache-2.0
"""What the tests of external traffic play on: the stage's two nodes, Services reached from outside, an outside client.

near, far, both    backends web-1, web-2, or either; externalTrafficPolicy Cluster
near-local, far-local    the same backends; Local
host-near, host-far    a pod in the host's network, of node1 or of node2; Cluster
host-near-local, host-far-local    the same; Local

Each has a NodePort, an external and a load-balancer address by way of either node, TCP and UDP, both families. web-1
and web-2 have the host port MAPPED_PORT.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from e2e.lab import addresses, network, runtime, source
from e2e.lab.addresses import BALANCER, EXTERNAL, Dual
from e2e.lab.cluster import Lab
from e2e.lab.node import Node
from e2e.lab.space import Space
from e2e.tests.stage import PORT, PROTOCOLS, Asker, Stage, ask, pick, wait

HANDOVERS = ("l2", "vxlan")
RETURNS = ("entry", "direct")
MODES = [f"{handover}-{back}" for handover in HANDOVERS for back in RETURNS]

NODE_PORT, EXTERNAL_IP, BALANCER_IP = "NodePort", "external IP", "load balancer"
KINDS = (NODE_PORT, EXTERNAL_IP, BALANCER_IP)
CLUSTER_IP = "cluster IP"
MAPPED_PORT = 8053
CLIENT = addresses.underlay(addresses.CLIENT)
FIRST_NODE_PORT = 30000
# A tunnel between IPv6 addresses adds 70 bytes, and IPv6 wants 1,280 in pods.
TUNNEL_BYTES = 70
TUNNELS_MTU_MIN = 1280 + TUNNEL_BYTES


class Exposed(NamedTuple):
    """A Service of the stage: its number gives its addresses and its NodePort.

    Attributes:
        pods: its backends, by name; a node's name is that of its pod in the host's network.
    """

    number: int
    pods: Sequence[str]
    policy: str

    @property
    def node_port(self) -> int:
        return FIRST_NODE_PORT + self.number


SERVICES = {
    "near": Exposed(21, ["web-1"], "Cluster"),
    "far": Exposed(22, ["web-2"], "Cluster"),
    "both": Exposed(23, ["web-1", "web-2"], "Cluster"),
    "near-local": Exposed(24, ["web-1"], "Local"),
    "far-local": Exposed(25, ["web-2"], "Local"),
    "host-near-local": Exposed(28, ["node1"], "Local"),
    "host-far-local": Exposed(29, ["node2"], "Local"),
    "host-near": Exposed(26, ["node1"], "Cluster"),
    "host-far": Exposed(27, ["node2"], "Cluster"),
}


class Outside(Stage):
    """The stage in one mode.

    Args:
        mode: of MODES.
        mtu: of the client's and the nodes' devices; with tunnels it is no less than leaves pods enough for IPv6.
        xdp: of the nodes' settings; with `on`, frames are as on cables.
    """

    def __init__(self, lab: Lab, mode: str, mtu: int = 1500, xdp: str = "off") -> None:
        super().__init__(lab, "directory")
        self.mode, self._xdp = mode, xdp
        self._askers: dict[Path, Asker] = {}
        self.handover, _, self.way_back = mode.partition("-")
        self.mtu = max(mtu, TUNNELS_MTU_MIN) if self.handover == "vxlan" else mtu

    @property
    def client(self) -> Space:
        return self.lab.client

    def asker(self, where: Space) -> Asker:
        """The one of a space's cgroup."""
        if where.group not in self._askers:
            self._askers[where.group] = Asker(where)
        return self._askers[where.group]

    @property
    def fits(self) -> int:
        """The largest packet of the client's that comes to the other node's backends in one piece."""
        return self.mtu - TUNNEL_BYTES if self.handover == "vxlan" else self.mtu

    def set_up(self) -> None:
        added = [self.lab.add_node() for _ in range(2)]
        for space in (self.client, *(node.space for node in added)):
            network.resize(self.lab.switch, space, self.mtu)
            if self._xdp == "on":
                network.finish_frames(self.lab.switch, space)
        settings = {"handover": self.handover, "return_path": self.way_back, "xdp": self._xdp}
        settings |= {"encapsulation": "never"} if self.mtu < TUNNELS_MTU_MIN else {}
        self.lab.bring_up(added, self.source, settings)
        for node in self.lab.nodes:
            mappings = [
                {"hostPort": MAPPED_PORT, "containerPort": runtime.PORT, "protocol": protocol} for protocol in PROTOCOLS
            ]
            node.add_pod(f"web-{node.index}", port_mappings=mappings)
            node.add_pod(f"ask-{node.index}", serve=False)
            runtime.serve(runtime.host_pod(node.space, "web"), node.name)
        for name, exposed in SERVICES.items():
            self.expose_outside(name, exposed)
        route_services(self.client, self.lab.nodes)
        for name in ("near", "far", "host-near", "host-far"):
            for node in self.lab.nodes:
                address, port = target(node, SERVICES[name], NODE_PORT, "IPv6")
                wait(lambda a=address, p=port: "name" in ask(self.client, "tcp", a, p)[0], 20)  # type: ignore[misc]

    def expose_outside(
        self,
        name: str,
        exposed: Exposed,
        pods: Iterable[str] | None = None,
        way_back: str = "",
        port: int = runtime.PORT,
    ) -> None:
        """Makes the Service; with `pods`, for others than its own; with `way_back`, other than the nodes' setting;
        `port` is its backends'."""
        backends = [self._backend(pod) for pod in (exposed.pods if pods is None else pods)]
        manifest = source.service(name, addresses.service(exposed.number), PORT, port)
        reached = source.reached_from_outside(
            manifest,
            exposed.node_port,
            service_addresses(EXTERNAL, exposed.number),
            service_addresses(BALANCER, exposed.number),
            exposed.policy,
        )
        if way_back:
            reached |= {"metadata": reached["metadata"] | {"annotations": {"calico-ebpf.io/return": way_back}}}
        self.source.apply(name, [reached, *source.endpoints(name, backends, port)])

    def _backend(self, name: str) -> tuple[Dual, str]:
        """A backend's addresses, and the name of its node."""
        for node in self.lab.nodes:
            if node.name == name:
                return node.address, name
        pod = self.pod(name)
        return pod.address, pod.node.name


def service_addresses(plan: tuple[Any, Any], number: int) -> list[str]:
    """A Service's addresses of EXTERNAL or BALANCER, by way of either node."""
    return [address for entry in (1, 2) for address in addresses.outside(plan, entry, number)]


def route_services(client: Space, nodes: Sequence[Node]) -> None:
    """Has the client reach external and load-balancer addresses through the nodes, half of them through each."""
    for plan in (EXTERNAL, BALANCER):
        for whole, family in zip(plan, ("IPv4", "IPv6"), strict=True):
            for half, node in zip(whole.subnets(), nodes[:2], strict=True):
                via = pick(node.address, family)
                client.run("ip", "route", "add", str(half), "via", via, "dev", network.DEVICE)


def route_cluster_ips(client: Space, node: Node) -> None:
    """Has the client reach cluster IPs through a node."""
    network.route(client, node.address, map(str, addresses.SERVICES))


def target(entry: Node, exposed: Exposed, kind: str, family: str) -> tuple[str, int]:
    """The address and port at which a Service is reached through a node."""
    if kind == NODE_PORT:
        return pick(entry.address, family), exposed.node_port
    if kind == CLUSTER_IP:
        return pick(addresses.service(exposed.number), family), PORT
    plan = EXTERNAL if kind == EXTERNAL_IP else BALANCER
    return pick(addresses.outside(plan, entry.index, exposed.number), family), PORT


def transfer(client: Space, server: tuple[str, int]) -> None:
    """Sends a megabyte to a server of the lab, and has as much sent back. Raises LabError."""
    script = (
        f"import socket; c = socket.create_connection({server!r}, 5); c.settimeout(5)\n"
        "c.sendall(b'x' * 1000000 + b'\\n' + b'?\\n' * 10000); seen = 0\n"
        "while seen < 10001: seen += c.recv(1 << 16).count(b'\\n')\n"
    )
    client.run("python3", "-I", "-S", "-c", script)


def drops(node: Node) -> dict[str, int]:
    """Packets that a node has dropped or refused, by reason."""
    counts: dict[str, int] = {}
    for drop in json.loads(node.calico("drops", "--output", "json"))["drops"]:
        counts[drop["reason"]] = counts.get(drop["reason"], 0) + drop["packets"]
    return counts


def counter(node: Node, name: str) -> int:
    return int(json.loads(node.calico("drops", "--output", "json"))["counters"][name])
