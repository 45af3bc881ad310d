# SPDX-License-Identifier: Apache-2.0
"""Services, EndpointSlices and Nodes as an API server may tell of them, for hypothesis: few enough to meet each other.

Fields that this project does not read are among them: what comes to be read finds them here. The address plan is that
of `objects`; pods have their nodes by address, and node `routed` is behind a router.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from hypothesis import strategies as st

from controller.model import Conditions, EndpointSlice, Node, Service
from controller.tests.objects import (
    JSON,
    decoded_node,
    decoded_service,
    decoded_slice,
    endpoint,
    endpoint_slice,
    node,
    service,
)

T = TypeVar("T", bound=msgspec.Struct)

OWN = "own"
SERVICES = ("mail", "web")
SLICES = ("s1", "s2", "s3", "s4", "s5")
PORTS, NODE_PORTS, TARGET_PORTS = (80, 443), (30080, 30443), (8080, 9090)
PROTOCOLS = ("TCP", "UDP", "SCTP")

CLUSTER_IPS = {4: ("198.51.100.1", "198.51.100.2"), 6: ("2001:db8:5::1", "2001:db8:5::2")}
OUTSIDE_IPS = {4: ("198.51.100.90", "198.51.100.2"), 6: ("2001:db8:5::90", "2001:db8:5::2")}
PODS: Mapping[int, Mapping[str, str]] = MappingProxyType(
    {
        4: {"203.0.113.1": OWN, "203.0.113.2": OWN, "203.0.113.65": "near", "203.0.113.129": "routed"},
        6: {"2001:db8:b::1": OWN, "2001:db8:b::2": OWN, "2001:db8:b:1::1": "near", "2001:db8:b:2::1": "routed"},
    }
)
NODE_IPS: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        OWN: ("192.0.2.1", "2001:db8::1"),
        "near": ("192.0.2.12", "2001:db8::12"),
        "routed": ("198.18.0.3", "2001:db8:18::3"),
    }
)
RANGES: Mapping[str, Sequence[str]] = MappingProxyType(
    {
        OWN: ("203.0.113.0/26", "2001:db8:b::/64"),
        "near": ("203.0.113.64/26", "2001:db8:b:1::/64"),
        "routed": ("203.0.113.128/26", "2001:db8:b:2::/64"),
    }
)
EXTERNAL_NODE_IPS = ("198.18.1.1", "198.18.1.2")

# As the API has them: None is what it leaves out.
CONDITIONS: tuple[dict[str, bool], ...] = (
    {},
    {"ready": True},
    {"ready": False},
    {"ready": False, "serving": True, "terminating": True},
    {"ready": False, "serving": False, "terminating": True},
    {"ready": True, "serving": True, "terminating": True},
)
# Most endpoints have some: one that has none makes those of the others void.
HINTS: tuple[JSON, ...] = (
    {},
    {"forZones": [{"name": "a"}]},
    {"forZones": [{"name": "b"}]},
    {"forZones": [{"name": "a"}, {"name": "b"}]},
    {"forZones": [{"name": "b"}], "forNodes": [{"name": OWN}]},
)


def altered(obj: T, other: T, choice: int) -> T:
    """An object with one field as another one has it: of a Service, its status (choice 0), metadata (1) or one of its
    spec."""
    if isinstance(obj, Service) and isinstance(other, Service) and choice > 1:
        return msgspec.structs.replace(obj, spec=_with_field(obj.spec, other.spec, choice - 2))
    return _with_field(obj, other, choice - 1)


def _with_field(obj: T, other: T, index: int) -> T:
    """Fields are counted on from the first behind the last."""
    name = obj.__struct_fields__[index % len(obj.__struct_fields__)]
    return msgspec.structs.replace(obj, **{name: getattr(other, name)})


def some(values: Sequence[Any], most: int = 2) -> st.SearchStrategy[list[Any]]:
    """Up to so many of them, in any order."""
    return st.lists(st.sampled_from(values), max_size=most, unique_by=repr)


# Fields of a spec, and labels: of Services that are not for this project, and of those that are special.
_ODD: tuple[JSON, ...] = (
    {"type": "ExternalName"},
    {"clusterIP": "None", "clusterIPs": ["None"]},
    {"labels": {"service.kubernetes.io/service-proxy-name": "other"}},
    {"internalTrafficPolicy": "Local"},
    {"sessionAffinity": "ClientIP"},
    {"type": "LoadBalancer", "loadBalancerSourceRanges": ["192.0.2.0/24", "2001:db8:ffff::/64"]},
    {"type": "LoadBalancer", "loadBalancerSourceRanges": ["203.0.113.0/26"]},
    {"trafficDistribution": "PreferSameZone"},
)


_ANNOTATIONS: tuple[JSON, ...] = ({}, {"calico-ebpf.io/balancing": "maglev"})


@st.composite
def services(draw: st.DrawFn) -> Service:
    """One in five is not ours, or special."""
    families = draw(st.sampled_from([(4,), (4,), (6,), (4, 6)]))
    manifest = service(
        draw(st.sampled_from(SERVICES)),
        [draw(st.sampled_from(CLUSTER_IPS[family])) for family in families],
        draw(st.lists(_service_ports(), min_size=1, max_size=2, unique_by=lambda one: (one["port"], one["protocol"]))),
        **{
            "type": draw(st.sampled_from(["ClusterIP", "NodePort", "LoadBalancer"])),
            "externalIPs": draw(some([*OUTSIDE_IPS[4], *OUTSIDE_IPS[6]])),
            "externalTrafficPolicy": draw(st.sampled_from(["Cluster", "Local"])),
            **draw(st.sampled_from([{}] * 4 * len(_ODD) + [*_ODD])),
        },
    )
    addresses = draw(some([*OUTSIDE_IPS[4], *OUTSIDE_IPS[6]]))
    modes = st.sampled_from([{}, {"ipMode": "VIP"}, {"ipMode": "Proxy"}])
    manifest["status"] = {"loadBalancer": {"ingress": [{"ip": one, **draw(modes)} for one in addresses]}}
    manifest["metadata"]["annotations"] = draw(st.sampled_from(_ANNOTATIONS))
    return decoded_service(manifest)


def _service_ports() -> st.SearchStrategy[JSON]:
    return st.builds(
        lambda number, protocol, node_port: {
            "name": f"{number}-{protocol}",
            "port": number,
            "protocol": protocol,
            "nodePort": node_port,
        },
        st.sampled_from(PORTS),
        st.sampled_from(PROTOCOLS),
        st.sampled_from([0, *NODE_PORTS]),
    )


def conditions() -> st.SearchStrategy[Conditions]:
    return st.sampled_from(CONDITIONS).map(lambda one: Conditions(**one))


@st.composite
def slices(draw: st.DrawFn) -> EndpointSlice:
    family = draw(st.sampled_from([4] * 6 + [6] * 5 + [0]))
    addresses = sorted(PODS[family]) if family else ["web.example.org"]
    return decoded_slice(
        endpoint_slice(
            draw(st.sampled_from(SLICES)),
            [_endpoint(draw, one) for one in draw(st.lists(st.sampled_from(addresses), min_size=1, max_size=5))],
            draw(st.sampled_from(SERVICES)),
            [_slice_port(draw, number, protocol) for number in PORTS for protocol in PROTOCOLS],
            addressType=draw(st.sampled_from([f"IPv{family}"] * 9 + ["IPv4"])) if family else "FQDN",
            labels=draw(st.sampled_from([{}] * 7 + [{"service.kubernetes.io/headless": ""}])),
        )
    )


def _endpoint(draw: st.DrawFn, address: str) -> JSON:
    found = {**endpoint(address), "conditions": draw(st.sampled_from(CONDITIONS))}
    where = next((pods[address] for pods in PODS.values() if address in pods), None)
    hints = draw(st.sampled_from(HINTS))
    return {**found, **({"nodeName": where} if where else {}), **({"hints": hints} if hints else {})}


def _slice_port(draw: st.DrawFn, number: int, protocol: str) -> JSON:
    """A named targetPort, which each slice may resolve to another number, or not at all."""
    target = draw(st.sampled_from([{"port": TARGET_PORTS[0]}] * 6 + [{"port": TARGET_PORTS[1]}, {}]))
    return {"name": f"{number}-{protocol}", "protocol": protocol, **target}


@st.composite
def nodes(draw: st.DrawFn, names: Sequence[str] = tuple(NODE_IPS)) -> Node:
    """This node always has its addresses and ranges: one that loses them keeps what it had, which is another story."""
    name = draw(st.sampled_from(names))
    ranges, addresses = list(RANGES[name]), list(NODE_IPS[name])
    if name != OWN:
        # Another node's ranges may be claimed, this one's are.
        ranges = draw(some([*RANGES[name], RANGES["near"][0]], most=3))
        addresses = draw(some(NODE_IPS[name]))
    manifest = node(name, addresses, ranges)
    manifest["metadata"]["labels"] = {"topology.kubernetes.io/zone": draw(st.sampled_from("ab"))}
    external = draw(some(EXTERNAL_NODE_IPS, most=1))
    manifest["status"]["addresses"] += [{"type": "ExternalIP", "address": address} for address in external]
    return decoded_node(manifest)
