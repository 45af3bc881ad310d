# SPDX-License-Identifier: Apache-2.0
"""The matrix: who asks, at which address, for which backend, by which way; and what of it cannot be. Pure.

The entry node is the one at which is asked: whose NodePort or host port it is, or by way of which a client outside
comes to an address. "here" and "local" mean that node, "there" and "remote" the other. So the NodePort that is asked
from here is one of the client's own node, and from there another node's.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

from e2e.tests.outside import CLUSTER_IP, KINDS, MODES, NODE_PORT
from e2e.tests.pairwise import pairwise
from e2e.tests.stage import FAMILIES

OUTSIDE = "outside"
POD, HOST, HOST_POD = "pod", "node", "host pod"
HOST_PORT = "hostPort"
SAME_POD = "same pod"


class Cell(NamedTuple):
    """A combination: of each factor one value."""

    mode: str
    who: str
    entry: str
    address: str
    backend: str
    family: str
    protocol: str
    policy: str

    @property
    def is_here(self) -> bool:
        """Whether who asks is on the entry node."""
        return self.who.endswith(" here")

    @property
    def is_local(self) -> bool:
        """Whether the backend is on the entry node."""
        return self.is_here if self.backend == SAME_POD else self.backend.endswith("local")

    @property
    def is_in_hosts_network(self) -> bool:
        """Whether the backend is."""
        return self.backend.startswith("host") or (self.backend == SAME_POD and self.who.startswith(HOST_POD))

    @property
    def service(self) -> str:
        """Of the stage's, the one with that backend; a host port's pod is the backend of one as well."""
        where = "near" if (self.entry == "node1") == self.is_local else "far"
        return ("host-" if self.is_in_hosts_network else "") + where + ("-local" if self.policy == "Local" else "")


FACTORS = {
    "mode": MODES,
    "who": (OUTSIDE, *(f"{who} {where}" for who in (POD, HOST, HOST_POD) for where in ("here", "there"))),
    "entry": ("node1", "node2"),
    "address": (CLUSTER_IP, *KINDS, HOST_PORT),
    "backend": ("local", "remote", SAME_POD, "host local", "host remote"),
    "family": FAMILIES,
    "protocol": ("tcp", "udp", "udp-unconnected"),
    "policy": ("Cluster", "Local"),
}


class Impossible(NamedTuple):
    """Combinations in which nobody can be served.

    Attributes:
        why: in the words of a standard.
        how_many: of these, without those of entries before this one.
    """

    why: str
    holds: Callable[[Cell], bool]
    how_many: int


def _local_policy_counts(cell: Cell) -> bool:
    """Whether externalTrafficPolicy Local is for this client at this address."""
    outside = cell.address in KINDS and cell.who == OUTSIDE
    return cell.policy == "Local" and (outside or (cell.address == NODE_PORT and not cell.is_here))


# Source of all: the API's own description, k8s.io/api/core/v1/types.go.
IMPOSSIBLE = (
    Impossible(
        "Pod: 'a collection of containers that can run on a host'. Who is outside, and a process of the node, is none, "
        "and no Service's backend either.",
        lambda cell: cell.backend == SAME_POD and not cell.who.startswith((POD, HOST_POD)),
        1440,
    ),
    Impossible(
        "hostPort: 'Number of port to expose on the host'. It stands on the host of its pod, and on no other.",
        lambda cell: cell.address == HOST_PORT and not cell.is_local,
        1536,
    ),
    Impossible(
        "externalTrafficPolicy: 'describes how nodes distribute service traffic they receive'. It is a Service's; a "
        "hostPort is a container's.",
        lambda cell: cell.address == HOST_PORT and cell.policy == "Local",
        768,
    ),
    Impossible(
        "externalTrafficPolicy: with Local 'each node will deliver traffic only to the node-local endpoints of the "
        "service', and 'clients sending to a NodePort from within the cluster may need to take traffic policy into "
        "account when picking a node'.",
        lambda cell: _local_policy_counts(cell) and not cell.is_local,
        672,
    ),
)


def why_impossible(cell: Cell) -> Impossible | None:
    """The first entry that holds."""
    return next((entry for entry in IMPOSSIBLE if entry.holds(cell)), None)


PRODUCT = [Cell(*row) for row in product(*FACTORS.values())]
CELLS = [cell for cell in PRODUCT if not why_impossible(cell)]
SELECTION = pairwise(CELLS)
