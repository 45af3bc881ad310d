# SPDX-License-Identifier: Apache-2.0
"""Whether this node's daemons run, and what they say of themselves."""

import json
import socket
from pathlib import Path
from typing import Any, NamedTuple

from bpf.settings import Settings
from controller import alone

TIMEOUT_S = 2


class Daemon(NamedTuple):
    """`seen` says by what it was judged."""

    name: str
    up: bool
    seen: str


def daemons(settings: Settings) -> list[Daemon]:
    return [cni_server(settings), controller(settings)]


def cni_server(settings: Settings) -> Daemon:
    """Up where its socket takes a connection."""
    path = settings.run_dir / "cni.sock"
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(TIMEOUT_S)
        try:
            probe.connect(str(path))
        except OSError as error:
            return Daemon("cni-server", False, f"{path}: {error.strerror or error}")
    return Daemon("cni-server", True, f"{path} answers")


def controller(settings: Settings) -> Daemon:
    """Up where its lock is held: by whom cannot be told from outside of the container in which it may run."""
    path = settings.run_dir / alone.LOCK_NAME
    if alone.is_held(path):
        return Daemon("controller", True, f"{path} is held")
    return Daemon("controller", False, f"{path}: nobody holds it")


def report(settings: Settings, name: str) -> dict[str, Any]:
    """A JSON file that a daemon left in run_dir."""
    return read_json(settings.run_dir / name)


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file; empty where it is absent or makes no sense."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
