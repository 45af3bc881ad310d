# SPDX-License-Identifier: Apache-2.0
"""Nodes without pod ranges, and the addresses of their pods, which stand in for the ranges. Pure.

Where nobody gives Nodes ranges, as in clusters whose pods have addresses of a range in the CNI configuration or of a
delegated IPAM plugin, the pods themselves tell which addresses lead to a node. Pods are to be followed only while there
is such a Node: `wanted` says when.

What a pod's address is, its kubelet says, and a single address goes before every range. None stands in that a Node
claims, or that is nobody's alone: a kubelet must not draw to its node what is meant for another, or for a host.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from bpf.address import is_v4, packed, text
from controller.claims import Claims
from controller.model import Key, Kind, Node, Pod
from controller.nodes import some
from controller.source import Changed, Event, Problem, Problems, Synced

# How old a Node is to be before its pods are looked at: a new one gets its ranges within a second or so.
PATIENCE_S = 10.0


class Shown(NamedTuple):
    """What stands in for a node's ranges, and which addresses of its pods do not."""

    ranges: list[str]
    refused: list[str]


NOTHING = Shown([], [])


class StandIns:
    """Stands between Departures and who consumes Nodes. Pods end here.

    While Nodes are first listed, and some lack ranges, that they have been listed is held back until the pods have:
    what an earlier controller wrote of these pods must not be taken for old.

    Args:
        own: the name of this node, which knows its pods by itself.
        clock: seconds since the epoch.
    """

    def __init__(self, own: str, clock: Callable[[], float] = time.time) -> None:
        self._own = own
        self._clock = clock
        self._bare: dict[str, Node] = {}
        self._since: dict[str, float] = {}
        self._shown: dict[str, Shown] = {}
        self._claims = Claims()
        self._claimed_anew = False
        self._pods: dict[str, dict[Key, tuple[str, ...]]] = {}
        self._node_of: dict[Key, str] = {}
        self._listed = False
        self._held = False
        self.wanted = False

    @property
    def due_s(self) -> float | None:
        """In how many seconds `passed` is to be called, if only with no events; None: not before there are some."""
        if self.wanted or not self._bare:
            return None
        return max(0.0, min(self._since.values()) + PATIENCE_S - self._clock())

    def passed(self, events: Sequence[Event]) -> list[Event]:
        """The events as they are to be consumed."""
        made: list[Event] = []
        for event in events:
            made += self._passed(event)
        if (not self.wanted and self._look()) or self._claimed_anew:
            self._claimed_anew = False
            made += self._shown_anew(self._bare)
        if self._held and (self._listed or not self.wanted):
            self._held = False
            made.append(Synced(Kind.NODE))
        return made

    def forget(self) -> None:
        """Pods are not followed any longer: what is known of them may be old. Ranges stay until they are listed."""
        self._pods.clear()
        self._node_of.clear()
        self._listed = False

    def _passed(self, event: Event) -> list[Event]:
        if isinstance(event, Synced) and event.kind == Kind.POD:
            self._listed = True
            return self._shown_anew(self._bare)
        if isinstance(event, Synced) and event.kind == Kind.NODE:
            self._held = True
            return []
        if isinstance(event, Changed) and event.kind == Kind.POD:
            return self._shown_anew(self._moved(event))
        if isinstance(event, Changed) and event.kind == Kind.NODE:
            node = event.obj if isinstance(event.obj, Node) else None
            self._claimed_anew |= self._claims.note(event.key[1], node)
            return [event] if event.key[1] == self._own else self._noted(event)
        return [event]

    def _noted(self, event: Changed) -> list[Event]:
        """Takes note of a Node; as it is to be consumed."""
        name, node = event.key[1], event.obj
        if not isinstance(node, Node) or node.spec.ranges:
            self._bare.pop(name, None)
            self._since.pop(name, None)
            before = self._shown.pop(name, NOTHING)
            self.wanted = self.wanted and bool(self._bare)
            return [event, *_told(name, before, NOTHING)]
        now, created = self._clock(), node.metadata.creation_timestamp
        # A clock that is behind the API server's makes nobody wait longer.
        self._since.setdefault(name, min(now, created.timestamp() if created else now))
        self._bare[name] = node
        before, shown = self._shown.get(name, NOTHING), self._look_at(name)
        return [_with(node, shown.ranges), *_told(name, before, shown)]

    def _look(self) -> bool:
        """Whether a Node has been without ranges for long enough; the others then need not wait. A clock that was set
        back tells nothing."""
        now = self._clock()
        self.wanted = any(not 0 <= now - since < PATIENCE_S for since in self._since.values())
        return self.wanted

    def _moved(self, event: Changed) -> list[str]:
        """Takes note of a pod; the nodes that it concerns. One of the host's network has no address of its own."""
        key, pod = event.key, event.obj
        name, addresses = "", tuple[str, ...]()
        if isinstance(pod, Pod) and not pod.spec.host_network and pod.spec.node_name != self._own:
            name, addresses = pod.spec.node_name, tuple(item.ip for item in pod.status.pod_ips or ())
        before = self._node_of.pop(key, "")
        had = self._pods[before].pop(key) if before else ()
        if before and not self._pods[before]:
            del self._pods[before]
        if addresses:
            self._node_of[key] = name
            self._pods.setdefault(name, {})[key] = addresses
        return [] if (before, had) == (name, addresses) else [before, name]

    def _shown_anew(self, names: Iterable[str]) -> list[Event]:
        """Those of these Nodes whose pods have come to have other addresses."""
        if not (self.wanted and self._listed):
            return []
        made: list[Event] = []
        for name in dict.fromkeys(names):
            if name in self._bare:
                before, shown = self._shown.get(name, NOTHING), self._look_at(name)
                made += [_with(self._bare[name], shown.ranges)] if shown.ranges != before.ranges else []
                made += _told(name, before, shown)
        return made

    def _look_at(self, name: str) -> Shown:
        """What stands in for a node's ranges: until pods are listed, what did before."""
        if self.wanted and self._listed:
            used = {address for addresses in self._pods.get(name, {}).values() for address in addresses}
            ranges = {address: self._range(address) for address in used}
            refused = sorted(address for address, found in ranges.items() if not found)
            self._shown[name] = Shown(sorted(filter(None, ranges.values())), refused)
        return self._shown.get(name, NOTHING)

    def _range(self, address: str) -> str:
        """As a range of one address; "" where none may stand in."""
        try:
            number = packed(address)
        except ValueError:
            return ""
        return "" if number in self._claims else f"{text(number)}/{32 if is_v4(number) else 128}"


def _with(node: Node, ranges: list[str]) -> Changed:
    return Changed(Kind.NODE, ("", node.metadata.name), node.with_ranges(ranges))


def _told(name: str, before: Shown, now: Shown) -> list[Event]:
    if before.refused == now.refused:
        return []
    message = "which its pods are said to have, is left out: a Node claims it, or it is no single host's"
    problems = [Problem(f"Node {name}", f"{some(now.refused)}, {message}")] if now.refused else []
    return [Problems(f"pods of Node {name}", tuple(problems))]
