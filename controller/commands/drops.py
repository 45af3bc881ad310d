# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf drops`: what did not get through, by reason and device, and what to do about each reason."""

from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

import click

from bpf import abi, node
from bpf.cli import settings_flags
from bpf.pins import Pins
from bpf.settings import Settings
from controller.commands.options import output_flag
from controller.commands.output import Column, show_json, table
from controller.commands.reading import device_name, per_cpu, raw_entries

# What each reason means, and what to do: one sentence of each.
MEANINGS = {
    abi.DropReason.TRUNCATED: "A packet or a header was cut short: look at the sender, or at a device that damages "
    "packets.",
    abi.DropReason.BAD_HEADER: "A length, version, address, chain of headers or VLAN tag cannot be: look at the "
    "sender.",
    abi.DropReason.SPOOFED: "Sent with another's source address: by the pod of this device, where it is one's; else "
    "from outside, under an address of this node or of its pods.",
    abi.DropReason.NO_BACKEND: "Refused, the Service has no usable endpoint: see `kubectl get endpointslices`, and why "
    "its pods are not ready.",
    abi.DropReason.NO_FLOW: "Refused, a connection's middle for a Service without its flow: it was idle for longer "
    "than tcp_established_s, or evicted (see flows_restored, and raise flows_max).",
    abi.DropReason.NO_SLOT: "A slot or its backend was missing: a few while a Service changes are harmless; if they go "
    "on, restart the controller, which writes what is missing.",
    abi.DropReason.NO_FREE_PORT: "Every port tried for a colliding flow was taken: one client has too many connections "
    "to one backend.",
    abi.DropReason.FLOWS_FULL: "The flow table took no entry: raise flows_max.",
    abi.DropReason.TTL_EXPIRED: "The TTL or hop limit was used up here: traceroute does so; otherwise look for a loop "
    "in the routes.",
    abi.DropReason.FRAGMENT: "A later fragment of a datagram whose first one did not come by before it, or was not "
    "served: use smaller datagrams where the network changes the order of packets.",
    abi.DropReason.REWRITE_FAILED: "A helper could not change the packet: please report it, with the kernel's version.",
    abi.DropReason.UNTRANSLATED: "Refused, a host's packet to a Service was not translated at the socket, and its "
    "backend is in this node's own network, where packets cannot be led: see whether the socket is older than the "
    "programs, and `calico-ebpf doctor` about the cgroup.",
    abi.DropReason.NO_REMOTE: "A host's packet into the overlay for an address that no node has: the pod is gone, or "
    "the controller has not heard of its node.",
    abi.DropReason.NOT_A_NODE: "Out of a tunnel from an address that no node has, or of another network: the "
    "controller has not heard of that node, or somebody forges packets to the overlay's port.",
    abi.DropReason.NO_LOCAL_BACKEND: "No usable endpoint on this node, for a Service with a traffic policy Local, "
    "or for what another node handed over: a few while endpoints go are harmless; otherwise see `calico-ebpf services` "
    "on both nodes.",
    abi.DropReason.NO_POD: "From outside, of a connection whose pod is gone: a few are harmless, they end in seconds.",
    abi.DropReason.TAKING_OVER: "While a version with another layout of the maps took over, a connection's packet came "
    "before its flow did: a few are harmless, they are sent again.",
    abi.DropReason.NO_SUCH_PORT: "Refused, the Service has that cluster IP but not that port, or not that protocol: "
    "see `calico-ebpf services`, and which port the client asks for.",
    abi.DropReason.NO_SERVICE: "The address is in a range of Services, and no Service has it: the Service is gone, or "
    "the client remembers an old address; `calico-ebpf status` has the ranges. Or it is a load balancer's, which has "
    "no such port: see `calico-ebpf services`.",
    abi.DropReason.SOURCE_RANGE: "A load-balancer address is not for this client: see loadBalancerSourceRanges of the "
    "Service.",
    abi.DropReason.TOO_BIG: "Larger than the link or tunnel takes by which it has to go. A few are how senders learn "
    "of it; one that goes on does not hear ICMP, or lets its packets be cut up, which only IPv4 tunnels do: look for "
    "a firewall, and see `calico-ebpf doctor` about MTUs.",
    abi.DropReason.DENIED: "From a range of this node's deny list: `calico-ebpf deny list` has them, and "
    "`calico-ebpf deny remove` takes one off.",
    abi.DropReason.PORTS_EXHAUSTED: "Masquerade found no free port towards that destination: raise masquerade_ports, "
    "or spread the connections over several destinations.",
    abi.DropReason.NO_HANDOVER: "An outside client's packet, and the backend's node cannot be handed packets: layer 2 "
    "does not reach it, and there is no tunnel; see `calico-ebpf status`, or set handover to auto or vxlan.",
}

