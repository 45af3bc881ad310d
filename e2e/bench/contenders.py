# SPDX-License-Identifier: Apache-2.0
"""The contenders: each brings up nodes of its own in the lab, and makes pods there through its own CNI plugin."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any, Protocol

from e2e import kubernetes
from e2e.bench import machine
from e2e.bench.lab import BenchLab, BenchNode
from e2e.bench.outcome import OURS
from e2e.bench.tool import ROOT
from e2e.lab import addresses, network, node, runtime
from e2e.lab.node import Node
from e2e.lab.source import ApiSource, Source
from e2e.lab.space import LabError

REFERENCE_PLUGINS = Path("/usr/lib/cni")
KUBE_PROXY = "kube-proxy"
OVERLAY = "reference-vx"
IN_FORCE_S = 300


class Contender(Protocol):
    """Attributes:
    name: as the report shows it.
    has_services: whether pods reach Services.
    nodes: those that `set_up` made.
    """

    name: str
    has_services: bool
    nodes: list[Node]

    def set_up(self, lab: BenchLab, count: int, source: Source) -> None:
        """Makes nodes, with everything of the contender's running on them.

        Raises:
            LabError: something did not start.
        """

    def versions(self) -> dict[str, str]:
        """What it is made of."""


class Ours:
    """calico-ebpf as it is installed: both daemons.

    Args:
        settings: where they are not the defaults.
    """

    name = OURS
    has_services = True

    def __init__(self, **settings: object) -> None:
        self.nodes: list[Node] = []
        self._settings = settings

    def set_up(self, lab: BenchLab, count: int, source: Source) -> None:
        added = [lab.add_node_of(BenchNode) for _ in range(count)]
        self.nodes = list(added)
        lab.announce(source)
        for one in added:
            one.install({**source.settings(), **self._settings})
            one.start(node.CNI_SERVER)
            one.start(node.CONTROLLER)
        for one in added:
            one.wait_ready()

    def versions(self) -> dict[str, str]:
        described = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
        found = subprocess.run(described, capture_output=True, text=True, check=False)
        return {OURS: found.stdout.strip() or "unknown", "python": platform.python_version()}


class Reference:
    """The reference plugins ptp and host-local, configured as kind does, without masquerading; no Services."""

    name = "ptp + host-local"
    has_services = False

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def set_up(self, lab: BenchLab, count: int, source: Source) -> None:
        added = [self.make_node(lab) for _ in range(count)]
        self.nodes = list(added)
        lab.announce(source)
        for one in added:
            one.install_plugins()
            for other in added:
                if other is not one:
                    one.add_route(other)

    def make_node(self, lab: BenchLab) -> "ReferenceNode":
        return lab.add_node_of(ReferenceNode)

    def versions(self) -> dict[str, str]:
        return {"containernetworking-plugins": machine.package("containernetworking-plugins")}


class Nftables(Reference):
    """kube-proxy in nftables mode over the reference plugins, fed by an API server."""

    name = "kube-proxy nftables"
    has_services = True

    def set_up(self, lab: BenchLab, count: int, source: Source) -> None:
        super().set_up(lab, count, source)
        if not isinstance(source, ApiSource):
            raise LabError("kube-proxy needs an API server")
        kubeconfig = str(source.settings()["kubeconfig"])
        for one in self.nodes:
            assert isinstance(one, ReferenceNode)
            one.start_proxy("nftables", kubeconfig)
        for one in self.nodes:
            one.wait_ready()

    def versions(self) -> dict[str, str]:
        found = {"kube-proxy": kubernetes.version(), "nftables": machine.package("nftables")}
        return super().versions() | found


class NftablesOverlay(Nftables):
    """The same with the nodes' pods joined by VXLAN, as flannel does it: a device of the kernel's, learning nothing."""

    name = "kube-proxy nftables in VXLAN"

    def make_node(self, lab: BenchLab) -> "ReferenceNode":
        return lab.add_node_of(OverlayNode)


class Routing(Reference):
    """Plain routes between pods, without Services: the floor under every other."""

    name = "routing alone"


class ReferenceNode(Node):
    """A node with the reference plugins."""

    pod_mtu = 1500

    def install_plugins(self) -> None:
        """Puts the plugins and their configuration where ours are on our nodes."""
        network = {"cniVersion": "1.0.0", "name": "reference", "plugins": [reference_plugin(self.index, self.pod_mtu)]}
        self._put(runtime.CNI_CONF, json.dumps(network).encode(), 0o644)
        for name in ("ptp", "host-local"):
            plugin = REFERENCE_PLUGINS / name
            if not plugin.exists():
                raise LabError(f"{plugin} is missing (Debian package containernetworking-plugins)")
            self._put(f"{runtime.CNI_BIN}/{name}", plugin.read_bytes(), 0o755)
        self.space.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")

    def add_route(self, other: Node) -> None:
        """Leads to another node's pods."""
        self.space.run("ip", "route", "add", addresses.pod_ranges(other.index).v4, "via", other.address.v4)

    def start_proxy(self, mode: str, kubeconfig: str) -> None:
        # The table's size belongs to the machine: a node in a namespace cannot set it.
        flags = [
            f"--proxy-mode={mode}",
            f"--kubeconfig={kubeconfig}",
            f"--hostname-override={self.name}",
            f"--cluster-cidr={addresses.PODS[0]}",
            "--conntrack-max-per-core=0",
            "--conntrack-min=0",
        ]
        binary = str(kubernetes.command(KUBE_PROXY))
        self._daemons[KUBE_PROXY] = self.space.start(binary, *flags, log=self.log(KUBE_PROXY))

    def _is_ready(self) -> bool:
        return self.space.run("nft", "list", "table", "ip", "kube-proxy", check=False).returncode == 0


class OverlayNode(ReferenceNode):
    """One that reaches other nodes' pods through VXLAN."""

    pod_mtu = 1450

    def install_plugins(self) -> None:
        super().install_plugins()
        device = f"type vxlan id 1 dstport 8472 local {self.address.v4} dev {network.DEVICE} nolearning"
        self.space.run("ip", "link", "add", OVERLAY, "address", _overlay_mac(self), "mtu", "1450", *device.split())
        self.space.run("ip", "link", "set", OVERLAY, "up")

    def add_route(self, other: Node) -> None:
        gateway, mac = f"169.254.2.{other.index}", _overlay_mac(other)
        for command in (
            f"ip neigh add {gateway} lladdr {mac} dev {OVERLAY} nud permanent",
            f"bridge fdb add {mac} dev {OVERLAY} dst {other.address.v4}",
            f"ip route add {addresses.pod_ranges(other.index).v4} via {gateway} dev {OVERLAY} onlink",
        ):
            self.space.run(*command.split())


def _overlay_mac(node: Node) -> str:
    return f"02:00:00:00:08:{node.index:02x}"


def reference_plugin(node_index: int, mtu: int = 1500) -> dict[str, Any]:
    """The configuration of ptp with host-local on a node."""
    ranges = [[{"subnet": addresses.pod_ranges(node_index).v4}]]
    return {
        "type": "ptp",
        "mtu": mtu,
        "ipam": {"type": "host-local", "ranges": ranges, "routes": [{"dst": "0.0.0.0/0"}]},
    }
