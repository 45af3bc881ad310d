# SPDX-License-Identifier: Apache-2.0
"""The file of ip-masq-agent, which names ranges that see pods under their own addresses.

Of its keys `nonMasqueradeCIDRs` counts, and `masqLinkLocal`; how often it is read does not: it is read when it changes.
A file without the one means the private ranges, and without the other IPv4's link-local addresses as well, as to
ip-masq-agent. Where there is no file there are none: ip-masq-agent would take all these then, too. Source: its user
guide in the documentation of Kubernetes; `syncConfig` of its own.
"""

from collections.abc import Callable
from pathlib import Path

import yaml

from bpf.prefixes import parse_range, prefixes
from controller import inotify
from controller.source import Problem

# RFC 1918.
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
# RFC 3927; a cloud's metadata server has such an address.
LINK_LOCAL = "169.254.0.0/16"
LINK_LOCAL_V6_STAYS = "masqLinkLocalIPv6: packets to IPv6 link-local addresses stay on a pod's link"


class RangesFile:
    """What the file says; where it cannot be read, what it said before.

    Args:
        path: None: there is none.
        room: what it names takes so many entries of the map at the most.
    """

    def __init__(self, path: Path | None, room: int) -> None:
        self._path = path
        self._room = room
        self._ranges: tuple[str, ...] = ()

    def read(self) -> tuple[tuple[str, ...], list[Problem]]:
        """The ranges, and what is wrong with the file."""
        if self._path is None:
            return (), []
        try:
            self._ranges, remarks = parse(self._path.read_text(encoding="utf-8"), self._room)
        except FileNotFoundError:
            self._ranges, remarks = (), []
        except (OSError, ValueError) as error:
            remarks = [f"{error}; what it said before stays"]
        return self._ranges, [Problem("ip-masq-agent", remark, str(self._path)) for remark in remarks]


def parse(content: str, room: int) -> tuple[tuple[str, ...], list[str]]:
    """The ranges in a file, and what in it has no effect. Raises ValueError."""
    try:
        found = yaml.safe_load(content)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise ValueError("expected a mapping")
    ranges = found.get("nonMasqueradeCIDRs", list(PRIVATE)) or []
    if not isinstance(ranges, list) or not all(isinstance(one, str) for one in ranges):
        raise ValueError("nonMasqueradeCIDRs: expected a list of ranges")
    try:
        checked = tuple(str(parse_range(one)) for one in ranges)
    except ValueError as error:
        raise ValueError(f"nonMasqueradeCIDRs: {error}") from error
    if not found.get("masqLinkLocal"):
        checked = (*checked, LINK_LOCAL)
    entries = len(prefixes(checked))
    if entries > room:
        raise ValueError(
            f"nonMasqueradeCIDRs: {len(checked)} ranges take {entries} entries, and there is room for {room}"
        )
    return checked, [LINK_LOCAL_V6_STAYS] if found.get("masqLinkLocalIPv6") else []


def watch(path: Path | None, changed: Callable[[], None]) -> None:
    """Starts a thread that calls `changed` when the file may have changed; none where there is no file to be. A mounted
    ConfigMap's changes by another name."""
    if path is not None:
        inotify.follow("ip-masq-agent", path.parent, changed)
