# SPDX-License-Identifier: Apache-2.0
"""Services and their EndpointSlices to pools of backends: which endpoints a Service port has, and where it is met.

The tracker records what changed and compiles only the Services concerned; the rules are pure functions. Only cluster
IPs are frontends here. Source: pkg/proxy of Kubernetes for the rules, KEP-1669 for terminating endpoints.
"""

from collections.abc import Iterable, Iterator, Mapping
from socket import IPPROTO_SCTP, IPPROTO_TCP, IPPROTO_UDP
from typing import NamedTuple

from bpf.abi import Backend, FrontendFlag, FrontendKey
from bpf.address import is_v4, packed
from controller.desired import Pool, PoolKey
from controller.model import Conditions, EndpointSlice, Key, Kind, Service, key_of
from controller.source import Changed, Problem

LABEL_PROXY = "service.kubernetes.io/service-proxy-name"
LABEL_HEADLESS = "service.kubernetes.io/headless"
LABEL_SERVICE = "kubernetes.io/service-name"

PROTOCOLS = {"TCP": IPPROTO_TCP, "UDP": IPPROTO_UDP, "SCTP": IPPROTO_SCTP}
FAMILIES = {"IPv4": 4, "IPv6": 6}

# An endpoint's port as the Service means it: family, name of the port, protocol.
_PortName = tuple[int, str, int]


class Compiled(NamedTuple):
    """What a Service comes to, and what of it cannot be used."""

    pools: dict[PoolKey, Pool]
    problems: list[Problem]


class ServiceTracker:
    """Holds the Services and slices as they are now, and which Services have to be compiled again."""

    def __init__(self) -> None:
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, dict[str, EndpointSlice]] = {}
        self._owners: dict[Key, Key] = {}
        self._dirty: set[Key] = set()

    def apply(self, change: Changed) -> None:
        if change.kind == Kind.SERVICE:
            self._apply_service(change.key, change.obj if isinstance(change.obj, Service) else None)
        elif change.kind == Kind.ENDPOINT_SLICE:
            self._apply_slice(change.key, change.obj if isinstance(change.obj, EndpointSlice) else None)

    @property
    def dirty(self) -> bool:
        """Whether `compile_changed` has anything to give."""
        return bool(self._dirty)

    def compile_changed(self) -> Iterator[tuple[Key, Compiled]]:
        """Every Service whose input changed since the last call, compiled; one that is gone comes to nothing."""
        dirty, self._dirty = self._dirty, set()
        for key in dirty:
            service = self._services.get(key)
            slices = self._slices.get(key, {})
            yield key, compile_service(service, slices.values()) if service else Compiled({}, [])

    def counts(self) -> dict[str, int]:
        """Objects held, by kind."""
        return {Kind.SERVICE: len(self._services), Kind.ENDPOINT_SLICE: len(self._owners)}

    def _apply_service(self, key: Key, service: Service | None) -> None:
        if service and is_ours(service):
            self._services[key] = service
        elif self._services.pop(key, None) is None:
            return
        self._dirty.add(key)

    def _apply_slice(self, key: Key, item: EndpointSlice | None) -> None:
        owner = _owner(item) if item else None
        before = self._owners.pop(key, None)
        if before:
            slices = self._slices[before]
            del slices[key[1]]
            if not slices:
                del self._slices[before]
        if owner and item:
            self._owners[key] = owner
            self._slices.setdefault(owner, {})[key[1]] = item
        self._dirty.update(one for one in (before, owner) if one)


def is_ours(service: Service) -> bool:
    """Whether this project serves a Service: not another proxy's, not headless, not a mere name."""
    spec = service.spec
    return (
        LABEL_PROXY not in service.metadata.labels
        and spec.type != "ExternalName"
        and spec.cluster_ip not in ("", "None")
    )


