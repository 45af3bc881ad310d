# SPDX-License-Identifier: Apache-2.0
"""Which addresses an interface gets, and from whom: the built-in allocator, or another IPAM plugin.

Ranges come from the configuration, else from what the controller has left of this node:

    <run_dir>/node.json   {"name": "worker-1", "pod_cidrs": ["10.244.1.0/24"], "mtu": 1500}
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import NamedTuple

from bpf.settings import Settings
from cni import delegate, ranges, result
from cni.config import Json, Network, Request
from cni.errors import CniError, ConfigError, DifferenceError, NodeError, TryAgainError
from cni.ipam import Reservations
from cni.ranges import Address, Destination, RangeSet
from cni.records import Record

NODE_FILE = "node.json"
_EVERYWHERE = ({"dst": "0.0.0.0/0"}, {"dst": "::/0"})


class Lease(NamedTuple):
    """Addresses given to an interface, where it sends to from them, and the name servers it is to use."""

    addresses: list[Address]
    destinations: list[Destination]
    dns: Json


class Node(NamedTuple):
    """What the controller knows of this node; `mtu` in bytes, of pod links."""

    pod_cidrs: list[str]
    mtu: int


class Leases:
    """Threads may share one."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def reserve(self, request: Request, network: Network) -> Lease:
        """Reserves addresses of each family, or none.

        Raises:
            ConfigError, ExhaustedError, TryAgainError, NodeError, and what `delegate.add` raises.
        """
        if network.delegated:
            return self._delegated(request, network)
        destinations, range_sets = _destinations(network.ipam.get("routes", [])), self._range_sets(network)
        addresses = self._reservations(network).allocate(request.container_id, request.ifname, range_sets)
        return _lease(addresses, destinations, network.dns)

    def require_ranges(self, network: Network) -> None:
        """Raises ConfigError, TryAgainError or NodeError where it is not known what addresses pods get here."""
        if not network.delegated:
            self._range_sets(network)

    def release(self, request: Request, network: Network, record: Record | None) -> None:
        """Gives back what an interface has; nothing is no error. Raises NodeError, DelegateError."""
        if network.delegated:
            delegate.delete(request, network)
            return
        reservations = self._reservations(network)
        known = record.addresses if record and record.complete else ()
        addresses = known or reservations.find(request.container_id, request.ifname)
        reservations.release(request.container_id, request.ifname, addresses)

    def addresses(self, request: Request, network: Network, record: Record | None) -> Sequence[str]:
        """The addresses that an interface has, from whatever still tells."""
        if record and record.addresses:
            return record.addresses
        told = result.parse(network.prev_result).ips if network.prev_result else []
        found = [] if network.delegated else self._reservations(network).find(request.container_id, request.ifname)
        return [*found, *(str(ip_interface(ip["address"]).ip) for ip in told)]

    def check(self, request: Request, network: Network) -> None:
        """Raises DifferenceError, or DelegateError, where an interface's addresses are not reserved."""
        if network.delegated:
            delegate.check(request, network)
        elif not self._reservations(network).find(request.container_id, request.ifname):
            raise DifferenceError(f"{request.ifname}: no address is reserved for it")

    def node(self) -> Node | None:
        """What the controller has left of this node; None where it has not yet. Raises NodeError."""
        path = self._settings.run_dir / NODE_FILE
        try:
            node = json.loads(path.read_bytes())
            return Node([str(cidr) for cidr in node["pod_cidrs"]], int(node["mtu"]))
        except FileNotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            raise NodeError(f"{path}: not what the controller writes: {error!r}") from error

    def _delegated(self, request: Request, network: Network) -> Lease:
        try:
            given = delegate.add(request, network)
            addresses = [ip_interface(ip["address"]).ip for ip in given.ips]
            return _lease(addresses, _destinations(given.routes), given.dns or network.dns)
        except CniError:
            # A plugin that failed midway may hold an address; if this fails, too, the runtime's DEL says it again.
            with suppress(CniError):
                delegate.delete(request, network)
            raise

    def _range_sets(self, network: Network) -> list[RangeSet]:
        named = ranges.range_sets(network.ipam)
        if named:
            return named
        node = self.node()
        if node is None:
            missing = self._settings.run_dir / NODE_FILE
            raise TryAgainError("the pod range of this node is not known yet", f"the controller has not left {missing}")
        if not node.pod_cidrs:
            raise TryAgainError("this node has no pod range yet", "its Node object has no podCIDRs")
        return ranges.of_subnets(node.pod_cidrs)

    def _reservations(self, network: Network) -> Reservations:
        return Reservations(Path(network.ipam.get("dataDir", self._settings.cni_networks_dir)), network.name)


def _lease(addresses: list[Address], destinations: Sequence[Destination], dns: Json) -> Lease:
    """Where a pod has no address of a family, it has no routes of it either."""
    families = {address.version for address in addresses}
    return Lease(addresses, [item for item in destinations if item.version in families], dns)


def _destinations(routes: object) -> list[Destination]:
    """The destinations of routes; everywhere, where there are none."""
    if not isinstance(routes, list):
        raise ConfigError(f"ipam.routes: expected a list, not {routes!r}")
    try:
        return [ip_network(route["dst"]) for route in routes or _EVERYWHERE]
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"routes: {error!r}: not of the form {{'dst': '192.0.2.0/24'}}") from error
