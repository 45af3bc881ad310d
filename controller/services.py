# SPDX-License-Identifier: Apache-2.0
"""Services and their EndpointSlices to pools of backends: which endpoints a Service port has, and where it is met.

The tracker records what changed and compiles only the Services concerned; the rules are pure functions. Where a Service
is met is in `frontends`. Source: pkg/proxy of Kubernetes.

A Service port has one pool in each family, which all its frontends share: the Cluster set and the Local set, each
worked out for itself. Where this node has nothing but terminating backends left, which still serve, while other nodes
have ready ones, or hints lead away from its own, they are in the Local set alone; which is made where a traffic policy
Local asks for it, or other nodes that hand over. Which set has what is in `endpoints`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from bpf.abi import Backend, BackendFlag, FrontendFlag
from controller import endpoints, frontends
from controller.desired import Pool, PoolKey
from controller.endpoints import Endpoints, Found
from controller.frontends import PROTOCOLS, Frontends, address_of, is_port
from controller.model import EndpointSlice, Key, Kind, Service, ServiceAnnotations, key_of
from controller.nodes import some
from controller.source import Changed, Problem

LABEL_PROXY = "service.kubernetes.io/service-proxy-name"
LABEL_HEADLESS = "service.kubernetes.io/headless"
LABEL_SERVICE = "kubernetes.io/service-name"

FAMILIES = {"IPv4": 4, "IPv6": 6}
FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}

# The annotations by which a Service says how answers return to outside clients, and how these are given backends; and
# what they may say.
RETURN = "calico-ebpf.io/return"
RETURNS = ("entry", "direct")
BALANCING = "calico-ebpf.io/balancing"
BALANCINGS = ("random", "maglev")

# Session affinity's time-out: what the API server puts where none is asked for, and what it takes at most.
AFFINITY_S = 10800
AFFINITY_MAX_S = 86400

# An endpoint's port as the Service means it: family, name of the port, protocol.
_PortName = tuple[int, str, int]


class Rules(NamedTuple):
    """What of this node decides how Services are compiled.

    Attributes:
        node_name: endpoints of this node are local.
        zone: that of this node; "": it has none.
        addresses: this node's own, 16 bytes each.
        way_back: of RETURNS, where a Service does not say otherwise.
        balancing: of BALANCINGS, likewise.
        maglev_size: places of a Maglev table.
        echo: load-balancer addresses answer it.
    """

    node_name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    way_back: str = "entry"
    balancing: str = "random"
    maglev_size: int = 4093
    echo: bool = True


class HealthPort(NamedTuple):
    """Where load balancers ask whether this node has endpoints.

    Attributes:
        local: ready endpoints of this node, by family of the Service's addresses.
    """

    port: int
    local: dict[int, int]


class Compiled(NamedTuple):
    """What a Service comes to, and what of it cannot be used.

    Attributes:
        no_local: for each port with a policy of Local and no endpoint here, though there are some elsewhere: the
            policy, internal or external, and the family.
    """

    pools: dict[PoolKey, Pool]
    problems: list[Problem]
    health: HealthPort | None = None
    no_local: tuple[tuple[str, str], ...] = ()


class ServiceTracker:
    """Holds the Services and slices as they are now, and which Services have to be compiled again."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._services: dict[Key, Service] = {}
        self._slices: dict[Key, dict[str, EndpointSlice]] = {}
        self._owners: dict[Key, Key] = {}
        self._dirty: set[Key] = set()

    def apply(self, change: Changed) -> bool:
        """Takes note of a change; returns whether there is something to be compiled for it."""
        if change.kind == Kind.SERVICE:
            return self._apply_service(change.key, change.obj if isinstance(change.obj, Service) else None)
        if change.kind == Kind.ENDPOINT_SLICE:
            return self._apply_slice(change.key, change.obj if isinstance(change.obj, EndpointSlice) else None)
        return False

    def set_zone(self, zone: str) -> None:
        """Takes note of the zone of this node; "": it has none."""
        if zone == self._rules.zone:
            return
        self._rules = self._rules._replace(zone=zone)
        self._dirty.update(owner for owner, slices in self._slices.items() if any(map(_has_zones, slices.values())))

    def set_addresses(self, addresses: tuple[bytes, ...]) -> None:
        """Takes note of this node's own addresses, which load-balancer addresses may be for; without any, those of
        before stay."""
        if addresses and addresses != self._rules.addresses:
            self._rules = self._rules._replace(addresses=addresses)
            self._dirty.update(key for key, one in self._services.items() if one.spec.load_balancer_source_ranges)

    @property
    def dirty(self) -> bool:
        """Whether `take_changed` has anything to give."""
        return bool(self._dirty)

    def take_changed(self) -> set[Key]:
        """Every Service whose input changed since the last call."""
        changed, self._dirty = self._dirty, set()
        return changed

    def compile(self, key: Key) -> Compiled:
        """A Service as it is now; one that is gone comes to nothing."""
        service = self._services.get(key)
        slices = self._slices.get(key, {})
        return compile_service(service, slices.values(), self._rules) if service else Compiled({}, [])

    def counts(self) -> dict[str, int]:
        """Objects held, by kind."""
        return {Kind.SERVICE: len(self._services), Kind.ENDPOINT_SLICE: len(self._owners)}

    def _apply_service(self, key: Key, service: Service | None) -> bool:
        if service and is_ours(service):
            self._services[key] = service
        elif self._services.pop(key, None) is None:
            return False
        self._dirty.add(key)
        return True

    def _apply_slice(self, key: Key, item: EndpointSlice | None) -> bool:
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
        return bool(before or owner)


