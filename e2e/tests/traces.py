# SPDX-License-Identifier: Apache-2.0
"""Everything that a pod could leave behind on a node of the lab: two looks at it, before and after, must be equal."""

import json
import re

from e2e.lab import cgroups
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
OF_INSTALLATION = (
    "ip -o link",
    "ip -o address",
    "ip -o route show table all",
    "ip -o -6 route show table all",
    "ip rule",
    "ip -6 rule",
    "nft list ruleset",
    "bpftool net show",
    "find /sys/fs/bpf",
    # What the runtime keeps of each pod, and its own directories, which kubelet makes where they are not, are theirs.
    "find /etc /opt /usr/local/bin /usr/local/lib/calico-ebpf /var/lib/calico-ebpf /var/lib/cni -not -path */results*"
    " -not -path /opt/cni -not -path /opt/cni/bin -not -path /var/lib/cni",
    "sysctl -a --pattern ^net",
)
COUNTERS = re.compile(
    r"counter packets \d+ bytes \d+|valid_lft \w+ preferred_lft \w+|\[\d+:\d+\]|^# .*|nf_conntrack_count = .*"
)


def traces(node: Node) -> dict[str, object]:
    """Links, addresses, routes, neighbours and files as they are shown, and how many entries each map has."""
    shown: dict[str, object] = {command: sorted(_shown(node, command)) for command in COMMANDS}
    return shown | {name: entries(node, name) for name in COUNTED}


def remains(node: Node) -> dict[str, list[str]]:
    """Everything that an installation could leave behind on a node, counters and times apart."""
    commands = (*OF_INSTALLATION, f"bpftool cgroup tree {cgroups.cgroup2()}")
    return {command: sorted(COUNTERS.sub("", line) for line in _shown(node, command)) for command in commands}


def entries(node: Node, name: str) -> int:
    """How many entries a map has."""
    return len(json.loads(node.space.run("bpftool", "-j", "map", "dump", "pinned", f"{MAPS}/{name}").stdout))


def _shown(node: Node, command: str) -> list[str]:
    """Lines without what changes by itself. What `find` looks for need not be there."""
    shown = node.space.run(*command.split(), check=not command.startswith("find")).stdout
    return [line for line in shown.splitlines() if " cache " not in line]
