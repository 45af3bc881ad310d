# SPDX-License-Identifier: Apache-2.0
"""An installation by its manifest, over its life: rolled over under load, wiped, booted anew, taken away."""

import json
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from e2e import manifests
from e2e.lab import real
from e2e.lab.cluster import Lab
from e2e.lab.machine import KUBELET, BareMachine
from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.lab.real import Cluster
from e2e.lab.space import LabError
from e2e.tests.cluster.play import PORT, Play, deployment
from e2e.tests.load import load
from e2e.tests.traces import remains

pytestmark = [pytest.mark.root, pytest.mark.timeout(400)]

PODS, CHURNED, WAVES = 10, 20, 5
LOAD_S = 60
# How long a rollout may take: on a busy machine far longer than on one of its own.
ROLLOUT_S = 240
ABSENT_S = 40
OURS = ("-n", "kube-system")
INSTALLED = ("/opt/cni/bin", "/etc/cni/net.d", "/etc/calico-ebpf", "/usr/local/lib/calico-ebpf")


def test_rolling_update_under_load_fails_nothing(cluster: Cluster, play: Play) -> None:
    """New programs and new processes on every node, and then each daemon killed, while a thousand connections a second
    are opened and 100 pods come and go: no request fails, and no pod."""
    play.scale(PODS)
    machine = cluster.machines[0]
    ask = next(place for place in play.places("ask") if place.node == machine.name)
    where = machine.sandbox_of(play.get("pod", ask.pod)["status"]["podIP"])
    before = _programs(cluster)
    with load(where, play.service_address("IPv4"), PORT, LOAD_S, "--http"):
        _configure(cluster, f"tcp_new_s: {61 + int(time.time()) % 1000}")
        with _churn(play):
            cluster.kubectl(*OURS, "rollout", "restart", "daemonset/calico-ebpf")
            _wait_rolled_out(cluster, "daemonset/calico-ebpf")
            for each in cluster.machines:
                each.kill(CONTROLLER)
                each.kill(CNI_SERVER)
                each.wait_ready()
    assert not set(_programs(cluster)) & set(before)
    events = play.get("events", "--field-selector", "reason=FailedCreatePodSandBox")["items"]
    assert not [event["message"] for event in events]


def test_node_whose_directories_are_wiped_comes_back(cluster: Cluster, play: Play) -> None:
    """Whatever stood in /run and /var/lib: pods there go on, new ones start, and none shares an address."""
    machine = _machine(cluster, 1)
    play.scale(PODS)
    wiped = time.time()
    machine.space.run("sh", "-c", "rm -rf /run/calico-ebpf/* /var/lib/calico-ebpf/*")
    machine.wait(lambda: _restarted(cluster, machine, wiped), CONTROLLER)
    play.scale(0)
    play.scale(PODS)
    _assert_leases_are_pods(cluster, machine)


def test_installation_that_is_wiped_comes_back(cluster: Cluster, play: Play) -> None:
    """Executables, bundle, settings, network configuration: within seconds they are there again, and pods are made."""
    machine = _machine(cluster, 1)
    play.scale(PODS)
    machine.space.run("sh", "-c", f"rm -rf {' '.join(f'{place}/*' for place in INSTALLED)}")
    machine.wait(lambda: all(any(machine.space.path(place).iterdir()) for place in INSTALLED), CONTROLLER)
    machine.wait_ready()
    play.scale(0)
    play.scale(PODS)


def test_node_that_boots_anew_comes_back(cluster: Cluster, play: Play) -> None:
    """Fresh kernel state and an old disk: every pod runs again, and no address of those before is kept."""
    machine = _machine(cluster, 1)
    play.scale(PODS)
    before = _sandboxes(cluster, machine)
    machine.reboot()
    machine.wait(lambda: _all_new(_sandboxes(cluster, machine), before), CONTROLLER)
    cluster.kubectl("wait", "--for=condition=Ready", "pod", "--all", "-A", "--timeout=180s")
    machine.wait_ready()
    _assert_leases_are_pods(cluster, machine)
    play.scale(0)
    play.scale(PODS)


