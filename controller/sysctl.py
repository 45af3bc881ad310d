# SPDX-License-Identifier: Apache-2.0
"""The sysctls that forwarding needs: set at start, with the values of before kept for `calico-ebpf uninstall`."""

import json
from collections.abc import Iterable
from pathlib import Path

from controller.files import write_atomically

PROC = Path("/proc/sys")
FILE_NAME = "sysctl.json"


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


def quiet(device: str) -> None:
    """Keeps the kernel from giving a device IPv6 addresses of its own, and from asking around for them."""
    path = PROC / f"net/ipv6/conf/{device}/addr_gen_mode"
    if path.exists():
        path.write_text("1")


def _remember(state_dir: Path, values: dict[str, str]) -> None:
    """The first value ever seen is the one to go back to."""
    path = state_dir / FILE_NAME
    try:
        kept = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        kept = {}
    write_atomically(path, json.dumps(values | kept).encode())


def _read(name: str) -> str:
    try:
        return (PROC / name).read_text().strip()
    except FileNotFoundError:
        return ""
