# SPDX-License-Identifier: Apache-2.0
"""A Kubernetes cluster in a lab: a control plane on the switch, and machines with kubelets that start pods through us.

    with Lab("mine") as lab:
        cluster = real.start(lab, 2, "dual")
        cluster.kubectl("get", "nodes")

No kube-proxy. Whatever runs on any cluster runs on this one, by `cluster.kubeconfig` from the switch, nodes and client.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from e2e import kubernetes, manifests
from e2e.lab import addresses, apiserver, controlplane, images, network
from e2e.lab.cluster import API, HOME, Lab
from e2e.lab.machine import KUBELET, Machine
from e2e.lab.source import ApiSource

READY_S = 90


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up.

    Attributes:
        stack: the families of its pods and Services, of addresses.STACKS.
    """

    lab: Lab
    source: ApiSource
    stack: str
    machines: Sequence[Machine]

    @property
    def kubeconfig(self) -> Path:
        return self.source.kubeconfig

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout_s: float = 300) -> str:
        """What kubectl prints. Raises LabError."""
        return self.source.run(*arguments, stdin=stdin, timeout_s=timeout_s)


def start(
    lab: Lab,
    count: int,
    stack: str = addresses.DUAL,
    settings: Mapping[str, object] | None = None,
    kind: type[Machine] = Machine,
) -> Cluster:
    """Makes a lab into a cluster, and waits until its nodes are ready; bare ones are so after `install`.

    Args:
        settings: of the nodes' daemons.
        kind: of the nodes.

    Raises:
        LabError: a part is not installed, ended, or was not ready in time.
        kubernetes.BuildError: one of Kubernetes' commands cannot be built.
    """
    images.archive()
    directory = lab.directory / API
    machines = [lab.add_node(kind) for _ in range(count)]
    for machine in machines:
        machine.start_containerd()
    with ThreadPoolExecutor(count) as pool:
        loading = [pool.submit(machine.load_images) for machine in machines]
        lab.api = apiserver.start(lab.switch, directory, lab.logs, stack, controllers=True)
        source = ApiSource(kubernetes.command("kubectl"), lab.switch, lab.api.kubeconfig)
        controlplane.start(lab.switch, directory, lab.logs, lab.api)
        source.apply("dns", controlplane.dns_objects(stack))
        for loaded in loading:
            loaded.result()
    for machine in machines:
        _join(machine, stack, directory, {**source.settings(), **(settings or {})})
    cluster = Cluster(lab, source, stack, machines)
    for machine in machines:
        if not machine.bare:
            machine.wait_ready()
        wait_registered(cluster, machine)
    if not kind.bare:
        _wait_nodes(cluster)
        _route_pods(cluster)
    return cluster


def install(cluster: Cluster) -> None:
    """Applies manifests.INSTALL to a cluster of bare machines, and waits until its nodes are ready.

    Raises:
        LabError: they were refused, or the nodes were not ready in time.
    """
    cluster.kubectl("apply", "-f", "-", stdin=manifests.INSTALL.read_text())
    for machine in cluster.machines:
        machine.wait_ready()
    cluster.kubectl("-n", "kube-system", "rollout", "status", "daemonset/calico-ebpf", f"--timeout={READY_S}s")
    _wait_nodes(cluster)
    _route_pods(cluster)


def _wait_nodes(cluster: Cluster) -> None:
    cluster.kubectl("wait", "--for=condition=Ready", "node", "--all", f"--timeout={READY_S}s")


def wait_registered(cluster: Cluster, machine: Machine) -> None:
    """Waits until a machine's kubelet has made its Node object: kubectl waits for one only from 1.31 on."""
    machine.wait(lambda: f"node/{machine.name}" in cluster.kubectl("get", "nodes", "-o", "name").split(), KUBELET)


def _route_pods(cluster: Cluster) -> None:
    """Leads the switch to the pods: an API server asks them itself, for those who ask through it."""
    for machine in cluster.machines:
        prefixes = cluster.kubectl("get", "node", machine.name, "-o", "jsonpath={.spec.podCIDRs[*]}")
        network.route(cluster.lab.switch, machine.address, prefixes.split())


def is_up(name: str) -> bool:
    """Whether the lab of that name is a whole cluster."""
    return (HOME / name / API / controlplane.COREFILE).exists()


def _join(machine: Machine, stack: str, directory: Path, settings: Mapping[str, object]) -> None:
    """Starts kubelet and our daemons on a machine."""
    user = apiserver.make_client(directory, machine.name, f"/O=system:nodes/CN=system:node:{machine.name}")
    machine.configure_kubelet(
        apiserver.kubeconfig(directory, stack, user),
        directory / "ca.crt",
        addresses.of(stack, addresses.cluster_dns()),
        addresses.of(stack, machine.address),
    )
    machine.install(settings)
    for daemon in machine.daemons:
        machine.start(daemon)