COUNTER_MEANINGS = {
    abi.Counter.FLOWS_CREATED: "flows started",
    abi.Counter.FLOWS_RESTORED: "half of a live flow had been evicted and was put back: raise flows_max",
    abi.Counter.FLOWS_PICKED_UP: "connections followed from their middle on, as after a reboot",
    abi.Counter.PORTS_REWRITTEN: "source ports changed, because two flows would have collided",
    abi.Counter.REFUSALS: "RST or ICMP unreachable sent",
    abi.Counter.HANDED_OVER: "flows of outside clients handed over to the node of their backend",
    abi.Counter.MASQUERADED: "flows of pods that left the cluster under the node's address",
}


class Drop(NamedTuple):
    """`device` is "" where it is gone; index 0 stands for all pods' links that are gone."""

    reason: str
    device: str
    ifindex: int
    packets: int
    octets: int
    meaning: str


COLUMNS = (
    Column("REASON", attrgetter("reason")),
    Column(
        "DEVICE", lambda drop: drop.device or (f"gone: index {drop.ifindex}" if drop.ifindex else "pods that are gone")
    ),
    Column("PACKETS", lambda drop: str(drop.packets)),
    Column("BYTES", lambda drop: str(drop.octets)),
)


def drops(found: Iterable[tuple[bytes, bytes]]) -> list[Drop]:
    """Raw entries of `drops`, the CPUs' values added up, the most frequent first."""
    result = []
    for raw_key, raw_value in found:
        key = abi.DropKey.unpack(raw_key)
        counts = [abi.DropCount.unpack(part) for part in per_cpu(raw_value, abi.MAPS["drops"].value_size)]
        packets, octets = sum(count.packets for count in counts), sum(count.octets for count in counts)
        name, meaning = _reason(key.reason)
        result.append(Drop(name, device_name(key.ifindex), key.ifindex, packets, octets, meaning))
    return sorted(result, key=lambda drop: (-drop.packets, drop.reason, drop.ifindex))


def counters(found: Iterable[tuple[bytes, bytes]]) -> dict[str, int]:
    """Raw entries of `counters`, by the counter's name."""
    totals = {int.from_bytes(key, "little"): value for key, value in found}
    size = abi.MAPS["counters"].value_size
    return {
        counter.name.lower(): sum(int.from_bytes(part, "little") for part in per_cpu(totals.get(counter, b""), size))
        for counter in abi.Counter
    }


def read_counters(pins: Pins) -> dict[str, int]:
    return counters(raw_entries(pins, "counters"))


def _reason(number: int) -> tuple[str, str]:
    try:
        reason = abi.DropReason(number)
    except ValueError:
        return str(number), "A newer program's reason: use the command line of its version."
    return reason.name.lower(), MEANINGS[reason]


@click.command("drops")
@settings_flags("bpffs")
@output_flag
def command(settings: Settings, output: str) -> None:
    """What did not get through, by reason and device, and what is noteworthy."""
    pins = node.pins(settings)
    found, totals = drops(raw_entries(pins, "drops")), read_counters(pins)
    if output == "json":
        show_json({"drops": [drop._asdict() for drop in found], "counters": totals})
        return
    rows = [[column.text(drop) for column in COLUMNS] for drop in found]
    meanings = {drop.reason: drop.meaning for drop in found}
    lines = table([column.heading for column in COLUMNS], rows) if found else ["nothing was dropped"]
    if meanings:
        lines += ["", *table(("REASON", "MEANING"), list(meanings.items()))]
    notes = [(name, str(totals[name]), COUNTER_MEANINGS[abi.Counter[name.upper()]]) for name in totals]
    click.echo("\n".join([*lines, "", *table(("COUNTER", "COUNT", "MEANING"), notes)]))
