# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf backends`: each backend, the services that use it, and the live flows that it carries."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import click

from bpf import abi, address, node
from bpf.cli import settings_flags
from bpf.settings import Settings
from controller.commands.flows import live
from controller.commands.options import output_flag
from controller.commands.output import Column, show
from controller.commands.reading import endpoint, entries, protocol_name


class Backend(NamedTuple):
    backend_id: int
    address: str
    port: int
    protocol: str
    service_ids: tuple[int, ...]
    flows: int


COLUMNS = (
    Column("ID", lambda backend: str(backend.backend_id)),
    Column("BACKEND", lambda backend: endpoint(address.packed(backend.address), backend.port)),
    Column("PROTOCOL", lambda backend: backend.protocol),
    Column("SERVICES", lambda backend: ",".join(map(str, backend.service_ids)) or "none"),
    Column("FLOWS", lambda backend: str(backend.flows)),
)


def backends(
    known: Iterable[tuple[abi.BackendKey, abi.Backend]],
    slots: Iterable[tuple[abi.SlotKey, abi.Slot]],
    flows: Mapping[int, int],
) -> list[Backend]:
    """What the maps say, in the order of addresses and ports; `flows` counts by backend id."""
    services = defaultdict(set)
    for slot_key, slot in slots:
        services[slot.backend_id].add(slot_key.service_id)
    found = []
    for key, value in sorted(known, key=lambda item: item[1]):
        users = tuple(sorted(services[key.backend_id]))
        where = (address.text(value.address), value.port, protocol_name(value.protocol))
        found.append(Backend(key.backend_id, *where, users, flows.get(key.backend_id, 0)))
    return found


@click.command("backends")
@settings_flags("bpffs")
@output_flag
def command(settings: Settings, output: str) -> None:
    """Backends, with the services that use them and the live flows that they carry."""
    pins = node.pins(settings)
    tracked = live(entries(pins, "flows"), time.monotonic_ns())
    counts = Counter(entry.flow.backend_id for entry in tracked)
    show(output, backends(entries(pins, "backends"), entries(pins, "slots"), counts), COLUMNS)
