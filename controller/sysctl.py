# SPDX-License-Identifier: Apache-2.0
"""The sysctls that forwarding and masquerade need: set at start, with what was before kept for `calico-ebpf
uninstall`."""

import json
from collections.abc import Iterable
from pathlib import Path

from controller.files import write_atomically

PROC = Path("/proc/sys")
FILE_NAME = "sysctl.json"
RESERVED = "net/ipv4/ip_local_reserved_ports"
RESERVED_FILE = "reserved-ports.json"


def enable_forwarding(state_dir: Path, underlay: Iterable[str]) -> None:
    """Makes the node forward.

    Args:
        underlay: devices that go on taking router advertisements, which a node that forwards ignores otherwise.

    Raises:
        OSError: a value could not be set, or not remembered.
    """
    wanted = {"net/ipv4/ip_forward": "1"}
    if (PROC / "net/ipv6").is_dir():
        for device in underlay:
            name = f"net/ipv6/conf/{device}/accept_ra"
            if _read(name) == "1":
                wanted[name] = "2"
        wanted["net/ipv6/conf/all/forwarding"] = "1"
    changes = {name: value for name, value in wanted.items() if _read(name) != value}
    if changes:
        _remember(state_dir, {name: _read(name) for name in changes})
        for name, value in changes.items():
            (PROC / name).write_text(value)


def reserve_ports(state_dir: Path, ports: range) -> None:
    """Keeps the host's own sockets off `ports`, and off whatever others have reserved.

    Raises:
        OSError: they could not be set, or not remembered.
        ValueError: the kernel's value, or what was remembered of it, makes no sense.
    """
    if not (PROC / RESERVED).exists():
        return
    found = _read(RESERVED)
    kept = _kept(state_dir / RESERVED_FILE) or {"before": found, "ours": ""}
    others = parse_ports(found) - (parse_ports(kept["ours"]) - parse_ports(kept["before"]))
    wanted, ours = format_ports(others | set(ports)), format_ports(set(ports))
    if wanted != found or ours != kept["ours"]:
        write_atomically(state_dir / RESERVED_FILE, json.dumps(kept | {"ours": ours}).encode())
        (PROC / RESERVED).write_text(f"{wanted}\n")


def release_ports(state_dir: Path) -> str | None:
    """Takes back what `reserve_ports` has added, and nothing else; returns the value now, None where nothing was.

    Raises:
        OSError, ValueError: as reserve_ports.
    """
    kept = _kept(state_dir / RESERVED_FILE)
    if not kept or not (PROC / RESERVED).exists():
        return None
    left = parse_ports(_read(RESERVED)) - (parse_ports(kept["ours"]) - parse_ports(kept["before"]))
    (PROC / RESERVED).write_text(f"{format_ports(left)}\n")
    return format_ports(left)


def parse_ports(text: str) -> set[int]:
    """The ports of a list such as 8080,9000-9003. Raises ValueError."""
    found: set[int] = set()
    for part in text.split(","):
        if part.strip():
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def format_ports(ports: set[int]) -> str:
    """The shortest list, in the kernel's form."""
    parts: list[str] = []
    ordered = sorted(ports)
    starts = [port for port in ordered if port - 1 not in ports]
    ends = [port for port in ordered if port + 1 not in ports]
    for first, last in zip(starts, ends, strict=True):
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(parts)


def quiet(device: str) -> None:
    """Keeps the kernel from giving a device IPv6 addresses of its own, and from asking around for them."""
    path = PROC / f"net/ipv6/conf/{device}/addr_gen_mode"
    if path.exists():
        path.write_text("1")


def loosen(device: str) -> None:
    """Lets a device that has an IPv4 address take packets whose answers leave by another one.

    The kernel goes by the greater of `all` and the device's own value: 2 is loose whatever the other is.
    """
    path = PROC / f"net/ipv4/conf/{device}/rp_filter"
    if path.exists():
        path.write_text("2")


def _remember(state_dir: Path, values: dict[str, str]) -> None:
    """The first value ever seen is the one to go back to."""
    path = state_dir / FILE_NAME
    write_atomically(path, json.dumps(values | _kept(path)).encode())


def _kept(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found


def _read(name: str) -> str:
    try:
        return (PROC / name).read_text().strip()
    except FileNotFoundError:
        return ""
