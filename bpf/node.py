# SPDX-License-Identifier: Apache-2.0
"""The node as the settings describe it: where things are pinned and mounted, and the data plane loaded there.

Mounts nothing and attaches nothing. Both packages may import it; it brings in the standard library alone.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from bpf import features, loader, sockdiag, upgrade
from bpf.abi import MAPS, Config, ConnectTime
from bpf.errors import KernelError
from bpf.pins import Pins
from bpf.settings import Settings

MOUNTS = Path("/proc/self/mounts")
LOCK_NAME = "load.lock"
# Below run_dir: held by the CNI server while it lives, or by `calico-ebpf uninstall`.
SERVER_LOCK = Path("state/server.lock")

# Set on what the programs send through a device, so that they know it again there; the default in bpf/config.h.
MARK = 0xCE1F0000

SECOND_NS = 1_000_000_000


def pins(settings: Settings) -> Pins:
    return Pins(settings.bpffs)


def config(settings: Settings) -> Config:
    """The programs' load-time constants. Called in the node's own network namespace, which it makes the host's."""
    return Config(
        host_netns_cookie=loader.netns_cookie(),
        tcp_new_ns=settings.tcp_new_s * SECOND_NS,
        tcp_established_ns=settings.tcp_established_s * SECOND_NS,
        tcp_closing_ns=settings.tcp_closing_s * SECOND_NS,
        tcp_closed_ns=settings.tcp_closed_s * SECOND_NS,
        udp_new_ns=settings.udp_new_s * SECOND_NS,
        udp_established_ns=settings.udp_established_s * SECOND_NS,
        connect_time=ConnectTime.ALL if settings.connect_time == "all" else ConnectTime.HOST,
        mark=MARK,
        masquerade_port_min=settings.masquerade_port_min,
        masquerade_port_count=0 if settings.masquerade == "off" else settings.masquerade_ports,
        coarse_clock=int(features.kernel()[0] >= features.LATER_HELPERS["bpf_ktime_get_coarse_ns"]),
        overlay_port=settings.overlay_port,
        closes_udp=int(sockdiag.closes()),
        maglev_size=settings.maglev_table_size,
    )


def map_sizes(settings: Settings) -> dict[str, int]:
    """max_entries of the maps that have a setting for it."""
    return {name: getattr(settings, f"{name}_max") for name in MAPS if hasattr(settings, f"{name}_max")}


def load_datapath(settings: Settings, replace: bool = True) -> bool:
    """Makes sure that this node's maps and programs are loaded and pinned.

    Args:
        replace: whether programs that are pinned give way to those of these settings. One process of a node may ask
            for that, the controller: two with different settings would replace each other's for ever.

    Returns:
        Whether programs were loaded: what is attached must then be replaced.

    Raises:
        KernelError: bpffs is not mounted, or this kernel takes no BPF.
        LayoutError, NotLoadedError, BpftoolError: as bpf.loader.load.
    """
    require_bpffs(settings.bpffs)
    lock = settings.run_dir / LOCK_NAME
    return loader.load(pins(settings), settings.objects_dir, config(settings), map_sizes(settings), lock, replace)


def other_layout_in_force(settings: Settings) -> bool:
    """Whether the programs at work are those of a version with another layout of the maps, from which this one has not
    taken over, or which has taken over from it."""
    found = pins(settings)
    return not found.programs.is_symlink() and upgrade.predecessor(found) is not None


def takeover_unfinished(settings: Settings) -> bool:
    """Whether something of the layout before this one is still pinned: who takes over is at it, or has died of it."""
    found = pins(settings)
    return found.programs.is_symlink() and upgrade.predecessor(found) is not None


def require_bpffs(path: Path) -> None:
    """Raises KernelError, with what to do, where `path` is not in a BPF file system."""
    if filesystem(path) != "bpf":
        raise KernelError(f"{path} is not a BPF file system: `mount -t bpf bpf {path}` makes it one")


def cgroup_root(settings: Settings) -> Path:
    """The cgroup2 directory at which the socket programs are attached.

    Raises:
        KernelError: there is no cgroup2 mount.
    """
    if settings.cgroup:
        return settings.cgroup
    found = [point for point, kind in mounts() if kind == "cgroup2"]
    for standard in (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")):
        if standard in found:
            return standard
    if not found:
        raise KernelError("no cgroup2 is mounted: `mount -t cgroup2 none /sys/fs/cgroup/unified`")
    return found[0]


def filesystem(path: Path) -> str:
    """The type of the file system that holds `path`: that of the longest mount point above it, the last one mounted."""
    best, kind = -1, ""
    for point, mounted in mounts():
        if len(point.parts) >= best and path.is_relative_to(point):
            best, kind = len(point.parts), mounted
    return kind


def mounts() -> Iterator[tuple[Path, str]]:
    """(mount point, type) of this mount namespace, in the order of mounting."""
    for line in MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        _, point, kind, *_ = line.split(" ")
        yield Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point)), kind
