# SPDX-License-Identifier: Apache-2.0
"""The rest of a cluster's control plane, beside the API server on the switch: controllers, scheduler, name server.

CoreDNS is a process like the others, reached by the Service `kube-dns` as in any cluster: one without a selector, whose
EndpointSlices name the switch.
"""

import subprocess
from pathlib import Path

from e2e import kubernetes
from e2e.lab import addresses
from e2e.lab.apiserver import ApiServer
from e2e.lab.source import Manifest
from e2e.lab.space import Space

NAMESPACE = "kube-system"
COREFILE = "Corefile"
DNS_PORT = 53
FAMILIES = ("IPv4", "IPv6")
# A node's pod ranges: a /24 and a /64.
MASKS = {
    "dual": ["--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"],
    "ipv4": ["--node-cidr-mask-size=24"],
    "ipv6": ["--node-cidr-mask-size=64"],
}
PORTS = [("dns", "UDP"), ("dns-tcp", "TCP")]


def start(space: Space, directory: Path, logs: Path, api: ApiServer) -> list["subprocess.Popen[str]"]:
    """Starts what a cluster needs besides its API server.

    Args:
        directory: the API server's, with its keys.

    Raises:
        kubernetes.BuildError: one of them cannot be built.
    """
    corefile = directory / COREFILE
    corefile.write_text(_corefile(api.kubeconfig))
    commands = {
        "kube-controller-manager": controller_flags(directory, api),
        "kube-scheduler": [f"--kubeconfig={api.kubeconfig}", "--leader-elect=false"],
        "coredns": ["-conf", str(corefile)],
    }
    return [
        space.start(str(kubernetes.command(name)), *flags, log=logs / f"{name}.log") for name, flags in commands.items()
    ]


def controller_flags(directory: Path, api: ApiServer) -> list[str]:
    pods, services = (
        ",".join(map(str, addresses.of(api.stack, pair))) for pair in (addresses.PODS, addresses.SERVICES)
    )
    return [
        f"--kubeconfig={api.kubeconfig}",
        "--leader-elect=false",
        "--allocate-node-cidrs",
        f"--cluster-cidr={pods}",
        f"--service-cluster-ip-range={services}",
        *MASKS[api.stack],
        f"--root-ca-file={directory}/ca.crt",
        f"--service-account-private-key-file={directory}/accounts.key",
        "--kube-api-qps=100",
        "--kube-api-burst=200",
    ]


def dns_objects(stack: str) -> list[Manifest]:
    """The Service `kube-dns`, and the EndpointSlices that lead it to the switch."""
    addressed = addresses.of(stack, addresses.cluster_dns())
    metadata = {"namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "kube-dns", "k8s-app": "kube-dns"}}
    ports = [{"name": name, "protocol": protocol, "port": DNS_PORT} for name, protocol in PORTS]
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata | {"name": "kube-dns"},
        "spec": {
            "clusterIP": addressed[0],
            "clusterIPs": addressed,
            "ipFamilyPolicy": "RequireDualStack" if len(addressed) > 1 else "SingleStack",
            "ports": ports,
        },
    }
    return [service] + [
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata | {"name": f"kube-dns-{family.lower()}"},
            "addressType": family,
            "endpoints": [{"addresses": [address]}],
            "ports": ports,
        }
        for family, address in addresses.of(stack, zip(FAMILIES, addresses.underlay(addresses.SWITCH), strict=True))
    ]


def _corefile(kubeconfig: Path) -> str:
    return f"""
.:{DNS_PORT} {{
    errors
    ready 127.0.0.1:8181
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig}
        ttl 5
    }}
    cache 5
    loadbalance
}}
"""
