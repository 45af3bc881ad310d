# SPDX-License-Identifier: Apache-2.0
"""A model of what becomes of a packet for a Service, from the objects alone: which backends may be chosen for it, or
what else happens to it. By the Service API and kube-proxy's rules; nothing here is the controller's or the programs'.
"""

from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from ipaddress import ip_address, ip_network
from typing import NamedTuple

from controller.model import Endpoint, EndpointSlice, Node, Service, ServicePort


class Client(Enum):
    """Who asks: a pod of this node or the node itself, somebody outside, somebody outside by way of another node."""

    POD = "pod"
    HOST = "host"
    OUTSIDE = "outside"
    HANDED_OVER = "handed over"


class Verdict(Enum):
    """What may happen in place of a backend."""

    REFUSED = "refused"
    DROPPED = "dropped"
    UNTRANSLATED = "untranslated"


Backend = tuple[str, int]
Outcome = Backend | Verdict


class Asked(NamedTuple):
    """The destination of a packet; protocol: TCP, UDP or SCTP."""

    address: str
    port: int
    protocol: str

    @property
    def family(self) -> int:
        return ip_address(self.address).version


class Place(Enum):
    """The kinds of addresses at which a Service is met; of two of one Service, the first counts."""

    CLUSTER_IP = "cluster IP"
    LOAD_BALANCER = "load balancer"
    EXTERNAL_IP = "external IP"
    NODE_PORT = "NodePort"


class Met(NamedTuple):
    """What a destination belongs to."""

    service: Service
    port: ServicePort
    place: Place

    @property
    def is_local(self) -> bool:
        """Whether the traffic policy for this place is Local."""
        spec = self.service.spec
        return (
            spec.internal_traffic_policy if self.place == Place.CLUSTER_IP else spec.external_traffic_policy
        ) == "Local"


class Cluster(NamedTuple):
    """The objects; own: the name of this node, service_cidrs: the ranges of cluster IPs."""

    own: str
    services: Collection[Service]
    slices: Collection[EndpointSlice]
    nodes: Collection[Node]
    service_cidrs: Collection[str] = ()

    @property
    def zone(self) -> str:
        """This node's."""
        labels = next(one.metadata.labels for one in self.nodes if one.metadata.name == self.own)
        return labels.get("topology.kubernetes.io/zone", "")


def outcomes(cluster: Cluster, client: Client, source: str, asked: Asked) -> set[Outcome]:
    """All that may become of a client's packet: each of them may, and nothing else.

    Args:
        source: the client's address.
    """
    met = met_at(cluster, asked)
    own = client in (Client.POD, Client.HOST)
    if met is None:
        return {_unmet(cluster, client, asked)}
    if own and _is_other_nodes(cluster, met, asked):
        return {Verdict.UNTRANSLATED}
    if client != Client.HANDED_OVER and not _is_for(met, source):
        return {Verdict.DROPPED}
    endpoints = _endpoints(cluster, met, asked)
    everyone, here = _usable(_near(cluster, endpoints)), _usable(_endpoints(cluster, met, asked, here=True))
    if not everyone:
        return {Verdict.REFUSED}
    local = met.is_local
    match client:
        case Client.POD | Client.HOST if local and met.place == Place.CLUSTER_IP:
            return {*here} or {Verdict.DROPPED}
        case Client.POD | Client.HOST:
            return {*everyone}
        case Client.OUTSIDE if local:
            return {*here} or {Verdict.DROPPED}
        case Client.OUTSIDE:
            return {one if _reachable(cluster, one) else Verdict.DROPPED for one in everyone}
        case Client.HANDED_OVER:
            # Nobody hands over here what is for the Cluster set alone; where there is a Local set, it is taken.
            chosen = here if local or _has_local_set(met, asked) else here & everyone
            return {*chosen} or {Verdict.DROPPED}


def met_at(cluster: Cluster, asked: Asked) -> Met | None:
    """What a destination belongs to: where several claim it, to the Service whose cluster IP it is, else to the first
    by name, and to its first port."""
    order = {place: number for number, place in enumerate(Place)}
    for by_address in (True, False):
        claims = [
            met
            for service in cluster.services
            for met in _claims(cluster, service, asked)
            if by_address == (met.place != Place.NODE_PORT)
        ]
        if claims:
            ports = (met.service.spec.ports.index(met.port) for met in claims)
            names = ((met.place != Place.CLUSTER_IP, met.service.metadata.name) for met in claims)
            return min(zip(names, ports, (order[met.place] for met in claims), claims, strict=True))[-1]
    return None


def _claims(cluster: Cluster, service: Service, asked: Asked) -> Iterator[Met]:
    spec = service.spec
    if not _is_ours(service) or asked.family not in {ip_address(one).version for one in spec.cluster_ips}:
        return
    for port in spec.ports:
        if port.protocol != asked.protocol:
            continue
        if port.port == asked.port:
            if asked.address in spec.cluster_ips:
                yield Met(service, port, Place.CLUSTER_IP)
            if asked.address in (spec.external_ips or ()):
                yield Met(service, port, Place.EXTERNAL_IP)
            if asked.address in _load_balancers(service):
                yield Met(service, port, Place.LOAD_BALANCER)
        if spec.type != "ClusterIP" and port.node_port == asked.port and asked.address in _node_addresses(cluster):
            yield Met(service, port, Place.NODE_PORT)


