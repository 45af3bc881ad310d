# SPDX-License-Identifier: Apache-2.0
"""The checks of `calico-ebpf doctor` that look at devices, sysctls and other proxies. Nothing is changed."""

from collections.abc import Iterator, Sequence

from bpf.address import packed
from bpf.settings import Settings
from controller import kubeproxy, nodes
from controller import sysctl as reserved_ports
from controller.commands import daemons, handovers, links
from controller.commands.checks import Check, Verdict, check, sysctl
from controller.devices import Device
from controller.network import HANDOVER_FILE
from controller.nodes import overlay_bytes

# What to do about a way of handing over, by the reason for it.
HANDOVER_ADVICE = {
    nodes.NO_TUNNEL: "clients get no answer from backends there: set handover to auto; pods made from then on have a "
    "smaller MTU",
    nodes.SILENT: "see whether the controller runs there, with handover auto or l2; if so, the network drops frames "
    "with foreign addresses, and VXLAN is right: set handover to vxlan",
}


def network_checks(settings: Settings) -> Iterator[Check]:
    snapshot = links.seen()
    devices = links.underlay(snapshot, settings.underlay_devices)
    yield _devices(devices, settings)
    yield from _forwarding()
    yield _rp_filter(devices)
    yield _mtu(devices, snapshot.overlay() is not None, settings)
    yield _attached(devices)
    if settings.xdp == "on":
        yield _xdp(devices)
    yield _handover(settings)
    yield _reserved_ports(settings)
    yield _node_ports(settings)
    yield from _kube_proxy(settings)


def _devices(devices: Sequence[Device], settings: Settings) -> Check:
    seen = ", ".join(f"{device.name} (MTU {device.mtu})" for device in devices)
    absent = sorted(set(settings.underlay_devices) - {device.name for device in devices})
    if absent:
        return Check("devices", Verdict.FAIL, f"no device {', '.join(absent)}", "correct underlay_devices")
    return check("devices", bool(devices), seen or "no default route", "add a route, or set underlay_devices")


def _forwarding() -> Iterator[Check]:
    for name, path in (("ipv4 forwarding", "net/ipv4/ip_forward"), ("ipv6 forwarding", "net/ipv6/conf/all/forwarding")):
        value = sysctl(path)
        seen = f"{path.replace('/', '.')}={value}" if value else "this family is off"
        advice = "the controller sets it when it starts: see whether it runs"
        yield check(name, value != "0", seen, advice, Verdict.WARN)


def _rp_filter(devices: Sequence[Device]) -> Check:
    """The kernel takes the stricter of `all` and the device's own."""
    values = {device.name: max(_rp_value("all"), _rp_value(device.name)) for device in devices}
    strict = [name for name, value in values.items() if value == 1]
    seen = ", ".join(f"{name}: {value}" for name, value in values.items()) or "not looked at: no devices"
    advice = "with several devices, packets may come in by another than the route back: set rp_filter to 2 or 0"
    return check("rp_filter", not strict or len(devices) < 2, seen, advice, Verdict.WARN)


def _rp_value(device: str) -> int:
    value = sysctl(f"net/ipv4/conf/{device}/rp_filter")
    return int(value) if value.isdigit() else 0


def _mtu(devices: Sequence[Device], overlay: bool, settings: Settings) -> Check:
    """The pods' MTU, as the controller has told the CNI plugin, must fit the underlay."""
    told = daemons.report(settings, "node.json")
    pods, addresses = told.get("mtu"), map(packed, told.get("addresses", []))
    if not pods or not devices:
        seen = "not known: no devices" if pods else "not known yet: the controller has left no node.json"
        return Check("mtu", Verdict.WARN, seen, "start the controller, which tells it to the CNI plugin")
    room = min(device.mtu for device in devices) - (overlay_bytes(addresses) if overlay else 0)
    seen = f"pods {pods}, room for {room}"
    return check("mtu", pods <= room, seen, "restart the controller; pods made before keep theirs", Verdict.WARN)


