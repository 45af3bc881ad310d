# SPDX-License-Identifier: Apache-2.0
"""Everything that a pod could leave behind on a node of the lab: two looks at it, before and after, must be equal."""

import json

from e2e.lab.node import PINS, Node

MAPS = f"{PINS}/maps"
COUNTED = ("pods", "frontends", "slots", "backends", "remotes")
COMMANDS = (
    "ip -o link",
    "ip -o address",
    "ip -o route show table all",
    "ip -o -6 route show table all",
    "ip -o neigh show nud permanent",
    "find /var/lib/cni /var/lib/calico-ebpf /run/calico-ebpf /run/netns /etc/cni -not -name last_reserved_ip.*",
)


def traces(node: Node) -> dict[str, object]:
    """Links, addresses, routes, neighbours and files as they are shown, and how many entries each map has."""
    shown: dict[str, object] = {command: sorted(_shown(node, command)) for command in COMMANDS}
    return shown | {name: entries(node, name) for name in COUNTED}


def entries(node: Node, name: str) -> int:
    """How many entries a map has."""
    return len(json.loads(node.space.run("bpftool", "-j", "map", "dump", "pinned", f"{MAPS}/{name}").stdout))


def _shown(node: Node, command: str) -> list[str]:
    """Lines without what changes by itself."""
    return [line for line in node.space.run(*command.split()).stdout.splitlines() if " cache " not in line]
