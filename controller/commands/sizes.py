# SPDX-License-Identifier: Apache-2.0
"""Whether the pinned maps have the sizes that the settings ask for, which the controller gives them when it starts."""

from contextlib import suppress

from bpf import node
from bpf.errors import NotLoadedError
from bpf.settings import Settings
from controller.commands.reading import max_entries

WHEN = "the controller follows when it starts"
REMEDY = "the controller sees to it when it starts, unless the map holds more"


def differences(settings: Settings) -> list[str]:
    """Each map of another size than its setting, in words."""
    pins = node.pins(settings)
    found = []
    for name, wanted in sorted(node.map_sizes(settings).items()):
        with suppress(NotLoadedError):
            size = max_entries(pins, name)
            if size != wanted:
                found.append(f"map {name} is for {size} entries, {name}_max is {wanted}")
    return found
