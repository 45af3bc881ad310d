# SPDX-License-Identifier: Apache-2.0
"""Keeps the node's own network as it should be: programs on the underlay and the overlay, routes to other nodes' pods,
forwarding, and what the CNI plugin has to know of the node (node.json).

What should be there is decided in `nodes`; here it is compared with what is, and the difference carried out. Runs in
the controller's thread, when Nodes change, when the kernel says that devices or routes did, and with the audit.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog

from bpf import attach, bpftool, files, syscall
from bpf.abi import DeviceFlag, Remote, RemoteFlag
from bpf.address import is_v4, packed, text
from bpf.errors import BpfError
from bpf.pins import Pins
from bpf.prefixes import prefixes
from bpf.settings import UNMASQUERADED_MAX, Settings
from controller import devices, nodes
from controller.devices import Device
from controller.errors import NetworkError
from controller.masqagent import RangesFile
from controller.model import Node
from controller.nodes import Network, NodeFacts, Route, Ways
from controller.peers import State, Target, Watch
from controller.routes import OVERLAY_ADDRESS, OVERLAY_MAC, Netlink, Snapshot
from controller.source import Problem
from controller.sysctl import Sysctls, parse_ports

log = structlog.get_logger()

UNDERLAY_HOOKS = ("from_netdev", "to_netdev")
OTHER_HOOKS = ("from_other", "to_netdev")
# At devices without a link layer, of either.
LAYER_3_HOOKS = ("from_l3", "to_l3")
OVERLAY_HOOKS = ("from_overlay", "to_overlay")
# Of all but pod links, which are the CNI plugin's.
HOOKS = frozenset((*UNDERLAY_HOOKS, *OTHER_HOOKS, *LAYER_3_HOOKS, *OVERLAY_HOOKS))

# In place of names, in the setting client_devices.
NO_DEVICES = "none"

HANDOVER_FILE = "handover.json"

# Routes written in one go: at 0.7 ms each, Services must not wait for those of thousands of nodes.
ROUTES_AT_ONCE = 50


class NodeNetwork:
    """Attributes:
    entries: what each map of the network should hold, packed; None: that is not known yet.
    problems: of Nodes, and of what could not be done.
    failed: whether something could not be done in the last sync.
    """

    def __init__(self, settings: Settings, pins: Pins, netlink: Netlink, peers: Watch) -> None:
        self._settings = settings
        self._pins = pins
        self._netlink = netlink
        self._peers = peers
        self._sysctls = Sysctls(settings.proc_sys, settings.state_dir)
        self._steering = nodes.Steering(settings.encapsulation, settings.handover)
        self._peer_state = State({}, frozenset())
        self._facts: dict[str, tuple[NodeFacts, tuple[Problem, ...]]] = {}
        self._own: NodeFacts | None = None
        self._own_present = False
        self._listed = False
        self._services: dict[bytes, bytes] = {}
        room = UNMASQUERADED_MAX - len(prefixes(settings.non_masquerade_cidrs))
        self._masq_agent = RangesFile(settings.ip_masq_agent_file, room)
        self._ways: dict[str, Ways] = {}
        self._changed: set[str] = set()
        self._network = Network(())
        self._snapshot: Snapshot | None = None
        self._devices_now: tuple[set[int], set[int]] = set(), set()
        self._refused: set[Route] = set()
        self._told: dict[str, bytes] = {}
        self._without_xdp: list[Problem] = []
        self._xdp_refusals: dict[tuple[Device, int, int], Problem] = {}
        self.entries: dict[str, dict[bytes, bytes]] | None = None
        self.problems: list[Problem] = []
        self.failed = False

    @property
    def eligible(self) -> bool:
        """Whether load balancers may send this node traffic: its Node has not gone, nor is about to."""
        if self._own is None:
            return not self._listed
        return self._own_present and self._own.eligible

    @property
    def node_count(self) -> int:
        return len(self._facts)

    def set_node(self, name: str, node: Node | None) -> bool:
        """Takes note of a Node; None: it is gone. Returns whether a sync is needed."""
        before = self._facts.get(name)
        if node:
            self._facts[name] = nodes.facts(node)
        else:
            self._facts.pop(name, None)
        if name == self._settings.node_name:
            self._set_own(self._facts.get(name))
        if self._facts.get(name) == before:
            return False
        self._changed.add(name)
        return True

    def remember(self, remotes: Mapping[bytes, bytes]) -> None:
        """Takes over the ranges of Services that an earlier controller left in `remotes`, until others are set."""
        self._services = {
            key: value for key, value in remotes.items() if Remote.unpack(value).flags & RemoteFlag.SERVICES
        }

    def set_service_ranges(self, ranges: Iterable[str], all_known: bool) -> bool:
        """Has what is sent to addresses of Services that none of them has end here. Returns whether a sync is needed.

        Args:
            all_known: these are all; else those that are remembered stay as well.
        """
        before, found = self._services, nodes.service_entries(ranges)
        self._services = found if all_known else before | found
        return self._services != before

    def forget(self, everything: bool = False) -> None:
        """Has the next sync look at devices, routes and programs again, not only at what it did itself.

        Args:
            everything: also at what drivers have refused before.
        """
        self._snapshot = None
        if everything:
            self._xdp_refusals.clear()

    def sync(self, listed: bool) -> bool:
        """Brings the network in order.

        Args:
            listed: every Node is known; before, programs are attached, and nothing is taken away.

        Returns:
            Whether there is more to do: another sync goes on with it.
        """
        self.problems = [problem for _, problems in self._facts.values() for problem in problems]
        self._listed = listed
        if listed and not self._own_present:
            name = self._settings.node_name
            self.problems.append(Problem("this node", f"there is no Node named {name}: see the setting node_name"))
        self.failed = False
        try:
            more = self._sync(listed)
        except (NetworkError, BpfError, OSError) as error:
            self.failed = True
            self.problems.append(Problem("network", str(error)))
        if self.failed:
            self.forget()
        return self.failed or more

    def _sync(self, listed: bool) -> bool:
        looked = self._snapshot is None
        snapshot = self._look()
        underlay = self._underlay(snapshot)
        # Before, one that holds this node's address would be taken for another.
        known = listed and self._own is not None
        others = self._others(snapshot, underlay) if known else set()
        mtus = [snapshot.devices[ifindex].mtu for ifindex in underlay]
        pod_mtu = nodes.pod_mtu(mtus, self._own, self._steering)
        overlay_mtu = nodes.overlay_mtu(mtus, self._own)
        if listed:
            self._find_ways(snapshot)
            if self._replace_overlay(snapshot.overlay(), overlay_mtu):
                self.forget()
                looked, snapshot = True, self._look()
                self._find_ways(snapshot)
        overlay = snapshot.overlay()
        if looked or (underlay, others) != self._devices_now:
            if overlay:
                self._keep_overlay(overlay, overlay_mtu, snapshot.addresses)
            wanted = dict.fromkeys(underlay, UNDERLAY_HOOKS) | dict.fromkeys(others, OTHER_HOOKS)
            wanted |= {ifindex: LAYER_3_HOOKS for ifindex in wanted if snapshot.devices[ifindex].layer_3}
            if overlay:
                wanted[overlay.ifindex] = OVERLAY_HOOKS
            self._attach(snapshot, wanted, known)
            self._attach_xdp(underlay, snapshot, known)
            self._set_sysctls(snapshot, underlay)
            self._devices_now = underlay, others
        self.problems += self._without_xdp
        if not listed:
            return False
        self._tell_cni(pod_mtu)
        self._peers.watch(self._targets(snapshot))
        remotes, routes, problems = nodes.merged(self._ways, self._addresses())
        links = {nodes.POD_LINKS: pod_mtu} | ({overlay.ifindex: overlay_mtu} if overlay else {})
        self.entries = {
            **self._entries(snapshot, underlay | others, remotes),
            "devices": self._device_entries(snapshot, underlay, others, links),
        }
        self._tell_handovers()
        self.problems += problems
        self._sync_unreachable(snapshot.unreachable)
        return self._sync_routes(routes, snapshot.routes)

    def _look(self) -> Snapshot:
        self._snapshot = self._snapshot or self._netlink.snapshot()
        return self._snapshot

    def _set_own(self, found: tuple[NodeFacts, tuple[Problem, ...]] | None) -> None:
        """A node whose Node is deleted keeps its addresses and pods, and works on."""
        self._own_present = found is not None
        if found is None:
            log.warning("own-node-gone", node=self._settings.node_name)
            return
        facts = found[0]
        if self._own:
            # One that was registered anew may come before its ranges do.
            kept = facts.pod_cidrs or self._own.pod_cidrs, facts.addresses or self._own.addresses
            facts = facts._replace(pod_cidrs=kept[0], addresses=kept[1])
        if facts != self._own:
            self._own = facts
            self._ways = {}

    def _underlay(self, snapshot: Snapshot) -> set[int]:
        if self._settings.underlay_devices:
            return self._named(snapshot, self._settings.underlay_devices)
        found = devices.underlay(snapshot.devices, self._own, snapshot.hops, snapshot.addresses)
        if not found:
            self.problems.append(Problem("network", "no underlay device: no default route, and no InternalIP is here"))
        return found

    def _others(self, snapshot: Snapshot, underlay: set[int]) -> set[int]:
        """Devices besides, by which clients come."""
        named = self._settings.client_devices
        if not named:
            return devices.others(snapshot.devices, underlay, snapshot.hops)
        return self._named(snapshot, [name for name in named if name != NO_DEVICES]) - underlay

    def _named(self, snapshot: Snapshot, names: Iterable[str]) -> set[int]:
        found = {device.name: ifindex for ifindex, device in snapshot.devices.items()}
        self.problems += [Problem(f"device {name}", "not there") for name in names if name not in found]
        return {found[name] for name in names if name in found}

    def _set_sysctls(self, snapshot: Snapshot, underlay: set[int]) -> None:
        settings = self._settings
        first, count = settings.masquerade_port_min, settings.masquerade_ports
        masquerade = range(first, first + (0 if settings.masquerade == "off" else count))
        others = [device.name for device in snapshot.devices.values() if devices.may_have_routers(device)]
        self._done(self._sysctls.enable_forwarding, [snapshot.devices[one].name for one in underlay], others)
        self._done(self._sysctls.reserve_ports, {*masquerade, *parse_ports(settings.node_port_range)})

    def _targets(self, snapshot: Snapshot) -> dict[bytes, Target]:
        """How the other nodes' addresses are reached that need no router; of interest where layer 2 is."""
        targets: dict[bytes, Target] = {}
        if self._settings.handover == "vxlan":
            return targets
        for one in self._ways.values():
            for address, ifindex in one.on_link.items():
                device = snapshot.devices.get(ifindex)
                if device and len(device.mac) == 6 and any(device.mac):
                    source = nodes.address_on(ifindex, 4 if is_v4(address) else 6, snapshot.addresses, self._own)
                    targets[address] = Target(
                        ifindex, device.name, device.mac, source if source != nodes.NOBODY else b""
                    )
        return targets

    def _entries(
        self, snapshot: Snapshot, clients_by: set[int], remotes: dict[bytes, bytes]
    ) -> dict[str, dict[bytes, bytes]]:
        all_facts = [self._facts[name][0] for name in sorted(self._ways)]
        mine = [address for address, ifindex in snapshot.addresses.items() if ifindex in clients_by]
        return {
            "remotes": self._services | remotes,
            "nodes": self._node_entries(all_facts, mine),
            "peers": nodes.peer_entries(all_facts, self._peer_state.macs, self._settings.handover),
            "unmasqueraded": nodes.unmasqueraded_entries(self._unmasqueraded()),
        }

    def _addresses(self) -> set[tuple[bytes, str]]:
        """The nodes' own, this one's among them, each with its node's name."""
        known = [*(facts for facts, _ in self._facts.values()), *([self._own] if self._own else [])]
        return {(address, facts.name) for facts in known for address in facts.addresses}

    def _unmasqueraded(self) -> set[str]:
        found, problems = self._masq_agent.read()
        self.problems += problems
        return {*self._settings.non_masquerade_cidrs, *found}

    def _device_entries(
        self, snapshot: Snapshot, underlay: set[int], others: set[int], links: Mapping[int, int]
    ) -> dict[bytes, bytes]:
        """Of every device by which packets leave, whether or not there are programs on it. What does not fit into the
        map is the last: the underlay comes before what is beside it.

        Args:
            links: ifindex -> MTU in bytes, of those without addresses of their own.
        """
        besides = others | devices.leading_out(snapshot.devices, snapshot.hops) - underlay

        def entries(ifindexes: Iterable[int], masquerade: str, flags: DeviceFlag) -> dict[bytes, bytes]:
            there = (snapshot.devices[ifindex] for ifindex in ifindexes)
            known = {device.ifindex: (device.mtu, device.mac) for device in there}
            return nodes.device_entries(known, snapshot.addresses, self._own, masquerade, flags)

        found = entries(underlay, self._settings.masquerade, nodes.NO_FLAGS)
        for ifindex, mtu in links.items():
            found |= nodes.link_entry(ifindex, mtu, self._own)
        return found | entries(besides, "off", DeviceFlag.OTHER)

    def _node_entries(self, all_facts: Iterable[NodeFacts], mine: Iterable[bytes]) -> dict[bytes, bytes]:
        ranges = self._settings.node_port_addresses
        entries = nodes.node_entries(all_facts, self._own, mine, ranges)
        if not nodes.has_node_ports(entries):
            told = f"no address of this node is in {', '.join(ranges)}: it has no NodePorts"
            self.problems.append(Problem("node_port_addresses", told))
        return entries

    def _find_ways(self, snapshot: Snapshot) -> None:
        """Works out the ways of the nodes that changed, or of all where the network did."""
        overlay = snapshot.overlay()
        layer_3 = frozenset(ifindex for ifindex, device in snapshot.devices.items() if device.layer_3)
        network = Network(snapshot.hops, overlay.ifindex if overlay else 0, frozenset(snapshot.addresses), layer_3)
        before, self._peer_state = self._peer_state, self._peers.state()
        self._changed |= {
            name
            for name, one in self._ways.items()
            if (before.answered ^ self._peer_state.answered).intersection(one.on_link)
        }
        steering = self._steering._replace(answered=self._peer_state.answered)
        if network != self._network or not self._ways:
            self._network, self._changed = network, {*self._facts, *self._ways}
        for name in self._changed:
            if name in self._facts and name != self._settings.node_name:
                found = self._facts[name][0]
                self._ways[name] = nodes.ways(found, self._own, network, steering)
            else:
                self._ways.pop(name, None)
        self._changed = set()

    def _replace_overlay(self, found: Device | None, mtu: int) -> bool:
        """Makes the overlay device where a node needs it, removes it where none does, and does both where its port is
        another, or it is not ours; returns whether it did."""
        ways = self._ways.values()
        port = self._settings.overlay_port if any(one.overlay for one in ways) else 0
        if port == (found.overlay_port if found and not found.plain else 0):
            return False
        if not port and not all(one.handovers for one in ways):
            return False  # a node that no route leads to may come back, and its flows in the tunnel with it
        if found and not self._done(self._netlink.remove_overlay, found.ifindex):
            return False
        # Flows in the tunnel have noted the device's index: one made anew keeps it.
        if port and not self._done(self._netlink.create_overlay, port, mtu, found.ifindex if found else 0):
            return False
        log.info("overlay-made" if port else "overlay-removed", device=nodes.OVERLAY_NAME, port=port, mtu=mtu)
        return True

    def _keep_overlay(self, device: Device, mtu: int, addresses: Mapping[bytes, int]) -> None:
        # An outside client's packet for the host's own process comes out of the tunnel, its source is routed elsewhere.
        self._done(self._sysctls.loosen, nodes.OVERLAY_NAME)
        if device.mac.hex(":") != OVERLAY_MAC:
            self._done(self._netlink.set_overlay_mac, device.ifindex)
        if addresses.get(packed(OVERLAY_ADDRESS)) != device.ifindex:
            self._done(self._netlink.set_overlay_address, device.ifindex)
        if not device.up:
            self._done(self._sysctls.quiet, nodes.OVERLAY_NAME)
            self._done(self._netlink.set_up, device.ifindex)
        if device.mtu != mtu:
            self._done(self._netlink.set_mtu, device.ifindex, mtu)

    def _attach(self, snapshot: Snapshot, wanted: Mapping[int, tuple[str, ...]], known: bool) -> None:
        """Attaches hooks by ifindex, and takes them off other devices once it is `known` which are wanted: until then
        what stands there stays, with the programs of today."""
        found = _programs()
        ours = {ifindex: hooks for ifindex, there in found.items() if (hooks := tuple(HOOKS.intersection(there)))}
        if not known:
            wanted = {ifindex: hooks for ifindex, hooks in ours.items() if ifindex in snapshot.devices} | {**wanted}
        for ifindex, hooks in wanted.items():
            self._attach_device(ifindex, hooks, found.get(ifindex, {}), snapshot)
        if known:
            for ifindex in ours.keys() - wanted.keys():
                for hook in UNDERLAY_HOOKS:  # whichever stands on its side
                    self._done(self._netlink.detach, ifindex, hook)

    def _attach_xdp(self, underlay: set[int], snapshot: Snapshot, known: bool) -> None:
        """Until it is `known` which devices are wanted, what stands there stays, with the program of today. A driver
        that takes none is no failure, and is asked again when its device has changed, or all is looked at: TC does the
        same."""
        found = bpftool.xdp_programs()
        ours = {item["ifindex"]: item["id"] for item in found if item["name"] == attach.XDP_PROGRAM}
        there = self._pins.program(attach.XDP_PROGRAM).exists()
        self._without_xdp = []
        wanted = ours.keys() & snapshot.devices.keys() if there else set()
        if known:
            wanted = self._xdp_devices(underlay, snapshot, there)
        for ifindex in sorted(ours.keys() - wanted):
            if self._done(self._netlink.detach_xdp, ifindex, ours[ifindex]):
                log.info("xdp-detached", ifindex=ifindex)
        current = _program_id(self._pins, attach.XDP_PROGRAM) if wanted else 0
        asked = {
            (snapshot.devices[ifindex], held, current)
            for ifindex in wanted
            if (held := ours.get(ifindex, 0)) != current
        }
        self._xdp_refusals = {one: problem for one, problem in self._xdp_refusals.items() if one in asked}
        for one in sorted(asked - self._xdp_refusals.keys()):
            device, held, _ = one
            try:
                self._netlink.attach_xdp(device.ifindex, self._pins, held)
            except NetworkError as error:
                self._xdp_refusals[one] = Problem(f"device {device.name}", str(error))
            else:
                log.info("xdp-attached", device=device.name)
        self._without_xdp += self._xdp_refusals.values()

    def _xdp_devices(self, underlay: set[int], snapshot: Snapshot, there: bool) -> set[int]:
        """Those of the underlay that are to have XDP; why others do not is noted.

        Args:
            there: the kernel has taken the program.
        """
        if self._settings.xdp != "on":
            return set()
        found = set()
        there_now = (snapshot.devices[ifindex] for ifindex in sorted(underlay))
        for device in (one for one in there_now if not one.layer_3):
            why = (
                self._why_no_xdp(device, snapshot) if there else "the kernel has refused its program, the log says why"
            )
            if why:
                self._without_xdp.append(Problem(f"device {device.name}", f"no XDP: {why}; TC does its work"))
            else:
                found.add(device.ifindex)
        return found

    def _why_no_xdp(self, device: Device, snapshot: Snapshot) -> str:
        """Why XDP would do nothing at a device, or do wrong; "": it would not."""
        if device.kind == devices.BOND:
            return "a bond's parts are not followed"  # where it runs, with indices that the maps do not know
        if devices.has_vlans(snapshot.devices, device.ifindex) and self._netlink.takes_tags(device.name):
            return f"it takes the tags of its VLANs out of frames: `ethtool -K {device.name} rxvlan off`"
        return ""

    def _attach_device(self, ifindex: int, hooks: Iterable[str], found: Mapping[str, int], snapshot: Snapshot) -> None:
        for hook in hooks:
            stale = found.get(hook) != _program_id(self._pins, hook)
            if stale and self._done(self._netlink.attach, ifindex, hook, self._pins):
                log.info("program-attached", hook=hook, device=snapshot.devices[ifindex].name)

    def _tell_cni(self, mtu: int) -> None:
        """node.json: what the CNI plugin takes for granted where its configuration says nothing. Without the Node, what
        an earlier controller knew stays: pods can still be made."""
        if not self._own:
            return
        facts = {
            "name": self._settings.node_name,
            "addresses": [text(address) for address in self._own.addresses],
            "pod_cidrs": list(self._own.pod_cidrs),
            "mtu": mtu,
        }
        self._tell("node.json", json.dumps(facts).encode())

    def _tell_handovers(self) -> None:
        """handover.json: how outside clients' packets go to each node, for `status` and `doctor`."""
        ways = [
            {"node": name, "address": text(one.address), "way": one.way, "why": one.why}
            for name in sorted(self._ways)
            for one in self._ways[name].handovers
        ]
        settings = self._settings
        told = {"handover": settings.handover, "return_path": settings.return_path, "nodes": ways}
        self._tell(HANDOVER_FILE, json.dumps(told).encode())

    def _tell(self, name: str, content: bytes) -> None:
        path: Path = self._settings.run_dir / name
        if (content != self._told.get(name) or not path.exists()) and self._done(files.write, path, content):
            self._told[name] = content

    def _sync_routes(self, wanted: Mapping[str, Route], found: dict[str, Route]) -> bool:
        """Writes a part of the difference, additions and changes first, and notes it in `found`; returns whether there
        is more."""
        changed = [route for cidr, route in wanted.items() if found.get(cidr) != route]
        gone = [route for cidr, route in found.items() if cidr not in wanted]
        # What failed comes last: it must not keep the others waiting.
        changed.sort(key=lambda route: route in self._refused)
        self._refused.clear()
        for route in changed[:ROUTES_AT_ONCE]:
            if self._done(self._netlink.set_route, route):
                found[route.cidr] = route
            else:
                self._refused.add(route)
        for route in gone[: max(0, ROUTES_AT_ONCE - len(changed))]:
            if self._done(self._netlink.remove_route, route):
                del found[route.cidr]
        return len(changed) + len(gone) > ROUTES_AT_ONCE

    def _sync_unreachable(self, found: set[str]) -> None:
        """Has packets for pods of this node that are not there end here, in place of going by the default route and
        coming back. Their own routes, to single addresses, come before; without the Node, what was stays."""
        if self._own is None:
            return
        wanted = set(self._own.pod_cidrs)
        for cidr in wanted - found:
            if self._done(self._netlink.set_unreachable, cidr):
                found.add(cidr)
        for cidr in found - wanted:
            if self._done(self._netlink.remove_unreachable, cidr):
                found.discard(cidr)

    def _done(self, action: Callable[..., None], *arguments: object) -> bool:
        """Whether it succeeded; a failure is noted, tried again later, and keeps nothing else from being done."""
        try:
            action(*arguments)
        except (NetworkError, BpfError, OSError, ValueError) as error:
            self.problems.append(Problem("network", str(error)))
            self.failed = True
            return False
        return True


def _programs() -> dict[int, dict[str, int]]:
    """Our hooks on each device, pod links included, with the ids of their programs."""
    found: dict[int, dict[str, int]] = {}
    for item in bpftool.filters():
        if item.get("name", "").startswith(attach.FILTER_PREFIX):
            found.setdefault(item["ifindex"], {})[item["name"].removeprefix(attach.FILTER_PREFIX)] = item["id"]
    return found


def _program_id(pins: Pins, hook: str) -> int:
    with pins.opened_program(hook) as fd:
        return syscall.program_id(fd)
