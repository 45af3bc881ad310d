# SPDX-License-Identifier: Apache-2.0
"""What the API tells of ranges: nodes without any, whose pods have addresses of the CNI configuration's; and those of
Services.
"""

import json
from typing import Any

import pytest

from e2e.lab import addresses, runtime, source
from e2e.lab.cluster import NODES, Lab
from e2e.lab.node import CNI_SERVER, CONF, CONTROLLER, Node
from e2e.lab.runtime import Pod
from e2e.lab.source import ApiSource, Manifest
from e2e.tests.stage import Stage, ask, names, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(240)]

# Until pods are looked at where a Node that was just made has no ranges, and then some.
PATIENCE_S = 20
# No other range is near it, so that a wrong way would be seen.
RANGES = [f"10.250.{index}.0/24" for index in range(3)]


class Cluster:
    """Two nodes whose Nodes name no ranges, on an API server of their own."""

    def __init__(self, lab: Lab) -> None:
        self.services: ApiSource = lab.api_source()
        self.nodes: list[Node] = [lab.add_node(), lab.add_node()]
        self.services.apply(NODES, [bare(node) for node in self.nodes])
        for node in self.nodes:
            node.install(self.services.settings())
            config = json.loads(CONF.read_text())
            config["plugins"][0]["ipam"]["ranges"] = [[{"subnet": RANGES[node.index]}]]
            node.space.path(runtime.CNI_CONF).write_text(json.dumps(config))
            node.start(CNI_SERVER)
            node.start(CONTROLLER)
        for node in self.nodes:
            node.wait_ready()

    def announce(self, pod: Pod, **spec: Any) -> None:
        """Has the API know a pod that runs, as kubelet does."""
        containers = [{"name": "c", "image": "registry.example/nothing"}]
        metadata = {"name": pod.name, "namespace": "default"}
        made = {"nodeName": pod.node.name, "containers": containers, **spec}
        self.services.apply(pod.name, [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": made}])
        self.set_status(pod.name, podIP=pod.address.v4, podIPs=[{"ip": pod.address.v4}], phase="Running")

    def set_status(self, name: str, **status: Any) -> None:
        patch = json.dumps({"status": status})
        self.services.run("patch", "pod", name, "--subresource=status", "--type=merge", "-p", patch)


def bare(node: Node) -> Manifest:
    return source.node(node.name, node.index, node.address) | {"spec": {}}


def routes(node: Node) -> set[str]:
    """Where the node's own routes to other nodes' pods lead, as `ip route` prints the prefix."""
    lines = node.space.run("ip", "route", "show", "proto", "206").stdout.splitlines()
    return {line.split()[0] for line in lines if "dev ce" not in line}


@pytest.fixture
def cluster(fresh: Lab) -> Cluster:
    return Cluster(fresh)


def test_pods_of_nodes_without_ranges_are_reached_while_they_run(cluster: Cluster) -> None:
    """By what the API says of each pod: within moments, over a restart of the controller, until it ends."""
    first, second = cluster.nodes
    web, asker = first.add_pod("web"), second.add_pod("asker", serve=False)
    cluster.announce(web)
    cluster.announce(asker)
    wait(lambda: routes(second) == {web.address.v4}, PATIENCE_S)
    wait(lambda: routes(first) == {asker.address.v4})
    assert answered_by(asker, web) == {"web"}

    late = first.add_pod("late")
    cluster.announce(late)
    wait(lambda: routes(second) == {web.address.v4, late.address.v4}, timeout_s=2)
    assert answered_by(asker, late) == {"late"}
    cluster.services.run("label", "pod", "late", "seen=true")
    cluster.set_status("late", phase="Succeeded")
    wait(lambda: routes(second) == {web.address.v4})

    host = Pod("host", first.space, result={"ips": [{"address": f"{first.address.v4}/24"}]})
    cluster.announce(host, hostNetwork=True)
    monitor = second.space.start("ip", "monitor", "route")
    second.kill(CONTROLLER)
    second.start(CONTROLLER)
    second.wait_ready()
    assert routes(second) == {web.address.v4}
    monitor.terminate()
    assert "Deleted" not in monitor.communicate()[0]

    node_json = json.loads(first.space.path("/run/calico-ebpf/node.json").read_bytes())
    assert node_json["pod_cidrs"] == []
    cluster.services.run("delete", "pod", "web", "--force", "--grace-period=0")
    wait(lambda: not routes(second))


def test_ranges_take_the_place_of_pods_addresses(cluster: Cluster) -> None:
    """Once a controller-manager gives some to the Nodes; nobody follows pods any longer."""
    first, second = cluster.nodes
    web = first.add_pod("web")
    cluster.announce(web)
    wait(lambda: routes(second) == {web.address.v4}, PATIENCE_S)
    for node in cluster.nodes:
        patch = json.dumps({"spec": {"podCIDR": RANGES[node.index], "podCIDRs": [RANGES[node.index]]}})
        cluster.services.run("patch", "node", node.name, "-p", patch)
    wait(lambda: routes(second) == {RANGES[first.index], "unreachable"})
    cluster.services.run("label", "pod", "web", "seen=true")
    wait(lambda: "pods-no-longer-followed" in second.log(CONTROLLER).read_text())
    late = first.add_pod("late")
    assert answered_by(second.add_pod("asker", serve=False), late) == {"late"}


def test_ranges_of_services_are_shown_and_who_is_in_their_way_named(api_stage: Stage) -> None:
    """As the API server makes them of its flags, and as they are added."""
    stage, node = api_stage, api_stage.node(1)
    ranges = list(map(str, addresses.SERVICES))
    wait(lambda: shown(node) == ranges)
    spec = {"cidrs": ["10.99.0.0/24"]}
    added = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": spec}
    strange = source.node("strange", 9, addresses.underlay(99)) | {"spec": {"podCIDRs": ["10.99.0.128/25"]}}
    strange["spec"]["podCIDR"] = strange["spec"]["podCIDRs"][0]
    stage.source.apply("ranges", [added, strange])
    wait(lambda: shown(node) == [ranges[0], "10.99.0.0/24", ranges[1]])
    warning = "Node strange: its pods 10.99.0.128/25 in the range 10.99.0.0/24 of Services: traffic goes astray"
    wait(lambda: warning in node.calico("status"))
    stage.source.delete("ranges")
    wait(lambda: shown(node) == ranges and warning not in node.calico("status"))


def shown(node: Node) -> list[str]:
    lines = node.calico("status").splitlines()
    found = next((line for line in lines if line.startswith("ranges of Services: ")), ": ")
    return found.partition(": ")[2].split(", ")


def answered_by(asker: Pod, asked: Pod) -> set[str]:
    return names(ask(asker.space, "tcp", asked.address.v4, runtime.PORT))
