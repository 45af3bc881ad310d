# SPDX-License-Identifier: Apache-2.0
"""Nodes whose Node object is gone, or came back with other pod ranges, while pods run there. Pure.

Who deletes the Node of a machine that runs, by mistake or to have kubelet register it anew, breaks none of its
connections: it stays as it was last known until its pods are gone from the API, and likewise the ranges that it had
before, until the pods in them are. Another Node that claims a range has it at once.
"""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address, ip_network
from itertools import chain

from controller.cidr import is_range, overlaps
from controller.model import Kind, Node
from controller.source import Changed, Event, Synced


class Departures:
    """Stands between a source of Nodes and who consumes them.

    Args:
        own: the name of this node, which keeps what it had by itself, and claims ranges like any other.
        remembered: the other nodes as an earlier controller passed them on last.
    """

    def __init__(self, own: str, remembered: Iterable[Node] = ()) -> None:
        self._own = own
        self._remembered = {node.metadata.name: node for node in remembered}
        self._now: dict[str, Node] = {}
        self._kept: dict[str, tuple[Node, tuple[str, ...]]] = {}

    def __len__(self) -> int:
        """How many nodes there are."""
        return len(self._now)

    @property
    def kept(self) -> list[str]:
        """The names of those whose pods are to be asked for."""
        return sorted(self._kept)

    def passed(self, events: Sequence[Event]) -> list[Event]:
        """The events as they are to be consumed."""
        return list(chain.from_iterable(self._passed(event) for event in events))

    def settle(self, name: str, addresses: Iterable[str] | None) -> list[Event]:
        """Lets go of what is not needed any longer.

        Args:
            addresses: of the pods that the API knows on that node; None: it knows no pod there.
        """
        if name not in self._kept:
            return []
        now, (last, ranges) = self._now.get(name), self._kept[name]
        if now is None:
            if addresses is not None:
                return []
        elif left := tuple(cidr for cidr in ranges if _holds(cidr, addresses or ())):
            self._kept[name] = last, left
            return [_changed(name, _with(now, left))] if left != ranges else []
        del self._kept[name]
        return [_changed(name, now)]

    def _passed(self, event: Event) -> list[Event]:
        if isinstance(event, Synced) and event.kind == Kind.NODE:
            return [*self._missed(), event]
        if not isinstance(event, Changed) or event.kind != Kind.NODE:
            return [event]
        name, node = event.key[1], event.obj
        if name == self._own:
            if not isinstance(node, Node):
                return [event]
            self._now[name] = node
            return [*self._claimed(name, node), event]
        before = self._now.get(name) or self._remembered.pop(name, None)
        if not isinstance(node, Node):
            self._now.pop(name, None)
            return self._keep(name, before) if before else [] if name in self._kept else [event]
        self._now[name] = node
        claimed = self._claimed(name, node)
        past = self._free([cidr for cidr in (*_ranges(before), *self._past(name)) if cidr not in _ranges(node)])
        self._kept.pop(name, None)
        if past:
            self._kept[name] = node, past
        return [*claimed, _changed(name, _with(node, past))]

    def _missed(self) -> list[Event]:
        """Keeps those that the first list does not have: they went while no controller was here."""
        missed, self._remembered = self._remembered, {}
        self._kept |= {name: (node, self._free(_ranges(node))) for name, node in missed.items()}
        return [_changed(name, node.with_ranges(self._kept[name][1])) for name, node in missed.items()]

    def _keep(self, name: str, before: Node) -> list[Event]:
        """Keeps a node that is gone; of its ranges those that no other has by now: in a new list, who has left comes
        after who took its place."""
        ranges = (*_ranges(before), *self._past(name))
        left = self._free(ranges)
        self._kept[name] = before, left
        return [] if left == ranges else [_changed(name, before.with_ranges(left))]

    def _free(self, ranges: Sequence[str]) -> tuple[str, ...]:
        if not ranges:  # as of nearly every Node, each time that it is seen
            return ()
        taken = [cidr for node in self._now.values() for cidr in _ranges(node)]
        return tuple(dict.fromkeys(cidr for cidr in ranges if not overlaps(cidr, taken)))

    def _past(self, name: str) -> tuple[str, ...]:
        return self._kept[name][1] if name in self._kept else ()

    def _claimed(self, claimant: str, node: Node) -> list[Event]:
        """Takes from others what a Node says is its own."""
        events: list[Event] = []
        for name, (last, ranges) in list(self._kept.items()):
            left = tuple(cidr for cidr in ranges if not overlaps(cidr, _ranges(node)))
            if name == claimant or left == ranges:
                continue
            now = self._now.get(name)
            if left:
                self._kept[name] = last, left
                events.append(_changed(name, _with(now, left) if now else last.with_ranges(left)))
            else:
                del self._kept[name]
                events.append(_changed(name, now))
        return events


def _changed(name: str, node: Node | None) -> Changed:
    return Changed(Kind.NODE, ("", name), node)


def _ranges(node: Node | None) -> tuple[str, ...]:
    """Those that make sense; `nodes.facts` names the others."""
    return tuple(cidr for cidr in node.spec.ranges if is_range(cidr)) if node else ()


def _with(node: Node, ranges: Sequence[str]) -> Node:
    """A Node that has ranges besides its own."""
    return node.with_ranges([*node.spec.ranges, *ranges]) if ranges else node


def _holds(cidr: str, addresses: Iterable[str]) -> bool:
    return any(ip_address(address) in ip_network(cidr) for address in addresses)
