# SPDX-License-Identifier: Apache-2.0
"""What the tests of a whole cluster play on, by kubectl alone: a namespace of their own with a cast.

web   a Deployment of agnhost, over HTTP and UDP at 8080, and its Service at PORT, with a NodePort
ask   a pod on every node
host  a process on every node, in the node's own network namespace
"""

import json
import shlex
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, NamedTuple

from e2e.lab import images
from e2e.lab.source import Manifest

PORT, TARGET_PORT = 80, 8080
PLACES = ("ask", "host")
ROLLOUT_S = 120
# What curl ends with when it was refused.
REFUSED = "failed-7"
Run = Callable[[Sequence[str]], str]


class Place(NamedTuple):
    """Where something runs: the pod of a DaemonSet, on a node."""

    pod: str
    node: str


class Play:
    """The cast on a cluster.

    Args:
        kubectl: runs kubectl with arguments and standard input; what it prints.
        outside: runs a command on a machine that is no node, and reaches the nodes; what it prints.
        namespace: is made, and deleted by `down`.
    """

    def __init__(self, kubectl: Callable[..., str], outside: Run, namespace: str) -> None:
        self._kubectl = kubectl
        self.outside = outside
        self.namespace = namespace
        self.size = 0

    def set_up(self) -> None:
        self.kubectl("create", "namespace", self.namespace, namespaced=False)
        self.apply(deployment("web", cpu="100m"), service("web"), daemon_set("ask", False), daemon_set("host", True))
        for name in PLACES:
            self.kubectl("rollout", "status", f"daemonset/{name}", f"--timeout={ROLLOUT_S}s")

    def down(self) -> None:
        self.kubectl("delete", "namespace", self.namespace, "--wait=false", namespaced=False)

    def kubectl(self, *arguments: str, stdin: str | None = None, namespaced: bool = True) -> str:
        scope = ("--namespace", self.namespace) if namespaced else ()
        return self._kubectl(*scope, *arguments, stdin=stdin)

    def get(self, *what: str, namespaced: bool = True) -> Any:
        return json.loads(self.kubectl("get", *what, "-o", "json", namespaced=namespaced))

    def apply(self, *objects: Manifest) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def scale(self, replicas: int) -> None:
        """Waits until as many pods of `web` are there and ready, and all others gone; the Service knows no others."""
        if replicas == self.size:
            return
        self.kubectl("scale", "deployment/web", f"--replicas={replicas}")
        self.kubectl("rollout", "status", "deployment/web", f"--timeout={ROLLOUT_S}s")
        deadline = time.monotonic() + ROLLOUT_S
        while len(self.web()) != replicas or self._endpoints() != replicas:
            assert time.monotonic() < deadline, f"not {replicas} pods of web after {ROLLOUT_S} s"
            time.sleep(0.5)
        self.size = replicas

    def web(self) -> list[Any]:
        """The pods of `web`, those that are going included."""
        return list(self.get("pods", "-l", "app=web")["items"])

    def places(self, name: str) -> list[Place]:
        """`ask` or `host`, on each node."""
        pods = self.get("pods", "-l", f"app={name}")["items"]
        return [Place(pod["metadata"]["name"], pod["spec"]["nodeName"]) for pod in pods]

    def restart(self, place: Place) -> None:
        """Deletes a pod of a DaemonSet, and waits until the node has another that is ready."""
        name = self.get("pod", place.pod)["metadata"]["labels"]["app"]
        self.kubectl("delete", "pod", place.pod)
        deadline = time.monotonic() + ROLLOUT_S
        while place.node not in {other.node for other in self.places(name) if other.pod != place.pod}:
            assert time.monotonic() < deadline, f"no other pod of {name} on {place.node} after {ROLLOUT_S} s"
            time.sleep(0.5)
        other = next(other for other in self.places(name) if other.node == place.node)
        self.kubectl("wait", "--for=condition=Ready", f"pod/{other.pod}", f"--timeout={ROLLOUT_S}s")

    def service_address(self, family: str) -> str:
        """The cluster IP of `web`; "" where the cluster has none of that family."""
        return _of_family(self.get("service", "web")["spec"]["clusterIPs"], family)

    def node_port(self, protocol: str) -> int:
        ports = self.get("service", "web")["spec"]["ports"]
        return next(int(port["nodePort"]) for port in ports if port["protocol"] == protocol.upper())

    def node_addresses(self, family: str) -> list[str]:
        """The InternalIP of each node."""
        nodes = self.get("nodes", namespaced=False)["items"]
        internal = [
            [item["address"] for item in node["status"]["addresses"] if item["type"] == "InternalIP"] for node in nodes
        ]
        return [_of_family(addresses, family) for addresses in internal]

    def inside(self, place: Place) -> Run:
        """Runs commands in a pod."""
        return lambda argv: self.kubectl("exec", place.pod, "--", *argv)

    def _endpoints(self) -> int:
        """How many pods the Service's EndpointSlices name."""
        slices = self.get("endpointslices", "-l", "kubernetes.io/service-name=web")["items"]
        return len({item["targetRef"]["name"] for each in slices for item in each["endpoints"] or ()})


def ask(run: Run, protocol: str, address: str, port: int, question: str = "hostname", count: int = 1) -> list[str]:
    """Asks agnhost, on a socket of its own for each question: the answers, `failed-N` for an exit status of N.

    Args:
        question: hostname or clientip.
    """
    host = f"[{address}]" if ":" in address and protocol == "tcp" else address
    if protocol == "tcp":
        one = f"curl -s -g -m 5 {shlex.quote(f'http://{host}:{port}/{question}')}"
    else:
        one = f"exec 3<>/dev/udp/{host}/{port} && printf {question} >&3 && timeout 5 dd bs=2048 count=1 <&3 2>/dev/null"
    return run(["bash", "-c", f"for i in {{1..{count}}}; do {one} || echo failed-$?; echo; done"]).split()


def deployment(name: str, cpu: str = "0") -> Manifest:
    """Servers, none at first, spread over the nodes; `cpu`: what they have even where others want more."""
    container = {
        "name": "web",
        "image": images.AGNHOST,
        "args": ["netexec", f"--http-port={TARGET_PORT}", f"--udp-port={TARGET_PORT}"],
        "readinessProbe": {"httpGet": {"path": "/hostname", "port": TARGET_PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": cpu}},
    }
    template = _template(name, container)
    template["spec"]["topologySpreadConstraints"] = [
        {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": {"app": name}},
        }
    ]
    spec = {"replicas": 0, "selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def service(name: str) -> Manifest:
    """With a NodePort, in all families that the cluster has."""
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT, "targetPort": TARGET_PORT}
        for protocol in ("TCP", "UDP")
    ]
    spec = {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack", "selector": {"app": name}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def daemon_set(name: str, host_network: bool) -> Manifest:
    template = _template(name, {"name": name, "image": images.AGNHOST, "args": ["pause"]})
    template["spec"] |= {"hostNetwork": host_network, "tolerations": [{"operator": "Exists"}]}
    spec = {"selector": {"matchLabels": {"app": name}}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": name}, "spec": spec}


def _template(name: str, container: dict[str, Any]) -> dict[str, Any]:
    spec = {"terminationGracePeriodSeconds": 1, "containers": [container]}
    return {"metadata": {"labels": {"app": name}}, "spec": spec}


def _of_family(addresses: Sequence[str], family: str) -> str:
    version = 6 if family == "IPv6" else 4
    return next((text for text in addresses if ip_address(text).version == version), "")
