# SPDX-License-Identifier: Apache-2.0
"""Addresses that no pod of a Node without ranges may have: those that Nodes say are theirs, their own ones and those of
their pod ranges, and those of no single host. Pure."""

from collections import Counter
from collections.abc import Iterable

from bpf.prefixes import prefixes
from controller.model import Node
from controller.nodes import NodeFacts, facts

# (bits that count, their value), of addresses of 16 bytes.
Claim = tuple[int, int]

# Of this host, loopback, link-local, multicast.
NOBODYS = ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "::/127", "fe80::/10", "ff00::/8")


class Claims:
    """As Nodes come and go. A look-up takes as many steps as there are lengths of prefixes."""

    def __init__(self) -> None:
        self._of: dict[str, frozenset[Claim]] = {}
        self._prefixes: dict[int, Counter[int]] = {}
        self._add(_of_ranges(NOBODYS))

    def __contains__(self, address: bytes) -> bool:
        """Whether an address of 16 bytes is a Node's own, in the pod ranges of one, or no single host's."""
        number = int.from_bytes(address, "big")
        return any(number >> 128 - bits in values for bits, values in self._prefixes.items())

    def note(self, name: str, node: Node | None) -> bool:
        """Takes note of a Node; None: it is gone. Whether it claims something else than before."""
        before = self._of.pop(name, frozenset())
        now = _claimed(facts(node)[0]) if node else frozenset()
        if now:
            self._of[name] = now
        self._add(now - before)
        for bits, value in before - now:
            self._prefixes[bits][value] -= 1
            if not self._prefixes[bits][value]:
                del self._prefixes[bits][value]
        return now != before

    def _add(self, claims: Iterable[Claim]) -> None:
        for bits, value in claims:
            self._prefixes.setdefault(bits, Counter())[value] += 1


def _claimed(node: NodeFacts) -> frozenset[Claim]:
    own = [(128, int.from_bytes(address, "big")) for address in (*node.addresses, *node.outside)]
    return frozenset([*own, *_of_ranges(node.pod_cidrs)])


def _of_ranges(cidrs: Iterable[str]) -> list[Claim]:
    return [(bits, int.from_bytes(address, "big") >> 128 - bits) for bits, address in prefixes(cidrs)]
