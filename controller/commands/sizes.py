# SPDX-License-Identifier: Apache-2.0
"""Whether the pinned maps have the sizes that the settings ask for: a map keeps the size that it was made with."""

from contextlib import suppress

from bpf import node
from bpf.errors import NotLoadedError
from bpf.settings import Settings
from controller.commands.reading import max_entries

REMEDY = "a map is made anew when the node is drained and restarted"


def differences(settings: Settings) -> list[str]:
    """Each map of another size than its setting, in words."""
    pins = node.pins(settings)
    found = []
    for name, wanted in sorted(node.map_sizes(settings).items()):
        with suppress(NotLoadedError):
            size = max_entries(pins, name)
            if size != wanted:
                found.append(f"map {name} was made for {size} entries, {name}_max is {wanted}")
    return found
