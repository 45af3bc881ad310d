# SPDX-License-Identifier: Apache-2.0
"""The files by which a container runtime finds the CNI plugin: executables at their standard places, networks."""

import json
from pathlib import Path
from typing import NamedTuple

EXECUTABLE = Path("/opt/cni/bin/calico-ebpf")
LOOPBACK = EXECUTABLE.with_name("loopback")
PLUGIN = "calico-ebpf"
SUFFIXES = {".conf", ".conflist", ".json"}


class NetworkFile(NamedTuple):
    """`ours`: the network's first plugin, which makes the pod link, is this one. `name` is the network's."""

    path: Path
    ours: bool
    name: str


def networks(directory: Path) -> list[NetworkFile]:
    """A directory's network configurations in the order in which a runtime looks at them; one that does not parse is
    not ours."""
    paths = [path for path in directory.glob("*") if path.suffix in SUFFIXES]
    return [_read(path) for path in sorted(paths)]


def _read(path: Path) -> NetworkFile:
    try:
        found = json.loads(path.read_bytes())
        first = found["plugins"][0] if "plugins" in found else found
        return NetworkFile(path, first["type"] == PLUGIN, str(found.get("name", "")))
    except (OSError, ValueError, LookupError, TypeError):
        return NetworkFile(path, False, "")
