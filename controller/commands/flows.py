# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf flows`: tracked connections, a row for both directions."""

import time
from collections.abc import Iterable
from operator import attrgetter
from typing import NamedTuple

import click

from bpf import abi, node
from bpf.cli import settings_flags
from bpf.settings import Settings
from controller.commands.options import ADDRESS, output_flag
from controller.commands.output import Column, duration, show
from controller.commands.reading import endpoint, entries, protocol_name

TCP = 6
SECOND_NS = 1_000_000_000

Entry = tuple[abi.Tuple, abi.Flow]


class Flow(NamedTuple):
    """A connection as its opener sees it: from `source` to `destination`; `backend` answers it.

    `seen_as` is where the backend believes it to come from. Ages are in seconds.
    """

    protocol: str
    source: str
    destination: str
    backend: str
    seen_as: str
    backend_id: int
    state: str
    age_s: float
    idle_s: float


COLUMNS = (
    Column("PROTOCOL", attrgetter("protocol")),
    Column("SOURCE", lambda flow: flow.source if flow.seen_as == flow.source else f"{flow.source} as {flow.seen_as}"),
    Column("DESTINATION", attrgetter("destination")),
    Column("BACKEND", lambda flow: "" if flow.backend == flow.destination else flow.backend),
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


def live(found: Iterable[Entry], config: abi.Config, now_ns: int) -> list[Entry]:
    """An entry for each flow that has not expired, the opener's; the other one turned round where that was evicted."""
    table = dict(found)
    kept = []
    for key, flow in table.items():
        if now_ns - flow.seen_ns > _timeout_ns(config, key.protocol, flow.state):
            continue
        if not flow.flags & abi.FlowFlag.REPLY:
            kept.append((key, flow))
        elif flow.twin not in table:
            kept.append((flow.twin, flow._replace(twin=key)))
    return kept


def select(found: Iterable[Entry], selection: Selection) -> list[Entry]:
    """The selected flows, the busiest first."""
    chosen = [(key, flow) for key, flow in found if selection.takes(key, flow.twin)]
    return sorted(chosen, key=lambda entry: -entry[1].seen_ns)


def describe(entry: Entry, now_ns: int) -> Flow:
    key, flow = entry
    twin = flow.twin
    return Flow(
        protocol_name(key.protocol),
        endpoint(key.saddr, key.sport),
        endpoint(key.daddr, key.dport),
        endpoint(twin.saddr, twin.sport),
        endpoint(twin.daddr, twin.dport),
        flow.backend_id,
        state_name(flow.state),
        round((now_ns - flow.created_ns) / SECOND_NS, 3),
        round(max(now_ns - flow.seen_ns, 0) / SECOND_NS, 3),
    )


def state_name(state: int) -> str:
    try:
        return abi.FlowState(state).name.lower()
    except ValueError:
        return str(state)


def _timeout_ns(config: abi.Config, protocol: int, state: int) -> int:
    """As flow_timeout in bpf/flow.h."""
    if protocol != TCP:
        return config.udp_new_ns if state == abi.FlowState.NEW else config.udp_established_ns
    if state == abi.FlowState.NEW:
        return config.tcp_new_ns
    if state == abi.FlowState.ESTABLISHED:
        return config.tcp_established_ns
    return config.tcp_closing_ns if state == abi.FlowState.CLOSING else config.tcp_closed_ns


@click.command("flows")
@settings_flags("bpffs")
@click.option("--address", "wanted", type=ADDRESS, help="Only flows with this address at either end.")
@click.option("--port", type=click.IntRange(1, 65535), help="Only flows with this port at either end.")
@click.option("--limit", type=click.IntRange(0), default=1000, show_default=True, help="At most so many; 0 for all.")
@output_flag
def command(settings: Settings, wanted: bytes | None, port: int | None, limit: int, output: str) -> None:
    """Tracked connections, the busiest first; those that have expired are not shown.

    BACKEND is empty where the destination itself answers. Programs note at most once a second that a flow is alive:
    IDLE may be so much too high.
    """
    now_ns = time.monotonic_ns()
    selection = Selection(wanted, port)
    tracked = live(entries(node.pins(settings), "flows"), node.config(settings), now_ns)
    found = select(tracked, selection)
    shown = found[:limit] if limit else found
    show(output, [describe(entry, now_ns) for entry in shown], COLUMNS)
    if len(shown) < len(found):
        click.echo(f"{len(found) - len(shown)} more flows: --limit 0 shows all", err=True)