def is_ours(service: Service) -> bool:
    """Whether this project serves a Service: not another proxy's, not headless, not a mere name."""
    spec = service.spec
    return (
        LABEL_PROXY not in service.metadata.labels
        and spec.type != "ExternalName"
        and spec.cluster_ip not in ("", "None")
    )


def compile_service(service: Service, slices: Iterable[EndpointSlice], rules: Rules) -> Compiled:
    """The pools of a Service.

    Args:
        slices: those whose owner it is, in any order.
    """
    problems: list[Problem] = []
    found = _endpoints(sorted(slices, key=key_of), rules, problems)
    met, troubles = frontends.frontends(service, _asked(service, rules, problems), rules.addresses, rules.echo)
    problems += [Problem(_label(service), trouble) for trouble in troubles]
    affinity_s = _affinity_s(service, problems)
    namespace, name = key_of(service)
    pools: dict[PoolKey, Pool] = {}
    no_local: list[tuple[str, str]] = []
    for (family, port, protocol), (port_name, there) in met.items():
        key = PoolKey(namespace, name, port, protocol, family)
        known = found.get((family, port_name, protocol), {})
        pool = _pool(there, known)._replace(sources=there.sources, affinity_s=affinity_s if port else 0)
        pools[key] = pool._replace(maglev_size=_maglev_size(service, pool, rules, problems))
        no_local += [(policy, FAMILY_NAMES[family]) for policy in _policies_without_endpoint(service, there, known)]
    health = _health_port(service, {family for family, _, _ in met}, found, problems)
    return Compiled(pools, problems, health, tuple(no_local))


def _asked(service: Service, rules: Rules, problems: list[Problem]) -> FrontendFlag:
    """What clients outside get by its annotations, or by this node's settings."""
    annotations = service.metadata.annotations or ServiceAnnotations()

    def said(name: str, text: str, choices: Sequence[str], setting: str) -> str:
        if text and text not in choices:
            trouble = f"annotation {name}: {text!r} is neither {' nor '.join(choices)}: this node's setting counts"
            problems.append(Problem(_label(service), trouble))
        return text if text in choices else setting

    direct = said(RETURN, annotations.way_back, RETURNS, rules.way_back) == "direct"
    if annotations.balancing == "maglev" and not _outlives_entry_node(service):
        trouble = (
            f"annotation {BALANCING}: maglev is for external and load-balancer addresses under externalTrafficPolicy "
            "Cluster, of which there is none: its backends are chosen at random"
        )
        problems.append(Problem(_label(service), trouble))
    maglev = said(BALANCING, annotations.balancing, BALANCINGS, rules.balancing) == "maglev"
    return (FrontendFlag.DIRECT if direct else FrontendFlag(0)) | (FrontendFlag.MAGLEV if maglev else 0)


def _outlives_entry_node(service: Service) -> bool:
    """Whether there is, or is to be, an address at which another node can be the entry, with the same backends."""
    spec = service.spec
    return spec.external_traffic_policy != "Local" and (spec.type == "LoadBalancer" or bool(spec.external_ips))


def _maglev_size(service: Service, pool: Pool, rules: Rules, problems: list[Problem]) -> int:
    """Of its table; 0: it has none."""
    count = len(pool.local) + len(pool.others)
    if not any(flags & FrontendFlag.MAGLEV for _, flags in pool.frontends):
        return 0
    if count > rules.maglev_size:
        trouble = f"{count} backends are more than maglev_table_size has places: they are chosen at random"
        problems.append(Problem(_label(service), trouble))
        return 0
    return rules.maglev_size


