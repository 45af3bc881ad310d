# SPDX-License-Identifier: Apache-2.0
"""Which of a Service port's endpoints are used here: the Cluster set and the Local set, each worked out alone. Pure.

What the Service says of its distribution of traffic (`trafficDistribution`, the annotations before it) is not looked
at: the controller that writes EndpointSlices turns it into hints, and these decide, in kube-proxy as here. Source:
pkg/proxy of Kubernetes; KEP-1669 for terminating endpoints, KEP-2433 and KEP-3015 for hints.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import NamedTuple

from controller.model import Endpoint


class Found(NamedTuple):
    """What counts of an endpoint.

    Attributes:
        local: it is on this node.
        for_node: whether its hints name this node; None: it has no hints for nodes.
        for_zone: whether they name this node's zone; None: it has no hints for zones.
    """

    ready: bool
    serving: bool
    terminating: bool
    local: bool
    for_node: bool | None = None
    for_zone: bool | None = None


# By struct backend.
Endpoints = Mapping[bytes, Found]


def found(endpoint: Endpoint, node_name: str, zone: str) -> Found:
    """What counts of an endpoint on a node.

    Args:
        zone: this node's; "" where it has none.
    """
    conditions, hints = endpoint.conditions, endpoint.hints
    return Found(
        conditions.is_ready,
        conditions.is_serving,
        conditions.is_terminating,
        endpoint.node_name == node_name,
        _named(node_name, (one.name for one in hints.for_nodes)) if hints and hints.for_nodes else None,
        _named(zone, (one.name for one in hints.for_zones)) if hints and hints.for_zones else None,
    )


def better(one: Found | None, other: Found) -> Found:
    """Which of two copies of an endpoint counts: while it moves between slices, one may lag behind."""
    if one is None:
        return other
    return min(one, other, key=lambda copy: (copy.terminating, not copy.ready, not copy.serving))


def cluster_set(endpoints: Endpoints) -> tuple[bytes, ...]:
    """The backends to use, wherever they are: those that are ready, and of these the ones that hints give this node;
    where none is ready, those serving while they terminate, whatever their hints."""
    ready = {backend: one for backend, one in endpoints.items() if one.ready}
    return tuple(sorted(_near(ready) or _going(endpoints)))


def local_set(endpoints: Endpoints) -> tuple[bytes, ...]:
    """This node's backends, for a policy of Local: those that are ready; where none is, those serving while they
    terminate. No hint takes one away."""
    here = {backend: one for backend, one in endpoints.items() if one.local}
    return tuple(sorted([backend for backend, one in here.items() if one.ready] or _going(here)))


def _near(ready: Endpoints) -> list[bytes]:
    """Those whose hints name this node, else those whose hints name its zone; all of them, unless each has such hints
    and one names it."""
    for hint in (attrgetter("for_node"), attrgetter("for_zone")):
        named = [backend for backend, one in ready.items() if hint(one)]
        if named and all(hint(one) is not None for one in ready.values()):
            return named
    return list(ready)


def _going(endpoints: Endpoints) -> list[bytes]:
    return [backend for backend, one in endpoints.items() if one.serving and one.terminating]


def _named(name: str, names: Iterable[str]) -> bool:
    return bool(name) and name in names
