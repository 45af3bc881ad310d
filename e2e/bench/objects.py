# SPDX-License-Identifier: Apache-2.0
"""Services and EndpointSlices for the benchmark: IPv4, one TCP port. Pure."""

from collections.abc import Iterable

from e2e.lab.source import Manifest

PORT, TARGET_PORT = 80, 8080


def service(name: str, cluster_ip: str) -> Manifest:
    """A Service at PORT without a selector."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{"name": "tcp", "protocol": "TCP", "port": PORT, "targetPort": TARGET_PORT}],
        },
    }


def node_port_service(name: str, cluster_ip: str, node_port: int, target_port: int) -> Manifest:
    """The same, met at a NodePort as well."""
    manifest = service(name, cluster_ip)
    (port,) = manifest["spec"]["ports"]
    port |= {"nodePort": node_port, "targetPort": target_port}
    return manifest | {"spec": manifest["spec"] | {"type": "NodePort", "ports": [port]}}


def endpoint_slice(service_name: str, endpoints: Iterable[tuple[str, str]], target_port: int = TARGET_PORT) -> Manifest:
    """The endpoints of a Service, (address, name of its node) each."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service_name}-ipv4",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": "IPv4",
        "endpoints": [
            {"addresses": [address], "nodeName": where, "conditions": {"ready": True, "serving": True}}
            for address, where in endpoints
        ],
        "ports": [{"name": "tcp", "protocol": "TCP", "port": target_port}],
    }
