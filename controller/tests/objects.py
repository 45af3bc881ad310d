# SPDX-License-Identifier: Apache-2.0
"""Short ways to write Kubernetes objects in tests, as manifests and decoded, and to read maps as people would.

Addresses: Services in 198.51.100.0/24 and 2001:db8:5::/64, pods in 203.0.113.0/24 and 2001:db8:b::/64, nodes in
192.0.2.0/24 and 2001:db8::/64.
"""

from struct import unpack
from typing import Any

import msgspec

from bpf.abi import Backend, BackendKey, Frontend, FrontendFlag, FrontendKey, Maglev, MaglevKey, Slot, SlotKey
from bpf.address import text
from controller.model import EndpointSlice, Key, Kind, Node, Object, Pod, Service, ServiceCIDR, key_of
from controller.services import Compiled, ServiceTracker
from controller.source import Changed

JSON = dict[str, Any]


def service(name: str = "web", ips: list[str] | None = None, ports: list[JSON] | None = None, **spec: Any) -> JSON:
    """A Service manifest; without ports it has http: 80/TCP."""
    ips = ["198.51.100.1"] if ips is None else ips
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "shop", "labels": spec.pop("labels", {})},
        "spec": {
            "clusterIP": ips[0] if ips else "",
            "clusterIPs": ips,
            "ports": [{"name": "http", "port": 80}] if ports is None else ports,
            **spec,
        },
    }


def all_compiled(tracker: ServiceTracker) -> list[tuple[Key, Compiled]]:
    """Every Service that has changed."""
    return [(key, tracker.compile(key)) for key in tracker.take_changed()]


def endpoint(address: str, **conditions: bool) -> JSON:
    return {"addresses": [address], "conditions": conditions}


def endpoint_slice(
    name: str, endpoints: list[JSON], owner: str = "web", ports: list[JSON] | None = None, **fields: Any
) -> JSON:
    """An EndpointSlice manifest; without ports it has http: 8080/TCP."""
    labels = {"kubernetes.io/service-name": owner, **fields.pop("labels", {})}
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop", "labels": labels},
        "addressType": "IPv4",
        "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080}] if ports is None else ports,
        **fields,
    }


def node(name: str, addresses: list[str], cidrs: list[str]) -> JSON:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"podCIDRs": cidrs},
        "status": {"addresses": [{"type": "InternalIP", "address": address} for address in addresses]},
    }


def service_cidr(name: str, *cidrs: str) -> JSON:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "ServiceCIDR",
        "metadata": {"name": name},
        "spec": {"cidrs": list(cidrs)},
    }


def pod(name: str, on: str, *addresses: str, **spec: Any) -> JSON:
    """A Pod on a node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"nodeName": on, **spec},
        "status": {"podIPs": [{"ip": address} for address in addresses]},
    }


def decoded_service(manifest: JSON) -> Service:
    return msgspec.convert(manifest, Service)


def decoded_slice(manifest: JSON) -> EndpointSlice:
    return msgspec.convert(manifest, EndpointSlice)


def decoded_node(manifest: JSON) -> Node:
    return msgspec.convert(manifest, Node)


def decoded_pod(manifest: JSON) -> Pod:
    return msgspec.convert(manifest, Pod)


def decoded_service_cidr(manifest: JSON) -> ServiceCIDR:
    return msgspec.convert(manifest, ServiceCIDR)


def changed(obj: Object) -> Changed:
    return Changed(Kind(type(obj).__name__), key_of(obj), obj)


def gone(obj: Object) -> Changed:
    return Changed(Kind(type(obj).__name__), key_of(obj), None)


def shown_frontend(key: bytes) -> str:
    """address:port/protocol."""
    frontend = FrontendKey.unpack(key)
    return f"{text(frontend.address)}:{frontend.port}/{frontend.protocol}"


def is_port(key: bytes) -> bool:
    """Whether a frontend is a port's, and not a cluster IP as such."""
    return FrontendKey.unpack(key).port != 0


def cluster_ips(maps: dict[str, dict[bytes, bytes]]) -> set[str]:
    """Those whose other ports are refused."""
    keys = map(FrontendKey.unpack, maps["frontends"])
    return {text(key.address) for key in keys if not key.port and not key.protocol}


def shown_backend(value: bytes) -> str:
    backend = Backend.unpack(value)
    return f"{text(backend.address)}:{backend.port}"


def served(maps: dict[str, dict[bytes, bytes]]) -> dict[str, list[str]]:
    """Frontend -> its backends in order of their text, as a client would come to know them."""
    found = {}
    for key, value in maps["frontends"].items():
        if not is_port(key):
            continue
        frontend = Frontend.unpack(value)
        backends = []
        for index in range(frontend.slot_count):
            slot = Slot.unpack(maps["slots"][SlotKey(frontend.service_id, index).pack()])
            backends.append(shown_backend(maps["backends"][BackendKey(slot.backend_id).pack()]))
        found[shown_frontend(key)] = sorted(backends)
        if frontend.flags & FrontendFlag.MAGLEV:
            assert places(maps, frontend)[-1:] == [""]  # to its end: no size is a multiple of a row's
    return found


def places(maps: dict[str, dict[bytes, bytes]], frontend: Frontend) -> list[str]:
    """The backend at each place of a frontend's Maglev table; "" behind its end."""
    found = []
    while row := maps["maglev"].get(MaglevKey(frontend.service_id, len(found) // Maglev.ROW).pack()):
        for backend_id in unpack("<32I", row):
            found.append(shown_backend(maps["backends"][BackendKey(backend_id).pack()]) if backend_id else "")
    return found