def test_node_whose_object_is_deleted_loses_no_connection(cluster: Cluster, play: Play) -> None:
    """To it, from it, through it: other nodes keep its routes until kubelet has registered it again, with whatever
    range it gets, also where their controller is started anew meanwhile; then pods are made there as before."""
    machine, other = _machine(cluster, 1), _machine(cluster, 0)
    play.scale(PODS)
    here, there = (
        cluster.machines[index].sandbox_of(play.get("pod", place.pod)["status"]["podIP"])
        for index, place in enumerate(sorted(play.places("ask"), key=lambda place: place.node))
    )
    address = play.service_address("IPv4")
    port = play.node_port("TCP")
    with (
        load(here, address, PORT, ABSENT_S, "--http", rate=100),
        load(there, address, PORT, ABSENT_S, "--http", rate=100),
        load(cluster.lab.client, machine.address.v4, port, ABSENT_S, "--http", rate=100),
    ):
        cluster.kubectl("delete", "node", machine.name)
        other.kill(CONTROLLER)
        other.wait_ready()
        time.sleep(5)
        machine.kill(KUBELET)
        machine.start(KUBELET)
        real.wait_registered(cluster, machine)
        cluster.kubectl("wait", "--for=condition=Ready", f"node/{machine.name}", "--timeout=30s")
    play.scale(0)
    play.scale(PODS)


def test_overlays_are_taken_by_an_api_server(cluster: Cluster) -> None:
    """Each kustomization makes objects that are valid, and the manifest to apply is the one that the base makes."""
    assert manifests.INSTALL.read_text() == manifests.HEADER + manifests.rendered(manifests.BASE)
    for overlay in sorted(manifests.OVERLAYS.iterdir()):
        cluster.kubectl("apply", "--dry-run=server", "-f", "-", stdin=manifests.rendered(overlay))


def test_uninstall_leaves_a_node_as_it_was() -> None:
    """Programs, maps, routes, devices, files, rules, sysctls: before and after are equal, with pods there. The node has
    no BPF file system mounted, as where no systemd is."""
    with Lab(f"test-{os.getpid()}-bare") as lab:
        cluster = real.start(lab, 1, kind=BareMachine)
        machine = cluster.machines[0]
        before = remains(machine)
        machine.space.run("umount", "/sys/fs/bpf")
        real.install(cluster)
        cluster.kubectl("create", "-f", "-", stdin=json.dumps(_with_replicas(deployment("web"), 3)))
        cluster.kubectl("rollout", "status", "deployment/web", f"--timeout={ROLLOUT_S}s")
        assert remains(machine) != before
        cluster.kubectl("delete", "-f", str(manifests.INSTALL), "--timeout=60s")
        cluster.kubectl("apply", "-f", str(manifests.UNINSTALL))
        _wait_rolled_out(cluster, "daemonset/calico-ebpf-uninstall")
        cluster.kubectl("delete", "-f", str(manifests.UNINSTALL), "--timeout=60s")
        assert remains(machine) == before


def _wait_rolled_out(cluster: Cluster, name: str) -> None:
    """Waits for a DaemonSet of ours. Fails with what its namespace's events say."""
    try:
        cluster.kubectl(*OURS, "rollout", "status", name, f"--timeout={ROLLOUT_S}s")
    except LabError as error:
        raise AssertionError(cluster.kubectl(*OURS, "get", "events", "--sort-by=.lastTimestamp")) from error


@contextmanager
def _churn(play: Play) -> Iterator[None]:
    """Pods that start and stop for as long as the body lasts, and until there were a hundred."""
    play.apply(deployment("churn"))
    done = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        waves = pool.submit(_waves, play, done)
        try:
            yield
        finally:
            done.set()
        began_and_ended = waves.result()
    play.kubectl("delete", "deployment/churn")
    assert began_and_ended >= CHURNED * WAVES


