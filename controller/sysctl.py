# SPDX-License-Identifier: Apache-2.0
"""The sysctls that forwarding and masquerade need: set each time that the node's network is looked at, with what was
before kept for `calico-ebpf uninstall`."""

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from bpf import files

FILE_NAME = "sysctl.json"
RESERVED = "net/ipv4/ip_local_reserved_ports"
EPHEMERAL = "net/ipv4/ip_local_port_range"
RESERVED_FILE = "reserved-ports.json"


class Sysctls:
    """Methods raise OSError where a value could not be set or not remembered, and ValueError where what was remembered
    makes no sense.

    Args:
        proc: /proc/sys, or where its `net` is seen; which network namespace's it is, is the caller's.
        state_dir: where values are kept that were there before.
    """

    def __init__(self, proc: Path, state_dir: Path) -> None:
        self._proc = proc
        self._state_dir = state_dir

    def enable_forwarding(self, underlay: Iterable[str], others: Iterable[str] = ()) -> None:
        """Makes the node forward, which has devices ignore router advertisements, unless they are told not to.

        New devices are told nothing: of these most are containers', which must not become this node's routers.

        Args:
            underlay: devices that take advertisements.
            others: those that go on taking them where they do so now; none that may lead to a container.
        """
        wanted = {"net/ipv4/ip_forward": "1"}
        if (self._proc / "net/ipv6").is_dir():
            listening = (one for one in others if self._read(f"net/ipv6/conf/{one}/forwarding") == "0")
            for device in (*underlay, *listening):
                name = f"net/ipv6/conf/{device}/accept_ra"
                if self._read(name) == "1":
                    wanted[name] = "2"
            wanted["net/ipv6/conf/all/forwarding"] = "1"
        changes = {name: value for name, value in wanted.items() if self._read(name) != value}
        if changes:
            self._remember({name: self._read(name) for name in changes})
            for name, value in changes.items():
                (self._proc / name).write_text(value)

    def restore(self) -> Iterator[tuple[str, str]]:
        """Puts back what was before `enable_forwarding`, (name, value) by (name, value).

        Raises:
            OSError: after the others, names those that could not be.
        """
        failed = []
        for name, value in _kept(self._state_dir / FILE_NAME).items():
            if not (self._proc / name).exists():
                continue
            try:
                (self._proc / name).write_text(f"{value}\n")
            except OSError as error:
                failed.append(f"{name} to {value}: {error.strerror}")
            else:
                yield name, value
        if failed:
            raise OSError(f"could not be put back: {'; '.join(failed)}")

    def reserve_ports(self, ports: Collection[int]) -> None:
        """Keeps the host's own sockets off `ports`, and off whatever others have reserved."""
        if not (self._proc / RESERVED).exists():
            return
        found = self._read(RESERVED)
        kept = _kept(self._state_dir / RESERVED_FILE) or {"before": found, "ours": ""}
        others = parse_ports(found) - (parse_ports(kept["ours"]) - parse_ports(kept["before"]))
        wanted, ours = format_ports(others | set(ports)), format_ports(set(ports))
        if wanted != found or ours != kept["ours"]:
            files.write(self._state_dir / RESERVED_FILE, json.dumps(kept | {"ours": ours}).encode())
            (self._proc / RESERVED).write_text(f"{wanted}\n")

    def release_ports(self) -> str | None:
        """Takes back what `reserve_ports` has added, and nothing else; the value now, None where nothing was."""
        kept = _kept(self._state_dir / RESERVED_FILE)
        if not kept or not (self._proc / RESERVED).exists():
            return None
        left = parse_ports(self._read(RESERVED)) - (parse_ports(kept["ours"]) - parse_ports(kept["before"]))
        (self._proc / RESERVED).write_text(f"{format_ports(left)}\n")
        return format_ports(left)

    def quiet(self, device: str) -> None:
        """Keeps the kernel from giving a device IPv6 addresses of its own, and from asking around for them."""
        path = self._proc / f"net/ipv6/conf/{device}/addr_gen_mode"
        if path.exists():
            path.write_text("1")

    def loosen(self, device: str) -> None:
        """Lets a device that has an IPv4 address take packets whose answers leave by another one.

        The kernel goes by the greater of `all` and the device's own value: 2 is loose whatever the other is.
        """
        path = self._proc / f"net/ipv4/conf/{device}/rp_filter"
        if path.exists():
            path.write_text("2")

    def _remember(self, values: dict[str, str]) -> None:
        """The first value ever seen is the one to go back to."""
        path = self._state_dir / FILE_NAME
        files.write(path, json.dumps(values | _kept(path)).encode())

    def _read(self, name: str) -> str:
        try:
            return (self._proc / name).read_text().strip()
        except FileNotFoundError:
            return ""


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


def _kept(path: Path) -> dict[str, str]:
    try:
        found: dict[str, str] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found