def _policies_without_endpoint(service: Service, met: Frontends, found: Endpoints) -> list[str]:
    policies = ["internal"] if service.spec.internal_traffic_policy == "Local" else []
    if service.spec.external_traffic_policy == "Local" and met.external:
        policies.append("external")
    return policies if policies and endpoints.cluster_set(found) and not endpoints.local_set(found) else []


def _pool(met: Frontends, found: Endpoints) -> Pool:
    cluster = endpoints.cluster_set(found)
    local = tuple(backend for backend in cluster if found[backend].local)
    others = tuple(backend for backend in cluster if not found[backend].local)
    apart: tuple[bytes, ...] = ()
    if any(flags & (FrontendFlag.LOCAL | FrontendFlag.DIRECT) for _, flags in met.all):
        apart = tuple(_marked_apart(backend) for backend in endpoints.local_set(found) if backend not in local)
    return Pool(met.all, apart, local, others)


def _marked_apart(backend: bytes) -> bytes:
    """The same as another backend, with an id of its own: what a client had by affinity while it was in both sets is
    void, as what the Cluster set has no more."""
    return Backend.unpack(backend)._replace(flags=BackendFlag.APART).pack()


def _health_port(
    service: Service, families: set[int], found: Mapping[_PortName, Endpoints], problems: list[Problem]
) -> HealthPort | None:
    """An endpoint counts once, however many ports it has."""
    port = service.spec.health_check_node_port
    if not port or service.spec.type != "LoadBalancer" or service.spec.external_traffic_policy != "Local":
        return None
    if not is_port(port):
        problems.append(Problem(_label(service), f"healthCheckNodePort {port} cannot be"))
        return None
    ready = {
        (name[0], Backend.unpack(backend).address)
        for name, copies in found.items()
        for backend, one in copies.items()
        if one.local and one.ready
    }
    return HealthPort(port, {family: sum(1 for one, _ in ready if one == family) for family in sorted(families)})


def _affinity_s(service: Service, problems: list[Problem]) -> int:
    """The time-out of session affinity; 0: it has none."""
    if service.spec.session_affinity != "ClientIP":
        return 0
    config = service.spec.session_affinity_config
    asked = config.client_ip.timeout_seconds if config and config.client_ip else None
    if asked is None:
        return AFFINITY_S
    if not 0 < asked <= AFFINITY_MAX_S:
        problems.append(Problem(_label(service), f"session affinity for {asked} s cannot be: it is for {AFFINITY_S} s"))
        return AFFINITY_S
    return asked


def _endpoints(
    slices: Iterable[EndpointSlice], rules: Rules, problems: list[Problem]
) -> dict[_PortName, dict[bytes, Found]]:
    """Every endpoint once, as a packed struct backend, under each port that it has."""
    found: dict[_PortName, dict[bytes, Found]] = {}
    for item in slices:
        family = FAMILIES.get(item.address_type)
        if family is None:
            if item.address_type != "FQDN":
                problems.append(Problem(_label(item), f"addressType {item.address_type!r} cannot be"))
            continue
        addresses = list(_addresses(item, family, rules, problems))
        for port in item.ports or ():
            if port.port is None:
                continue
            protocol = PROTOCOLS.get(port.protocol or "TCP")
            if protocol is None or not is_port(port.port):
                problems.append(Problem(_label(item), f"port {port.port}/{port.protocol or 'TCP'} cannot be"))
                continue
            copies = found.setdefault((family, port.name or "", protocol), {})
            for address, one in addresses:
                backend = Backend(address, port.port, protocol, 0).pack()
                copies[backend] = endpoints.better(copies.get(backend), one)
    return found


def _addresses(
    item: EndpointSlice, family: int, rules: Rules, problems: list[Problem]
) -> Iterator[tuple[bytes, Found]]:
    """Only the first address of an endpoint counts: the API says that they are interchangeable."""
    wrong: list[str] = []
    for endpoint in item.endpoints or ():
        try:
            if not endpoint.addresses:
                raise ValueError("an endpoint without address")
            yield (
                address_of(endpoint.addresses[0], family),
                endpoints.found(endpoint, rules.node_name, rules.zone),
            )
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        problems.append(Problem(_label(item), some(wrong)))


def _owner(item: EndpointSlice) -> Key | None:
    name = item.metadata.labels.get(LABEL_SERVICE)
    if not name or LABEL_HEADLESS in item.metadata.labels:
        return None
    return item.metadata.namespace, name


def _has_zones(item: EndpointSlice) -> bool:
    return any(endpoint.hints and endpoint.hints.for_zones for endpoint in item.endpoints or ())


def _label(obj: Service | EndpointSlice) -> str:
    return f"{type(obj).__name__} {obj.metadata.namespace}/{obj.metadata.name}"