def _waves(play: Play, done: threading.Event) -> int:
    """How many pods were started, and stopped."""
    pods = 0
    while pods < CHURNED * WAVES or not done.is_set():
        began = time.monotonic()
        play.kubectl("scale", "deployment/churn", f"--replicas={CHURNED}")
        play.kubectl("rollout", "status", "deployment/churn", f"--timeout={ROLLOUT_S}s")
        play.kubectl("scale", "deployment/churn", "--replicas=0")
        play.kubectl("wait", "--for=delete", "pod", "-l", "app=churn", f"--timeout={ROLLOUT_S}s")
        pods += CHURNED
        # At full speed they would take the whole of a small machine, and the load ask nothing.
        done.wait(max(began + LOAD_S / WAVES - time.monotonic(), 0))
    return pods


def _machine(cluster: Cluster, index: int) -> BareMachine:
    machine = cluster.machines[index]
    assert isinstance(machine, BareMachine)
    return machine


def _restarted(cluster: Cluster, machine: BareMachine, since: float) -> bool:
    """Whether both daemons of a machine have begun after a moment, and are ready."""
    pods = json.loads(cluster.kubectl(*OURS, "get", "pods", "-l", "app.kubernetes.io/name=calico-ebpf", "-o", "json"))
    (pod,) = [item for item in pods["items"] if item["spec"]["nodeName"] == machine.name]
    states: dict[str, Any] = {item["name"]: item for item in pod["status"]["containerStatuses"]}
    return all(states[name]["ready"] and _began(states[name]) >= since - 1 for name in (CONTROLLER, CNI_SERVER))


def _began(status: dict[str, Any]) -> float:
    moment = status["state"].get("running", {}).get("startedAt", "1970-01-01T00:00:00Z")
    return time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")) - time.timezone


def _sandboxes(cluster: Cluster, machine: BareMachine) -> dict[str, set[str]]:
    """The containers of each pod on a machine that run."""
    found = {}
    for pod in json.loads(cluster.kubectl("get", "pods", "-A", "-o", "json"))["items"]:
        if pod["spec"].get("nodeName") == machine.name:
            statuses = pod["status"].get("containerStatuses", ())
            found[pod["metadata"]["name"]] = {item["containerID"] for item in statuses if "running" in item["state"]}
    return found


def _all_new(now: dict[str, set[str]], before: dict[str, set[str]]) -> bool:
    """Whether every pod runs, in containers that it did not have."""
    return all(found and not found & before.get(name, set()) for name, found in now.items())


def _assert_leases_are_pods(cluster: Cluster, machine: BareMachine) -> None:
    """The addresses that are reserved on a node are those of its pods, when what is going has gone."""
    deadline = time.monotonic() + 60
    while (reserved := machine.reserved()) != (used := _addresses(cluster, machine)):
        assert time.monotonic() < deadline, (reserved - used, used - reserved)
        time.sleep(1)


def _addresses(cluster: Cluster, machine: BareMachine) -> set[str]:
    pods = json.loads(cluster.kubectl("get", "pods", "-A", "-o", "json"))["items"]
    return {
        item["ip"]
        for pod in pods
        if pod["spec"].get("nodeName") == machine.name and not pod["spec"].get("hostNetwork")
        for item in pod["status"].get("podIPs", ())
    }


def _programs(cluster: Cluster) -> list[str]:
    """Which programs are pinned on each node."""
    return [json.loads(machine.calico("status", "--output", "json"))["programs"] for machine in cluster.machines]


def _configure(cluster: Cluster, settings: str) -> None:
    """Makes these the operator's own settings."""
    metadata = {"name": "calico-ebpf", "namespace": OURS[1]}
    own = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"config.yaml": settings}}
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(own))


def _with_replicas(manifest: dict[str, Any], replicas: int) -> dict[str, Any]:
    return manifest | {"spec": manifest["spec"] | {"replicas": replicas}}