def _attached(devices: Sequence[Device]) -> Check:
    if not devices:
        return Check("programs", Verdict.WARN, "nowhere: no devices", "see to the devices first")
    attached = {(item.device, item.hook) for item in links.attached()}
    bare = [
        device.name
        for device in devices
        if (device.name, "from_l3" if device.layer_3 else "from_netdev") not in attached
    ]
    underlay = {device.name for device in devices}
    others = sorted({device for device, hook in attached if hook in ("from_other", "from_l3")} - underlay)
    seen = f"not on {', '.join(bare)}" if bare else f"on {', '.join(device.name for device in devices)}"
    seen += f"; for clients on {', '.join(others)}" if others else ""
    return check("programs", not bare, seen, "start the controller, which attaches them", Verdict.WARN)


def _xdp(devices: Sequence[Device]) -> Check:
    """Where a driver does not take it, TC does its work. A veth's takes it, and what it sends is lost."""
    attached = {item.device for item in links.attached() if item.hook == links.XDP}
    pairs = ", ".join(device.name for device in devices if device.kind == "veth" and device.name in attached)
    if pairs:
        lost = "what it sends is lost where the other end has no XDP program: it is for tests; set xdp to off"
        return check("xdp", False, f"on {pairs}, of a veth pair", lost, Verdict.WARN)
    bare = [device.name for device in devices if device.name not in attached]
    seen = f"not on {', '.join(bare)}" if bare else f"on {', '.join(device.name for device in devices) or 'no device'}"
    advice = "all works without; `calico-ebpf status` has the reason, else start the controller; or set xdp to off"
    return check("xdp", not bare, seen, advice, Verdict.WARN)


def _handover(settings: Settings) -> Check:
    """A tunnel is no fault, but where layer 2 was hoped for, it is worth a look."""
    report = daemons.report(settings, HANDOVER_FILE)
    seen = "; ".join(handovers.lines(report)) or "not known yet: the controller has left no handover.json"
    whys = {why for _, why in handovers.grouped(report)}
    advice = [HANDOVER_ADVICE[why] for why in HANDOVER_ADVICE if why in whys]
    return check("handover", not advice, seen, "; ".join(advice), Verdict.WARN)


def _node_ports(settings: Settings) -> Check:
    missing = reserved_ports.parse_ports(settings.node_port_range) - reserved_ports.parse_ports(
        sysctl(reserved_ports.RESERVED)
    )
    seen = f"ports {settings.node_port_range or 'unknown'}" + (f", {len(missing)} not reserved" if missing else "")
    return check("node ports", not missing, seen, "the controller reserves them: see whether it runs", Verdict.WARN)


def _reserved_ports(settings: Settings) -> Check:
    if settings.masquerade == "off":
        return Check("masquerade", Verdict.OK, "off")
    ports = set(range(settings.masquerade_port_min, settings.masquerade_port_min + settings.masquerade_ports))
    seen = f"{settings.masquerade}, ports {min(ports)}-{max(ports)}"
    missing = ports - reserved_ports.parse_ports(sysctl(reserved_ports.RESERVED))
    if missing:
        advice = "the controller reserves them: see whether it runs"
        return Check("masquerade", Verdict.WARN, f"{seen}, {len(missing)} not reserved", advice)
    ephemeral = ports & reserved_ports.parse_ports("-".join(sysctl(reserved_ports.EPHEMERAL).split()))
    if ephemeral:
        seen += f", {len(ephemeral)} of them ephemeral ones: those of the host's UDP sockets are easy to guess"
        advice = "set masquerade_port_min, or net.ipv4.ip_local_port_range, so that they are apart"
        return Check("masquerade", Verdict.WARN, seen, advice)
    return Check("masquerade", Verdict.OK, seen)


def _kube_proxy(settings: Settings) -> Iterator[Check]:
    seen = kubeproxy.running(settings.metrics_address)
    yield check(kubeproxy.NAME, not seen, seen or "does not run", kubeproxy.REMEDY)
    rules = kubeproxy.rules()
    seen = f"left in nftables: {', '.join(rules)}" if rules else "no rules left"
    yield check("kube-proxy's rules", not rules, seen, "`kube-proxy --cleanup` removes them", Verdict.WARN)
