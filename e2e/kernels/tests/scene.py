# SPDX-License-Identifier: Apache-2.0
"""What stands in each guest: the node, which is the guest itself, with a pod and an overlay device; a far node, which
is a network namespace, and a stranger, who is another. All with the programs attached as the daemons do it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from bpf.abi import DropReason, Node, NodeKey, Remote, RemoteFlag, RemoteKey
from bpf.address import packed, prefix_bits
from bpf.tests import datapath as dp
from bpf.tests.datapath import Datapath
from bpf.tests.kernel import Programs
from e2e.kernels.guest import tools
from e2e.kernels.machine import Machine

NODE = {4: "192.0.2.1", 6: "2001:db8::1"}
FAR = {4: "192.0.2.2", 6: "2001:db8::2"}
POD = {4: "10.244.0.2", 6: "fd00:10:244::2"}
# The pod's address to which the far node sends in a tunnel that is not the cluster's.
POD_BY_OTHER_VNI = {4: "10.244.0.3", 6: "fd00:10:244::3"}
# Pods of the far node: by the overlay, over a tunnel of each family; by plain routes.
TUNNELLED = {4: "10.244.1.4", 6: "fd00:10:244:1::4"}
ROUTED = {4: "10.244.2.4", 6: "fd00:10:244:2::4"}
STRANGER = {4: "198.51.100.66", 6: "2001:db8:66::66"}
SERVICE = {4: "10.96.0.10", 6: "fd00:10:96::a"}
# Where a process of the node serves.
HOST = {4: "203.0.113.1", 6: "2001:db8:113::1"}

OVERLAY, UNDERLAY, POD_LINK = "calico-vxlan", "under", "cepod"
PATIENCE_S = 20
OVERLAY_MAC = "02:ce:00:00:00:09"

NODE_SCRIPT = f"""
netns add pod
netns add far
netns add stranger
link add {POD_LINK} address {dp.HOST_MAC} type veth peer name eth0 address {dp.POD_MAC} netns pod
link add {UNDERLAY} type veth peer name under netns far
link add aside type veth peer name under netns stranger
link add {OVERLAY} address {OVERLAY_MAC} type vxlan external dstport 4789 nolearning
link set {POD_LINK} up
link set {UNDERLAY} up
link set aside up
link set {OVERLAY} up
address add 192.0.2.1/24 dev {UNDERLAY}
address add 2001:db8::1/64 dev {UNDERLAY} nodad
address add 198.51.100.1/24 dev aside
address add 2001:db8:66::1/64 dev aside nodad
address add 203.0.113.1/32 dev lo
address add 2001:db8:113::1/128 dev lo nodad
route add 10.244.0.2/31 dev {POD_LINK}
route add fd00:10:244::2/127 dev {POD_LINK}
route add 10.244.2.0/24 via 192.0.2.2
route add fd00:10:244:2::/64 via 2001:db8::2
route add 10.96.0.0/24 via 192.0.2.2
route add fd00:10:96::/64 via 2001:db8::2
"""

POD_SCRIPT = f"""
link set lo up
link set eth0 up
address add 10.244.0.2/32 dev eth0
address add 10.244.0.3/32 dev eth0
address add fd00:10:244::2/128 dev eth0 nodad
address add fd00:10:244::3/128 dev eth0 nodad
route add 169.254.1.1 dev eth0 scope link
route add default via 169.254.1.1 dev eth0
route add default via fe80::1 dev eth0 onlink
neighbour add 169.254.1.1 lladdr {dp.HOST_MAC} dev eth0 nud permanent
neighbour add fe80::1 lladdr {dp.HOST_MAC} dev eth0 nud permanent
"""

FAR_SCRIPT = """
link set lo up
link set under up
address add 192.0.2.2/24 dev under
address add 2001:db8::2/64 dev under nodad
address add 10.244.2.4/32 dev lo
address add fd00:10:244:2::4/128 dev lo nodad
route add 203.0.113.1/32 via 192.0.2.1
"""

STRANGER_SCRIPT = """
link set lo up
link set under up
address add 198.51.100.66/24 dev under
address add 2001:db8:66::66/64 dev under nodad
"""


def tunnel(name: str, vni: int, ends: tuple[str, str], source: str, target: str) -> str:
    """A tunnel's device of the far node's or the stranger's, by which `source` reaches `target`."""
    length = 128 if ":" in source else 32
    return f"""
link add {name} address 02:ce:00:00:00:01 type vxlan id {vni} local {ends[0]} remote {ends[1]} dstport 4789
link set {name} up
address add {source}/{length} dev {name} {"nodad" if length == 128 else ""}
route add {target}/{length} dev {name} src {source}
neighbour add {target} lladdr {OVERLAY_MAC} dev {name} nud permanent
"""


