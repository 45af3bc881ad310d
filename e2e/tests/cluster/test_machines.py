# SPDX-License-Identifier: Apache-2.0
"""The lab's own cluster, its nodes looked into: what pods leave behind, parts killed, clusters of one family."""

import json
import os
import time

import pytest

from e2e import kubernetes
from e2e.lab import real
from e2e.lab.cluster import Lab
from e2e.lab.machine import CONTAINERD, KUBELET, Machine
from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.lab.real import Cluster
from e2e.tests.cluster.play import PLACES, PORT, Place, Play, ask
from e2e.tests.load import load
from e2e.tests.traces import traces

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PODS = 20
SECONDS = 10


def test_cluster_is_of_the_version_that_was_asked_for(cluster: Cluster, play: Play) -> None:
    """The API server and every kubelet tell it."""
    server = json.loads(cluster.kubectl("version", "-o", "json"))["serverVersion"]["gitVersion"]
    kubelets = {node["status"]["nodeInfo"]["kubeletVersion"] for node in play.get("nodes", namespaced=False)["items"]}
    assert {server} | kubelets == {kubernetes.KUBERNETES.version()}


def test_scaling_leaves_nothing_behind(cluster: Cluster, play: Play) -> None:
    """Twenty pods, two, twenty, none: no link, address, route, neighbour, map entry or file stays on any node."""
    play.scale(0)
    before = [traces(machine) for machine in cluster.machines]
    for replicas in (PODS, 2, PODS, 0):
        play.scale(replicas)
    deadline = time.monotonic() + 20
    while (after := [traces(machine) for machine in cluster.machines]) != before and time.monotonic() < deadline:
        time.sleep(0.5)
    assert after == before


@pytest.mark.parametrize("daemon", [CONTROLLER, CNI_SERVER, CONTAINERD, KUBELET])
def test_part_killed_under_load_loses_nothing(cluster: Cluster, play: Play, daemon: str) -> None:
    """Of 1,000 new connections a second and 20 lasting ones, none fails while a part of a node is away."""
    play.scale(PODS)
    machine = cluster.machines[0]
    address = play.service_address("IPv4") or play.service_address("IPv6")
    where = machine.sandbox_of(play.get("pod", _pod_of(play, machine).pod)["status"]["podIP"])
    with load(where, address, PORT, SECONDS, "--http") as answered:
        time.sleep(1)
        machine.kill(daemon)
        time.sleep(SECONDS / 2)
        machine.start(daemon)
    assert answered == {pod["metadata"]["name"] for pod in play.web()}
    machine.wait_ready()
    play.restart(_pod_of(play, machine))


@pytest.mark.parametrize("stack", ["ipv4", "ipv6"])
def test_cluster_of_one_family_serves_its_pods(stack: str) -> None:
    """Pods start, find their Service by name and reach it, as host processes do, in either family alone."""
    with Lab(f"test-{os.getpid()}-{stack}") as lab:
        cluster = real.start(lab, 2, stack)
        play = Play(cluster.kubectl, lambda argv: lab.client.run(*argv).stdout, "e2e")
        play.set_up()
        play.scale(4)
        (address,) = play.get("service", "web")["spec"]["clusterIPs"]
        assert (":" in address) == (stack == "ipv6")
        names = {pod["metadata"]["name"] for pod in play.web()}
        for place in PLACES:
            for where in play.places(place):
                assert set(ask(play.inside(where), "tcp", address, PORT, count=10)) <= names
                assert set(ask(play.inside(where), "udp", address, PORT, count=10)) <= names
        for where in play.places("ask"):
            assert set(ask(play.inside(where), "tcp", "web", PORT, count=10)) <= names


def _pod_of(play: Play, machine: Machine) -> Place:
    """The pod `ask` on a machine."""
    (where,) = [place for place in play.places("ask") if place.node == machine.name]
    return where
