# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf pods`: this node's pods, as the data plane knows them."""

import hashlib
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

import click

from bpf import abi, address, node
from bpf.cli import settings_flags
from bpf.settings import Settings
from controller.commands.options import output_flag
from controller.commands.output import Column, show
from controller.commands.reading import device_name, entries, mac


class Pod(NamedTuple):
    """`device` is "" where the host end of the pod link is gone, `container_id` where no record names it."""

    address: str
    device: str
    ifindex: int
    pod_mac: str
    host_mac: str
    container_id: str
    container_hash: str


COLUMNS = (
    Column("ADDRESS", attrgetter("address")),
    Column("DEVICE", lambda pod: pod.device or f"gone: index {pod.ifindex}"),
    Column("POD MAC", attrgetter("pod_mac")),
    Column("HOST MAC", attrgetter("host_mac")),
    Column("CONTAINER", lambda pod: pod.container_id or f"hash {pod.container_hash}"),
)


def pods(found: Iterable[tuple[abi.PodKey, abi.Pod]], containers: Mapping[int, str]) -> list[Pod]:
    """What the map says, in the order of addresses; `containers` maps hashes to container ids."""
    return [
        Pod(
            address.text(key.address),
            device_name(pod.ifindex),
            pod.ifindex,
            mac(pod.pod_mac),
            mac(pod.host_mac),
            containers.get(pod.container_hash, ""),
            f"{pod.container_hash:016x}",
        )
        for key, pod in sorted(found)
    ]


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
    containers = recorded_containers(settings.cni_networks_dir)
    show(output, pods(entries(node.pins(settings), "pods"), containers), COLUMNS)