class Scene:
    """A guest with all that, and the programs' maps."""

    def __init__(self, guest: Machine, datapath: Datapath) -> None:
        self.guest = guest
        self.datapath = datapath
        self.overlay = guest(tools.ifindex, OVERLAY)
        self._underlay = guest(tools.ifindex, UNDERLAY)
        self._pod_link = guest(tools.ifindex, POD_LINK)

    def populate(self) -> None:
        """Tells the programs of all that, and of nothing else."""
        self.datapath.reset()
        for version in (4, 6):
            for address in (POD[version], POD_BY_OTHER_VNI[version]):
                self.datapath.pod(address, self._pod_link, dp.POD_MAC, dp.HOST_MAC)
            self.datapath.node(NODE[version], own=True)
            self._node(FAR[version])
            bits = 24 if version == 4 else 64
            self._remote(TUNNELLED[version], bits, FAR[version], RemoteFlag.OVERLAY)
            self._remote(ROUTED[version], bits, FAR[version])
        self.datapath.device(self._underlay, addresses=(NODE[4], NODE[6]))

    def strangers_dropped(self) -> int:
        return self.datapath.dropped(DropReason.NOT_A_NODE, self.overlay)

    @contextmanager
    def serving(self, namespace: str, protocol: str, address: str, port: int = 8080) -> Iterator[None]:
        """A server that answers with its client's address and port."""
        process = self.guest(tools.serve, namespace, protocol, address, port)
        try:
            yield
        finally:
            self.guest(tools.stop, process)

    def ask(
        self, namespace: str, protocol: str, address: str, port: int = 8080, source: str = "", size: int = 1
    ) -> str:
        """The address as which a server sees the asker; "" where nothing answers within PATIENCE_S."""
        return self.guest(tools.ask, namespace, protocol, address, port, PATIENCE_S, source, size).partition(" ")[0]

    def ask_in_vain(self, namespace: str, protocol: str, address: str) -> str:
        """As `ask`, for the default port, without waiting for long."""
        return self.guest(tools.ask, namespace, protocol, address, 8080, 1, "").partition(" ")[0]

    def _node(self, address: str) -> None:
        self.datapath.write("nodes", NodeKey(packed(address)).pack(), Node(0).pack())

    def _remote(self, address: str, bits: int, node: str, flags: int = 0) -> None:
        key = RemoteKey(prefix_bits(packed(address), bits), packed(address))
        value = Remote(packed(node), packed(node), self._underlay, self.overlay, flags)
        self.datapath.write("remotes", key.pack(), value.pack())


def build(guest: Machine, programs: Programs) -> Scene:
    """Sets a guest up, once, with programs that are loaded there."""
    guest(tools.ip, "", NODE_SCRIPT)
    guest(tools.ip, "pod", POD_SCRIPT)
    far, stranger = FAR_SCRIPT, STRANGER_SCRIPT
    near = {4: "198.51.100.1", 6: "2001:db8:66::1"}
    for version in (4, 6):
        ends = FAR[version], NODE[version]
        far += tunnel(f"good{version}", 206, ends, TUNNELLED[version], POD[version])
        other = TUNNELLED[version][:-1] + "5"
        far += tunnel(f"other{version}", 5, ends, other, POD_BY_OTHER_VNI[version])
        ends = STRANGER[version], near[version]
        stranger += tunnel(f"good{version}", 206, ends, TUNNELLED[version], POD[version])
    guest(tools.ip, "far", far)
    guest(tools.ip, "stranger", stranger)
    guest(tools.write, {"/proc/sys/net/ipv4/ip_forward": "1", "/proc/sys/net/ipv6/conf/all/forwarding": "1"})
    for device, hooks in (
        (POD_LINK, ("from_pod", "to_pod")),
        (UNDERLAY, ("from_netdev", "to_netdev")),
        (OVERLAY, ("from_overlay", "to_overlay")),
    ):
        guest(tools.attach_device, device, {hook: programs.programs[hook] for hook in hooks})
    guest(tools.attach_cgroup)
    return Scene(guest, Datapath(guest, programs))
