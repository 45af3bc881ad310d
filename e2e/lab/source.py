# SPDX-License-Identifier: Apache-2.0
"""Where the lab's Services come from: a directory of manifests, or an API server. Either takes the same objects."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import yaml

from e2e.lab import addresses
from e2e.lab.addresses import Dual
from e2e.lab.space import Space

Manifest = dict[str, Any]


class Source(Protocol):
    """What a test needs of a source."""

    def settings(self) -> Mapping[str, object]:
        """The settings by which a node's controller follows this source."""

    def apply(self, name: str, objects: Iterable[Manifest]) -> None:
        """Makes `name` stand for these objects, and no others."""

    def delete(self, name: str) -> None:
        """Removes the objects of `name`."""


class DirectorySource:
    """A directory, with a file for each name."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)

    def settings(self) -> Mapping[str, object]:
        return {"source": str(self.directory)}

    def apply(self, name: str, objects: Iterable[Manifest]) -> None:
        self.write(name, yaml.safe_dump_all(objects, sort_keys=False))

    def write(self, name: str, text: str) -> None:
        """Writes a file in one step, as an editor or a git checkout does."""
        scratch = self.directory / f".{name}.next"
        scratch.write_text(text)
        scratch.rename(self.directory / f"{name}.yaml")

    def delete(self, name: str) -> None:
        (self.directory / f"{name}.yaml").unlink()


class ApiSource:
    """An API server, by kubectl.

    Args:
        kubectl: the command.
        space: where it runs, and reaches the API server.
        kubeconfig: seen from there, and from the nodes.
    """

    def __init__(self, kubectl: Path, space: Space, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig
        self._kubectl, self._space = kubectl, space
        self._applied: dict[str, list[Manifest]] = {}

    def settings(self) -> Mapping[str, object]:
        return {"source": "kubernetes", "kubeconfig": str(self.kubeconfig)}

    def apply(self, name: str, objects: Iterable[Manifest]) -> None:
        wanted = list(objects)
        self._remove([item for item in self._applied.get(name, ()) if _key(item) not in map(_key, wanted)])
        self._applied[name] = wanted
        self.run("apply", "-f", "-", stdin=_list(wanted))

    def delete(self, name: str) -> None:
        self._remove(self._applied.pop(name))

    def clear(self) -> None:
        """Removes everything that was applied."""
        for name in list(self._applied):
            self.delete(name)

    def run(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        """What kubectl prints."""
        command = (str(self._kubectl), "--kubeconfig", str(self.kubeconfig), *arguments)
        return self._space.run(*command, stdin=stdin, timeout_s=timeout_s).stdout

    def _remove(self, objects: list[Manifest]) -> None:
        if objects:
            self.run("delete", "--ignore-not-found", "--wait=false", "-f", "-", stdin=_list(objects))


def _list(objects: list[Manifest]) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})


def _key(item: Manifest) -> tuple[str, str, str]:
    metadata = item["metadata"]
    return item["kind"], metadata.get("namespace", ""), metadata["name"]


def node(name: str, index: int, address: Dual) -> Manifest:
    """A Node object, as kubelet and the controller-manager leave it."""
    ranges = list(addresses.pod_ranges(index))
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {
            "addresses": [{"type": "InternalIP", "address": text} for text in address]
            + [{"type": "Hostname", "address": name}]
        },
    }


def service(
    name: str, cluster_ip: Dual, port: int, target_port: int, protocols: Iterable[str] = ("TCP", "UDP")
) -> Manifest:
    """A dual-stack Service without a selector: its EndpointSlices are written by hand."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "clusterIP": cluster_ip.v4,
            "clusterIPs": list(cluster_ip),
            "ipFamilies": ["IPv4", "IPv6"],
            "ipFamilyPolicy": "RequireDualStack",
            "ports": [
                {"name": protocol.lower(), "protocol": protocol, "port": port, "targetPort": target_port}
                for protocol in protocols
            ],
        },
    }


def reached_from_outside(
    manifest: Manifest,
    node_port: int,
    external: Iterable[str] = (),
    balancer: Iterable[str] = (),
    policy: str = "Cluster",
) -> Manifest:
    """The Service as one that is reached from outside: at a NodePort, the same number for every protocol, and more.

    Args:
        external: its externalIPs.
        balancer: its load balancer's addresses.
        policy: externalTrafficPolicy.
    """
    external, balancer = list(external), list(balancer)
    spec = manifest["spec"] | {"type": "LoadBalancer" if balancer else "NodePort", "externalTrafficPolicy": policy}
    spec["ports"] = [port | {"nodePort": node_port} for port in spec["ports"]]
    if external:
        spec["externalIPs"] = external
    status = {"loadBalancer": {"ingress": [{"ip": address, "ipMode": "VIP"} for address in balancer]}}
    return manifest | {"spec": spec} | ({"status": status} if balancer else {})


def endpoints(
    service_name: str,
    backends: Iterable[tuple[Dual, str]],
    port: int,
    protocols: Iterable[str] = ("TCP", "UDP"),
    **conditions: bool,
) -> list[Manifest]:
    """A Service's EndpointSlices, one for each family.

    Args:
        backends: (address, name of its node) of each endpoint.
        conditions: of every endpoint; ready where there are none.
    """
    backends, ports = list(backends), [{"name": name.lower(), "protocol": name, "port": port} for name in protocols]
    return [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{service_name}-{family.lower()}",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": service_name},
            },
            "addressType": family,
            "endpoints": [
                {"addresses": [list(address)[which]], "nodeName": where, "conditions": conditions or {"ready": True}}
                for address, where in backends
            ],
            "ports": ports,
        }
        for which, family in enumerate(("IPv4", "IPv6"))
    ]
