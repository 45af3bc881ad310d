# SPDX-License-Identifier: Apache-2.0
"""The ranges of Services' addresses, and which Nodes get in their way. Pure.

What is sent to an address of these ranges that no Service has is dropped. To one that is a pod's or a node's, too, it
goes astray.
"""

from collections.abc import Iterable

from bpf.address import text
from bpf.prefixes import parse_range
from controller.cidr import overlaps
from controller.model import Node, ServiceCIDR
from controller.nodes import NodeFacts, facts, some
from controller.source import Problem, Problems


class ServiceRanges:
    """What ServiceCIDRs and Nodes say, as they come and go.

    Args:
        configured: ranges that are there whatever ServiceCIDRs say.
    """

    def __init__(self, configured: Iterable[str] = ()) -> None:
        self._configured = tuple(configured)
        self._named: dict[str, tuple[str, ...]] = {}
        self._nodes: dict[str, NodeFacts] = {}

    @property
    def ranges(self) -> list[str]:
        """All that there are, IPv4 first."""
        found = {parse_range(cidr) for cidrs in (self._configured, *self._named.values()) for cidr in cidrs}
        return [str(one) for one in sorted(found, key=lambda one: (one.version, one.network_address, one.prefixlen))]

    def set_range(self, name: str, obj: ServiceCIDR | None) -> list[Problems]:
        """Takes note of a ServiceCIDR; None: it is gone. What is wrong by now, where that may have changed."""
        before, problems = self.ranges, []
        good = []
        for cidr in (obj.spec.cidrs or ()) if obj else ():
            try:
                good.append(str(parse_range(cidr)))
            except ValueError as error:
                problems.append(Problem(f"ServiceCIDR {name}", str(error)))
        self._named[name] = tuple(good)
        if not obj:
            del self._named[name]
        told = [Problems(f"ServiceCIDR {name}", tuple(problems))]
        return told if self.ranges == before else [*told, *map(self._told, self._nodes.values())]

    def set_node(self, name: str, node: Node | None) -> list[Problems]:
        """Takes note of a Node; None: it is gone. What is wrong by now, where that may have changed."""
        before = self._nodes.pop(name, None)
        if not node:
            return [self._told(before._replace(addresses=(), pod_cidrs=()))] if before else []
        self._nodes[name] = facts(node)[0]
        return [self._told(self._nodes[name])] if self._nodes[name] != before else []

    def _told(self, node: NodeFacts) -> Problems:
        problems = []
        for service_range in self.ranges:
            for what, cidrs in (("address", map(text, node.addresses)), ("pods", node.pod_cidrs)):
                if caught := [cidr for cidr in cidrs if overlaps(cidr, [service_range])]:
                    message = f"its {what} {some(caught)} in the range {service_range} of Services: traffic goes astray"
                    problems.append(Problem(f"Node {node.name}", message))
        return Problems(f"service ranges, Node {node.name}", tuple(problems))