def _is_ours(service: Service) -> bool:
    return (
        "service.kubernetes.io/service-proxy-name" not in service.metadata.labels
        and service.spec.type != "ExternalName"
        and service.spec.cluster_ip not in ("", "None")
    )


def _load_balancers(service: Service) -> set[str]:
    ingress = service.status.load_balancer and service.status.load_balancer.ingress
    if service.spec.type != "LoadBalancer":
        return set()
    return {one.ip for one in ingress or () if one.ip_mode in (None, "VIP")}


def _unmet(cluster: Cluster, client: Client, asked: Asked) -> Verdict:
    """What becomes of a packet that is for no Service port; what was handed over was meant for one."""
    if client == Client.HANDED_OVER:
        own = asked.address in _node_addresses(cluster, cluster.own)
        return Verdict.UNTRANSLATED if own else Verdict.DROPPED
    if any(_is_ours(service) and asked.address in service.spec.cluster_ips for service in cluster.services):
        return Verdict.REFUSED
    in_range = any(ip_address(asked.address) in ip_network(cidr) for cidr in cluster.service_cidrs)
    return Verdict.DROPPED if in_range else Verdict.UNTRANSLATED


def _is_other_nodes(cluster: Cluster, met: Met, asked: Asked) -> bool:
    """Whether it is a NodePort that the node which is asked serves with its own endpoints alone."""
    return met.place == Place.NODE_PORT and met.is_local and asked.address not in _node_addresses(cluster, cluster.own)


def _is_for(met: Met, source: str) -> bool:
    """Whether loadBalancerSourceRanges let a client in: those of its family, where there are any."""
    client = ip_address(source)
    ranges = [ip_network(one) for one in met.service.spec.load_balancer_source_ranges or ()]
    named = [one for one in ranges if one.version == client.version]
    return met.place != Place.LOAD_BALANCER or not named or any(client in one for one in named)


def _has_local_set(met: Met, asked: Asked) -> bool:
    """Whether somebody may ask a Service port for this node's endpoints alone."""
    spec = met.service.spec
    outside = [*(spec.external_ips or ()), *_load_balancers(met.service)]
    external = (spec.type != "ClusterIP" and met.port.node_port) or any(
        ip_address(one).version == asked.family and one not in spec.cluster_ips for one in outside
    )
    return spec.internal_traffic_policy == "Local" or (bool(external) and spec.external_traffic_policy == "Local")


def _endpoints(cluster: Cluster, met: Met, asked: Asked, here: bool = False) -> dict[Backend, Endpoint]:
    """A Service port's endpoints, each once; those of this node alone where `here`."""
    found: dict[Backend, Endpoint] = {}
    for item in sorted(cluster.slices, key=lambda item: item.metadata.name):
        if (
            item.metadata.labels.get("kubernetes.io/service-name") != met.service.metadata.name
            or "service.kubernetes.io/headless" in item.metadata.labels
            or item.address_type != f"IPv{asked.family}"
        ):
            continue
        numbers = [
            one.port for one in item.ports or () if (one.name, one.protocol) == (met.port.name, met.port.protocol)
        ]
        for endpoint in item.endpoints or ():
            if ip_address(endpoint.addresses[0]).version != asked.family:
                continue
            for number in numbers:
                if number is not None and (not here or endpoint.node_name == cluster.own):
                    backend = (endpoint.addresses[0], number)
                    found[backend] = _better(found.get(backend), endpoint)
    return found


def _better(one: Endpoint | None, other: Endpoint) -> Endpoint:
    """Of two copies the one that is not terminating, then the one that is ready, then the one that serves; else the
    first: slices come by name."""
    if one is None:
        return other
    return min(one, other, key=_standing)


def _standing(endpoint: Endpoint) -> tuple[bool, bool, bool]:
    conditions = endpoint.conditions
    return conditions.is_terminating, not conditions.is_ready, not conditions.is_serving


def _usable(endpoints: Mapping[Backend, Endpoint]) -> set[Backend]:
    """Those that are ready; where none is, those that serve while they terminate."""
    ready = {backend for backend, one in endpoints.items() if one.conditions.is_ready}
    return ready or {
        backend for backend, one in endpoints.items() if one.conditions.is_serving and one.conditions.is_terminating
    }


def _near(cluster: Cluster, endpoints: Mapping[Backend, Endpoint]) -> Mapping[Backend, Endpoint]:
    """Of those that are ready the ones that are hinted at for this node; if there are none, or one is without a hint
    of the kind, for its zone; or else all, as they were."""
    ready = {backend: one for backend, one in endpoints.items() if one.conditions.is_ready}
    for name, kind in ((cluster.own, "for_nodes"), (cluster.zone, "for_zones")):
        hints = {
            backend: {hint.name for hint in (one.hints and getattr(one.hints, kind)) or ()}
            for backend, one in ready.items()
        }
        if all(hints.values()) and any(name in names for names in hints.values()):
            return {backend: one for backend, one in ready.items() if name in hints[backend]}
    return endpoints


def _reachable(cluster: Cluster, backend: Backend) -> bool:
    """Whether a backend is in the pod ranges of a node, to which a packet can be handed over."""
    ranges = (cidr for node in cluster.nodes for cidr in node.spec.ranges)
    return any(ip_address(backend[0]) in ip_network(cidr) for cidr in ranges)


def _node_addresses(cluster: Cluster, name: str | None = None) -> set[str]:
    """Of all nodes, or of one."""
    return {
        one.address
        for node in cluster.nodes
        if name in (None, node.metadata.name)
        for one in node.status.addresses or ()
    }
