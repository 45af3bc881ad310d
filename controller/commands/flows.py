# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf flows`: tracked connections, a row for both directions, with the nodes that they cross."""

import time
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

import click

from bpf import abi, address, node
from bpf.cli import settings_flags
from bpf.pins import Pins
from bpf.settings import Settings
from controller.commands.options import ADDRESS, output_flag
from controller.commands.output import Column, duration, show
from controller.commands.reading import endpoint, entries, mac, protocol_name

SECOND_NS = 1_000_000_000
THIS_NODE = "this node"


class Entry(NamedTuple):
    """A flow: its opener's key and entry, and the way of what answers, None where that entry was evicted."""

    key: abi.Tuple
    flow: abi.Flow
    back: abi.Way | None


class Flow(NamedTuple):
    """A connection as its opener sees it: from `source` to `destination`, the frontend; `backend` answers it.

    `seen_as` is where the backend believes it to come from. For clients outside, `entry` is the node by which they came
    in, `handed_to` that to which this one hands them over, and `way_back` how answers return; "" where there is none,
    or nothing here tells. Ages are in seconds.
    """

    protocol: str
    source: str
    destination: str
    backend: str
    seen_as: str
    entry: str
    handed_to: str
    way_back: str
    backend_id: int
    state: str
    age_s: float
    idle_s: float


COLUMNS = (
    Column("PROTOCOL", attrgetter("protocol")),
    Column("SOURCE", lambda flow: flow.source if flow.seen_as == flow.source else f"{flow.source} as {flow.seen_as}"),
    Column("DESTINATION", attrgetter("destination")),
    Column("BACKEND", lambda flow: flow.handed_to or ("" if flow.backend == flow.destination else flow.backend)),
    Column("ENTRY", attrgetter("entry")),
    Column("WAY BACK", attrgetter("way_back")),
    Column("STATE", attrgetter("state")),
    Column("AGE", lambda flow: duration(flow.age_s)),
    Column("IDLE", lambda flow: duration(flow.idle_s)),
)


class Selection(NamedTuple):
    """Which flows: those with this address or port at either end, before or after translation; None for any."""

    address: bytes | None = None
    port: int | None = None

    def takes(self, key: abi.Tuple, twin: abi.Tuple) -> bool:
        ends = (key.saddr, key.daddr, twin.saddr, twin.daddr)
        ports = (key.sport, key.dport, twin.sport, twin.dport)
        return (self.address is None or self.address in ends) and (self.port is None or self.port in ports)


class Nodes(NamedTuple):
    """What tells nodes: flags by address, and addresses by MAC."""

    flags: Mapping[bytes, int]
    macs: Mapping[bytes, bytes]

    @classmethod
    def read(cls, pins: Pins) -> "Nodes":
        return cls(
            {key.address: found.flags for key, found in entries(pins, "nodes")},
            {key.mac: found.address for key, found in entries(pins, "peers")},
        )


def live(found: Iterable[tuple[abi.Tuple, abi.Flow]], now_ns: int) -> list[Entry]:
    """Each flow that has not expired, from its opener's side; turned round where the opener's entry was evicted."""
    table = dict(found)
    kept = []
    for key, flow in table.items():
        if flow.expires_ns <= now_ns:
            continue
        other = table.get(flow.twin)
        if not flow.flags & abi.FlowFlag.REPLY:
            kept.append(Entry(key, flow, other.way if other else None))
        elif other is None:
            unknown = abi.Way(0, abi.WayKind.DESTINATION, bytes(16))
            kept.append(Entry(flow.twin, flow._replace(twin=key, way=unknown), flow.way))
    return kept


def select(found: Iterable[Entry], selection: Selection) -> list[Entry]:
    """The selected flows, the last active first."""
    chosen = [entry for entry in found if selection.takes(entry.key, entry.flow.twin)]
    return sorted(chosen, key=lambda entry: -entry.flow.seen_ns)


def describe(entry: Entry, nodes: Nodes, now_ns: int) -> Flow:
    key, flow, _ = entry
    twin = flow.twin
    return Flow(
        protocol_name(key.protocol),
        endpoint(key.saddr, key.sport),
        endpoint(key.daddr, key.dport),
        endpoint(twin.saddr, twin.sport),
        endpoint(twin.daddr, twin.dport),
        *_passage(entry, nodes),
        flow.backend_id,
        state_name(flow.state),
        round((now_ns - flow.created_ns) / SECOND_NS, 3),
        round(max(now_ns - flow.seen_ns, 0) / SECOND_NS, 3),
    )


def _passage(entry: Entry, nodes: Nodes) -> tuple[str, str, str]:
    """(entry, handed_to, way_back) of struct Flow."""
    key, flow, back = entry
    # the way of what was handed over to this node is that of answers
    handed_over = flow.flags & abi.FlowFlag.HANDED_OVER
    if flow.way.kind in (abi.WayKind.NODE, abi.WayKind.TUNNEL) and not handed_over:
        direct = (flow.twin.saddr, flow.twin.sport) == (key.daddr, key.dport)
        node_address = address.text(flow.way.end)
        if direct:
            return THIS_NODE, f"node {node_address} chooses", "direct"
        return THIS_NODE, f"{endpoint(flow.twin.saddr, flow.twin.sport)} by {node_address}", THIS_NODE
    if back and back.kind == abi.WayKind.MAC:
        known = nodes.macs.get(back.end[:6])
        sender = address.text(known) if known else mac(back.end[:6])
        return sender, "", sender
    if back and back.kind == abi.WayKind.TUNNEL:
        sender = address.text(back.end)
        return sender, "", sender
    if back and back.kind == abi.WayKind.ROUTE and flow.backend_id:
        own = nodes.flags.get(key.daddr)
        if own is None:
            return "", "", "direct"  # an external address: it does not tell which node the client came in by
        return (THIS_NODE, "", THIS_NODE) if own & abi.NodeFlag.OWN else (address.text(key.daddr), "", "direct")
    return "", "", ""


def state_name(state: int) -> str:
    try:
        return abi.FlowState(state).name.lower()
    except ValueError:
        return str(state)


@click.command("flows")
@settings_flags("bpffs")
@click.option("--address", "wanted", type=ADDRESS, help="Only flows with this address at either end.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only flows with this port at either end.")
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="At most so many; 0 for all.")
@output_flag
def command(settings: Settings, wanted: bytes | None, port: int | None, limit: int, output: str) -> None:
    """Tracked connections, the last active first; those that have expired are not shown.

    BACKEND is empty where the destination itself answers. ENTRY is the node by which an outside client came in, as far
    as this one knows, and WAY BACK how answers reach the client: through that node, or direct from the backend's.
    Programs note at most once a second that a flow is alive: IDLE may be so much too high.
    """
    now_ns = time.monotonic_ns()
    pins = node.pins(settings)
    found = select(live(entries(pins, "flows"), now_ns), Selection(wanted, port))
    nodes = Nodes.read(pins)
    shown = found[:limit] if limit else found
    show(output, [describe(entry, nodes, now_ns) for entry in shown], COLUMNS)
    if len(shown) < len(found):
        click.echo(f"{len(found) - len(shown)} more flows: --limit 0 shows all", err=True)
