# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf pods`: this node's pods, as the data plane knows them."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click

from bpf import abi, address, node
from bpf.cli import settings_flags
from bpf.settings import Settings
from controller.commands.options import output_flag
from controller.commands.output import Column, show
from controller.commands.reading import device_name, entries, frontend_text, mac, protocol_name


class Pod(NamedTuple):
    """`device` is "" where the host end of the pod link is gone, `container_id` where no record names it; `host_ports`
    are those that lead to the pod now, not those whose place a Service has."""

    address: str
    device: str
    ifindex: int
    pod_mac: str
    host_mac: str
    container_id: str
    container_hash: str
    host_ports: tuple[str, ...]


COLUMNS = (
    Column("ADDRESS", attrgetter("address")),
    Column("DEVICE", lambda pod: pod.device or f"gone: index {pod.ifindex}"),
    Column("POD MAC", attrgetter("pod_mac")),
    Column("HOST MAC", attrgetter("host_mac")),
    Column("CONTAINER", lambda pod: pod.container_id or f"hash {pod.container_hash}"),
    Column("HOST PORTS", lambda pod: " ".join(pod.host_ports) or "none"),
)


def pods(
    found: Iterable[tuple[abi.PodKey, abi.Pod]],
    containers: Mapping[int, str],
    ports: Mapping[bytes, Sequence[str]],
) -> list[Pod]:
    """What the map says, in the order of addresses; `containers` maps hashes to container ids, and `ports` addresses to
    host ports."""
    return [
        Pod(
            address.text(key.address),
            device_name(pod.ifindex),
            pod.ifindex,
            mac(pod.pod_mac),
            mac(pod.host_mac),
            containers.get(pod.container_hash, ""),
            f"{pod.container_hash:016x}",
            tuple(ports.get(key.address, ())),
        )
        for key, pod in sorted(found)
    ]


def host_ports(
    frontends: Iterable[tuple[abi.FrontendKey, abi.Frontend]], backends: Mapping[abi.BackendKey, abi.Backend]
) -> dict[bytes, list[str]]:
    """Host ports by the address of the pod that they lead to, as 192.0.2.1:8080/TCP->80."""
    found = defaultdict(list)
    for key, value in sorted(frontends):
        backend = backends.get(abi.BackendKey(value.service_id))  # one id for both
        if value.flags & abi.FrontendFlag.HOST_PORT and backend:
            where = frontend_text(key.address, key.port, value.flags)
            found[backend.address].append(f"{where}/{protocol_name(key.protocol)}->{backend.port}")
    return found


def recorded_containers(networks: Path) -> dict[int, str]:
    """Hash to container id, of every address recorded in host-local's format: a file, whose first line is the id."""
    found = {}
    for record in networks.glob("*/*"):
        if record.is_file() and record.name[0].isalnum():
            lines = record.read_text(errors="replace").split()
            if lines:
                found[container_hash(lines[0])] = lines[0]
    return found


def container_hash(container_id: str) -> int:
    """As struct pod in bpf/abi.h has it, read in the machine's byte order."""
    return int.from_bytes(hashlib.sha256(container_id.encode()).digest()[:8], "little")


@click.command("pods")
@settings_flags("bpffs", "cni_networks_dir")
@output_flag
def command(settings: Settings, output: str) -> None:
    """This node's pods, as the data plane knows them."""
    containers, pins = recorded_containers(settings.cni_networks_dir), node.pins(settings)
    ports = host_ports(entries(pins, "frontends"), dict(entries(pins, "backends")))
    show(output, pods(entries(pins, "pods"), containers, ports), COLUMNS)
