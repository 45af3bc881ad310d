# SPDX-License-Identifier: Apache-2.0
"""Whether the pinned maps have the sizes that the settings ask for: a map keeps the size that it was made with."""

import os

from bpf import node, syscall
from bpf.errors import NotLoadedError
from bpf.loader import Pins
from bpf.settings import Settings

REMEDY = "a map is made anew when the node is drained and restarted"


def differences(settings: Settings) -> list[str]:
    """Each map of another size than its setting, in words."""
    pins = node.pins(settings)
    found = []
    for name, wanted in sorted(node.map_sizes(settings).items()):
        size = max_entries(pins, name)
        if size not in (None, wanted):
            found.append(f"map {name} was made for {size} entries, {name}_max is {wanted}")
    return found


def max_entries(pins: Pins, name: str) -> int | None:
    """For how many entries a pinned map was made; None where it is not there."""
    try:
        fd = pins.open_map(name)
    except NotLoadedError:
        return None
    try:
        return syscall.map_info(fd).max_entries
    finally:
        os.close(fd)
