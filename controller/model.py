# SPDX-License-Identifier: Apache-2.0
"""The fields of Kubernetes' objects that this project reads, decoded by msgspec; all others are skipped.

Pure. Objects are values that nobody changes: two that are equal need no work. Source: k8s.io/api core/v1, discovery/v1,
networking/v1.
"""

from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum

import msgspec


class Kind(StrEnum):
    """The kinds that are followed, by their name in a manifest."""

    SERVICE = "Service"
    ENDPOINT_SLICE = "EndpointSlice"
    NODE = "Node"
    SERVICE_CIDR = "ServiceCIDR"
    POD = "Pod"


# What must have been listed once before anything is programmed; what API servers may not have (ServiceCIDRs: from 1.33
# on). Pods are followed where a Node lacks ranges alone.
REQUIRED = (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
OPTIONAL = (Kind.SERVICE_CIDR,)
# Those without a namespace.
CLUSTER_SCOPED = (Kind.NODE, Kind.SERVICE_CIDR)


LABEL_ZONE = "topology.kubernetes.io/zone"


class _Object(msgspec.Struct, rename="camel", gc=False):
    """gc=False: nothing decoded from JSON refers back to itself, and a quarter of a million endpoints cost no scan."""


class Metadata(_Object):
    name: str
    namespace: str = ""
    labels: dict[str, str] = {}
    creation_timestamp: datetime | None = None
    deletion_timestamp: str | None = None


class ServicePort(_Object):
    port: int
    name: str = ""
    protocol: str = "TCP"
    node_port: int = 0


class ClientIP(_Object):
    timeout_seconds: int | None = None


class AffinityConfig(_Object):
    client_ip: ClientIP | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(_Object):
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: list[str] = msgspec.field(name="clusterIPs", default_factory=list)
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)
    external_traffic_policy: str = ""
    health_check_node_port: int = 0
    internal_traffic_policy: str | None = None
    load_balancer_source_ranges: list[str] | None = None
    session_affinity: str = ""
    session_affinity_config: AffinityConfig | None = None
    ports: list[ServicePort] = []


class Ingress(_Object):
    ip: str = ""
    ip_mode: str | None = None


class LoadBalancer(_Object):
    ingress: list[Ingress] | None = None


class ServiceStatus(_Object):
    load_balancer: LoadBalancer | None = None


class ServiceAnnotations(_Object):
    way_back: str = msgspec.field(name="calico-ebpf.io/return", default="")
    balancing: str = msgspec.field(name="calico-ebpf.io/balancing", default="")


class ServiceMetadata(Metadata):
    annotations: ServiceAnnotations | None = None


class Service(_Object):
    metadata: ServiceMetadata
    spec: ServiceSpec = msgspec.field(default_factory=ServiceSpec)
    status: ServiceStatus = msgspec.field(default_factory=ServiceStatus)


class Conditions(_Object):
    """None is what the API leaves out: see EndpointConditions there for what each then means."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None

    @property
    def is_ready(self) -> bool:
        return self.ready is not False

    @property
    def is_serving(self) -> bool:
        return self.is_ready if self.serving is None else self.serving

    @property
    def is_terminating(self) -> bool:
        return bool(self.terminating)


class Named(_Object):
    name: str


class Hints(_Object):
    """From where an endpoint should be used."""

    for_zones: list[Named] | None = None
    for_nodes: list[Named] | None = None


class Endpoint(_Object):
    addresses: list[str]
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    node_name: str | None = None
    hints: Hints | None = None


class EndpointPort(_Object):
    """A slice's ports have numbers of their own: a named targetPort may differ from slice to slice."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class SliceAnnotations(_Object):
    last_change_trigger_time: str = msgspec.field(name="endpoints.kubernetes.io/last-change-trigger-time", default="")


class SliceMetadata(Metadata):
    annotations: SliceAnnotations | None = None


class EndpointSlice(_Object):
    metadata: SliceMetadata
    address_type: str
    endpoints: list[Endpoint] | None = None
    ports: list[EndpointPort] | None = None


class Taint(_Object):
    key: str


class NodeSpec(_Object):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: list[str] = msgspec.field(name="podCIDRs", default_factory=list)
    taints: list[Taint] | None = None

    @property
    def ranges(self) -> list[str]:
        """The pod ranges, as they are named; one alone may stand in podCIDR."""
        return self.pod_cidrs or ([self.pod_cidr] if self.pod_cidr else [])


class NodeAddress(_Object):
    type: str
    address: str


class NodeStatus(_Object):
    addresses: list[NodeAddress] | None = None


class Node(_Object):
    metadata: Metadata
    spec: NodeSpec = msgspec.field(default_factory=NodeSpec)
    status: NodeStatus = msgspec.field(default_factory=NodeStatus)

    @property
    def zone(self) -> str:
        return self.metadata.labels.get(LABEL_ZONE, "")

    def with_ranges(self, ranges: Sequence[str]) -> "Node":
        """The same Node with other pod ranges; none are none, whatever podCIDR said."""
        spec = msgspec.structs.replace(self.spec, pod_cidr="", pod_cidrs=list(ranges))
        return msgspec.structs.replace(self, spec=spec)


class ServiceCIDRSpec(_Object):
    cidrs: list[str] | None = None


class ServiceCIDR(_Object):
    metadata: Metadata
    spec: ServiceCIDRSpec = msgspec.field(default_factory=ServiceCIDRSpec)


class PodSpec(_Object):
    node_name: str = ""
    host_network: bool = False


class PodAddress(_Object):
    ip: str


class PodStatus(_Object):
    pod_ips: list[PodAddress] | None = msgspec.field(name="podIPs", default=None)


class Pod(_Object):
    metadata: Metadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


type_of_kind = {
    Kind.SERVICE: Service,
    Kind.ENDPOINT_SLICE: EndpointSlice,
    Kind.NODE: Node,
    Kind.SERVICE_CIDR: ServiceCIDR,
    Kind.POD: Pod,
}
# Those that are read from manifests, too.
api_of_kind = {
    Kind.SERVICE: "v1",
    Kind.ENDPOINT_SLICE: "discovery.k8s.io/v1",
    Kind.NODE: "v1",
    Kind.SERVICE_CIDR: "networking.k8s.io/v1",
}

Object = Service | EndpointSlice | Node | ServiceCIDR | Pod

# (namespace, name); what is cluster-scoped has no namespace: "".
Key = tuple[str, str]


def key_of(obj: Object) -> Key:
    return obj.metadata.namespace, obj.metadata.name
