# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf services`: frontends and the backends behind them, from the maps."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import click

from bpf import abi, address, node
from bpf.cli import settings_flags
from bpf.settings import Settings
from controller.commands.options import ADDRESS, output_flag
from controller.commands.output import show_json, table
from controller.commands.reading import endpoint, entries, frontend_text, protocol_name


class Target(NamedTuple):
    """A slot of a service; address and port are empty where the backend that it names is missing.

    Attributes:
        local: it is in the Local set.
        cluster: it is in the Cluster set.
    """

    backend_id: int
    address: str
    port: int
    local: bool
    cluster: bool


class Frontend(NamedTuple):
    address: str
    port: int
    protocol: str
    service_id: int
    flags: tuple[str, ...]
    affinity_s: int
    backends: tuple[Target, ...]


def frontends(
    keys: Iterable[tuple[abi.FrontendKey, abi.Frontend]],
    slots: Mapping[abi.SlotKey, abi.Slot],
    backends: Mapping[abi.BackendKey, abi.Backend],
) -> list[Frontend]:
    """What the three maps say, in the order of addresses, ports and protocols; a cluster IP as such is none of it."""
    found = []
    for key, value in sorted(keys):
        if not key.port:
            continue
        targets = tuple(_target(slots, backends, value, slot) for slot in range(value.slot_count))
        flags = tuple(flag.name.lower() for flag in abi.FrontendFlag if value.flags & flag and flag.name)
        name = protocol_name(key.protocol)
        text, affinity_s = address.text(key.address), value.affinity_s
        found.append(Frontend(text, key.port, name, value.service_id, flags, affinity_s, targets))
    return found


def _target(
    slots: Mapping[abi.SlotKey, abi.Slot],
    backends: Mapping[abi.BackendKey, abi.Backend],
    frontend: abi.Frontend,
    index: int,
) -> Target:
    slot = slots.get(abi.SlotKey(frontend.service_id, index))
    sets = (index < frontend.local_count, index >= frontend.cluster_start)
    backend_id = slot.backend_id if slot else 0
    backend = backends.get(abi.BackendKey(backend_id))
    if not backend:
        return Target(backend_id, "", 0, *sets)
    return Target(backend_id, address.text(backend.address), backend.port, *sets)


def rows(found: Iterable[Frontend]) -> list[Sequence[str]]:
    """A row for each backend; the frontend stands in the first."""
    lines: list[Sequence[str]] = []
    for front in found:
        texts = [_target_text(target) for target in front.backends] or ["none: refused"]
        first = (_frontend_text(front), front.protocol, str(front.service_id), _kind_text(front))
        lines += [(*(first if not index else ("", "", "", "")), text) for index, text in enumerate(texts)]
    return lines


def _frontend_text(front: Frontend) -> str:
    flags = sum(abi.FrontendFlag[name.upper()] for name in front.flags)
    return frontend_text(address.packed(front.address), front.port, flags)


def _kind_text(front: Frontend) -> str:
    return ",".join([*front.flags, *([f"affinity={front.affinity_s}s"] if front.affinity_s else [])])


def _target_text(target: Target) -> str:
    if not target.address:
        return f"missing: backend {target.backend_id}"
    text = endpoint(address.packed(target.address), target.port)
    if not target.cluster:
        return f"{text} here, for local alone"
    return f"{text} here" if target.local else text


def as_json(front: Frontend) -> dict[str, object]:
    return {**front._asdict(), "backends": [target._asdict() for target in front.backends]}


@click.command("services")
@settings_flags("bpffs")
@click.option("--address", "wanted", type=ADDRESS, help="Only frontends of this address.")
@output_flag
def command(settings: Settings, wanted: bytes | None, output: str) -> None:
    """Frontends, and the backends behind them.

    A NodePort is shown as any node's, and a pod's host port as this node's. Backends on this node are marked `here`:
    under `local`, clients outside reach those alone (externalTrafficPolicy Local), and of a cluster IP everybody does
    (internalTrafficPolicy Local). `for local alone` are those that terminate while other nodes have ready ones, or
    that hints lead away from. `affinity` is for how long after its last connection a client comes back to the same
    backend. A frontend without backends refuses its clients. SERVICE is the number under which its slots are kept.
    """
    pins = node.pins(settings)
    found = frontends(entries(pins, "frontends"), dict(entries(pins, "slots")), dict(entries(pins, "backends")))
    if wanted:
        found = [front for front in found if front.address == address.text(wanted)]
    if output == "json":
        show_json([as_json(front) for front in found])
    else:
        click.echo("\n".join(table(("FRONTEND", "PROTOCOL", "SERVICE", "KIND", "BACKEND"), rows(found))))