def compile_service(service: Service, slices: Iterable[EndpointSlice]) -> Compiled:
    """The pools of a Service.

    Args:
        slices: those whose owner it is, in any order.
    """
    problems: list[Problem] = []
    found = _endpoints(sorted(slices, key=key_of), problems)
    pools = {}
    namespace, name = key_of(service)
    for port in service.spec.ports:
        protocol = PROTOCOLS.get(port.protocol)
        if protocol is None or not _is_port(port.port):
            problems.append(Problem(_label(service), f"port {port.port}/{port.protocol} cannot be"))
            continue
        for family, address in _cluster_ips(service, problems):
            frontend = FrontendKey(address, port.port, protocol).pack()
            backends = select(found.get((family, port.name, protocol), {}))
            key = PoolKey(namespace, name, port.port, protocol, family)
            pools[key] = Pool(((frontend, FrontendFlag.CLUSTER_IP),), backends)
    return Compiled(pools, problems)


def select(endpoints: Mapping[bytes, Conditions]) -> tuple[bytes, ...]:
    """The backends to use: those that are ready; where there are none, those serving while they terminate."""
    ready = [backend for backend, conditions in endpoints.items() if conditions.is_ready]
    if not ready:
        ready = [backend for backend, one in endpoints.items() if one.is_serving and one.is_terminating]
    return tuple(sorted(ready))


def _endpoints(slices: Iterable[EndpointSlice], problems: list[Problem]) -> dict[_PortName, dict[bytes, Conditions]]:
    """Every endpoint once, as a packed struct backend, under each port that it has."""
    found: dict[_PortName, dict[bytes, Conditions]] = {}
    for item in slices:
        family = FAMILIES.get(item.address_type)
        if family is None:
            continue
        addresses = list(_addresses(item, family, problems))
        for port in item.ports or ():
            protocol = PROTOCOLS.get(port.protocol or "TCP")
            if protocol is None or port.port is None:
                continue
            if not _is_port(port.port):
                problems.append(Problem(_label(item), f"port {port.port} cannot be"))
                continue
            copies = found.setdefault((family, port.name or "", protocol), {})
            for address, conditions in addresses:
                backend = Backend(address, port.port, protocol).pack()
                copies[backend] = _better(copies.get(backend), conditions)
    return found


def _addresses(item: EndpointSlice, family: int, problems: list[Problem]) -> Iterator[tuple[bytes, Conditions]]:
    """Only the first address of an endpoint counts: the API says that they are interchangeable."""
    for endpoint in item.endpoints or ():
        if endpoint.addresses:
            try:
                yield _address(endpoint.addresses[0], family), endpoint.conditions
            except ValueError as error:
                problems.append(Problem(_label(item), str(error)))


def _better(one: Conditions | None, other: Conditions) -> Conditions:
    """Which of two copies of an endpoint counts: while it moves between slices, one may lag behind."""
    if one is None:
        return other
    return min(one, other, key=lambda copy: (copy.is_terminating, not copy.is_ready, not copy.is_serving))


def _cluster_ips(service: Service, problems: list[Problem]) -> Iterator[tuple[int, bytes]]:
    for text in service.spec.cluster_ips or [service.spec.cluster_ip]:
        family = 6 if ":" in text else 4
        try:
            yield family, _address(text, family)
        except ValueError as error:
            problems.append(Problem(_label(service), str(error)))


def _address(text: str, family: int) -> bytes:
    """Raises ValueError where it is no address of that family."""
    address = packed(text)
    if is_v4(address) != (family == 4):
        raise ValueError(f"not an IPv{family} address: {text!r}")
    return address


def _owner(item: EndpointSlice) -> Key | None:
    name = item.metadata.labels.get(LABEL_SERVICE)
    if not name or LABEL_HEADLESS in item.metadata.labels:
        return None
    return item.metadata.namespace, name


def _is_port(number: int) -> bool:
    return 0 < number < 65536


def _label(obj: Service | EndpointSlice) -> str:
    return f"{type(obj).__name__} {obj.metadata.namespace}/{obj.metadata.name}"
