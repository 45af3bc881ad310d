# SPDX-License-Identifier: Apache-2.0
"""The whole controller as a process, in a network namespace of its own, over a directory of manifests."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import attach, syscall
from bpf.pins import Pins
from bpf.tests.test_cgroup import cgroup
from controller.denied import FILE_NAME, in_force
from controller.health import PROBES_ADDRESS
from controller.maps import PinnedMaps
from controller.network import UNDERLAY_HOOKS
from controller.tests.fakes import NAMES
from controller.tests.objects import JSON, endpoint, endpoint_slice, node, served, service

pytestmark = pytest.mark.root

DEVICES = """
ip link set lo up
ip link add up0 type veth peer name far0
ip link set up0 up
ip link set far0 up
ip addr add 192.0.2.1/24 dev up0
ip route add default via 192.0.2.254
exec sleep 1000
"""
OWN = node("own", ["192.0.2.1"], ["10.244.0.0/24"])
NEAR = node("near", ["192.0.2.2"], ["10.244.1.0/24"])
WEB = {"198.51.100.1:80/6": ["203.0.113.1:8080"]}


class Rig:
    """A namespace, held by a process that sleeps, and the controllers that are started in it."""

    def __init__(self, directory: Path, bpffs: Path) -> None:
        self.run_dir = directory / "run"
        self.manifests = directory / "manifests"
        self.manifests.mkdir()
        self.denied = directory / "state" / FILE_NAME
        self.pins = Pins(bpffs)
        self.maps = PinnedMaps(self.pins)
        self._log = directory / "log"
        self._environment = os.environ | {
            "NODE_NAME": "own",
            "CALICO_EBPF_SOURCE": str(self.manifests),
            "CALICO_EBPF_RUN_DIR": str(self.run_dir),
            "CALICO_EBPF_STATE_DIR": str(directory / "state"),
            "CALICO_EBPF_BPFFS": str(bpffs),
            "CALICO_EBPF_CONNECT_TIME": "off",
        }
        self._holder = subprocess.Popen(["unshare", "--net", "sh", "-c", DEVICES])
        self._controller: subprocess.Popen[bytes] | None = None
        _eventually(lambda: "up0" in self.sh("ip -br link") and "default" in self.sh("ip route"))

    def start(self, **environment: str) -> None:
        command = [sys.executable, "-m", "bpf.cli", "controller"]
        with self._log.open("ab") as log:
            self._controller = subprocess.Popen(self.inside(command), env=self._environment | environment, stderr=log)
        _eventually(lambda: self.report().get("pid") == self._controller_pid and bool(self.report().get("synced")))

    def stop(self, number: int) -> int:
        assert self._controller
        self._controller.send_signal(number)
        return self._controller.wait(10)

    def wait(self) -> int:
        """The exit status of a controller that ends by itself."""
        assert self._controller
        return self._controller.wait(10)

    def sh(self, script: str) -> str:
        return subprocess.run(self.inside(["sh", "-c", script]), check=True, capture_output=True, text=True).stdout

    def place(self, name: str, *manifests: JSON) -> None:
        scratch = self.manifests / f".{name}"
        scratch.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": manifests}))
        scratch.rename(self.manifests / name)

    def report(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.run_dir / "controller.json").read_bytes())
        except FileNotFoundError:
            return {}
        return found

    def content(self) -> dict[str, dict[bytes, bytes]]:
        return {name: self.maps.read(name) for name in NAMES}

    def served(self) -> dict[str, list[str]]:
        """Empty where a change came between reading two of the maps."""
        try:
            return served(self.content())
        except KeyError:
            return {}

    def in_force(self) -> tuple[object, str, str]:
        """Everything that must outlive the process."""
        return self.content(), self.sh("bpftool net show"), self.sh("ip route show proto 206")

    def logged(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def get(self, url: str) -> str:
        code = f"import urllib.request as u; print(u.urlopen({url!r}, timeout=5).read().decode())"
        return self.sh(f'{sys.executable} -I -c "{code}"')

    def close(self) -> None:
        for process in (self._controller, self._holder):
            if process and process.poll() is None:
                process.kill()
                process.wait()

    @property
    def _controller_pid(self) -> int:
        return self._controller.pid if self._controller else 0

    def inside(self, command: list[str]) -> list[str]:
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", *command]


def _eventually(reached: Callable[[], bool], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


@pytest.fixture
def rig(tmp_path: Path, bpffs: Path) -> Iterator[Rig]:
    made = Rig(tmp_path, bpffs)
    try:
        made.place("nodes.json", OWN, NEAR)
        made.place("web.json", service(), endpoint_slice("s1", [endpoint("203.0.113.1")]))
        made.start()
        yield made
    finally:
        made.close()


def test_manifests_end_in_maps_and_routes_and_follow_changes(rig: Rig) -> None:
    """From a directory to the kernel."""
    assert rig.served() == WEB
    assert "10.244.1.0/24 via 192.0.2.2 dev up0" in rig.sh("ip route")
    rig.place("web.json", service(), endpoint_slice("s1", [endpoint("203.0.113.2")]))
    _eventually(lambda: rig.served() == {"198.51.100.1:80/6": ["203.0.113.2:8080"]})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_stopped_and_started_again_leaves_and_takes_over_everything(rig: Rig, number: int) -> None:
    """Nothing is touched on the way out, and nothing that is right is written on the way in."""
    before = rig.in_force()
    assert rig.stop(number) == (0 if number == signal.SIGTERM else -number)
    assert rig.in_force() == before
    rig.start()
    assert rig.in_force() == before
    assert len(rig.logged("synced")) == 1, "the second start wrote to the maps"
    assert len(rig.logged("program-attached")) == 4, "the second start attached again"


def test_cleared_run_directory_ends_the_controller_and_the_next_one_mends_it(rig: Rig) -> None:
    """It would stand there without a lock, and what the CNI plugin reads would not come back."""
    before = rig.in_force()
    rig.run_dir.rename(rig.run_dir.with_name("gone"))  # at once: it writes there while one removes file by file
    assert rig.wait() == 1
    rig.start()
    assert rig.in_force() == before
    assert (rig.run_dir / "node.json").exists()


def test_controller_from_which_another_version_takes_over_ends(rig: Rig) -> None:
    """It would write to maps that nobody reads; the next one takes over, and finds everything as it was."""
    before, _, routes = rig.in_force()
    other = rig.pins.root.with_name("v1000")
    rig.pins.root.resolve().rename(other)
    rig.pins.root.unlink()
    assert rig.wait() == 1
    rig.start()
    after, attached, routes_after = rig.in_force()
    assert (after, routes_after) == (before, routes)
    for hook in UNDERLAY_HOOKS:
        with rig.pins.opened_program(hook) as program:
            assert f"{hook} id {syscall.program_id(program)}\n" in attached
    assert not other.exists()


def test_changes_made_while_away_are_applied(rig: Rig) -> None:
    """A deletion that nobody saw, too."""
    rig.stop(signal.SIGKILL)
    rig.place("web.json", service("mail", ["198.51.100.2"]))
    rig.start()
    assert rig.served() == {"198.51.100.2:80/6": []}


def test_bad_manifest_is_reported_with_its_line_beside_good_ones(rig: Rig) -> None:
    """It loses nothing of the others."""
    (rig.manifests / "bad.yaml").write_text("kind: Service\napiVersion: v1\nmetadata: [\n")
    _eventually(lambda: bool(rig.report()["errors"]))
    assert rig.report()["errors"][0].startswith("bad.yaml:4: not YAML")
    assert rig.served() == WEB


def test_deny_list_is_in_force_as_far_as_it_makes_sense(rig: Rig) -> None:
    """When the controller starts, and when somebody has written to the file; what denies nothing is named until it is
    mended."""
    rig.stop(signal.SIGTERM)
    rig.denied.write_text("# by hand\n\n203.0.113.0/24\nexample.com\n")
    rig.start()
    assert in_force(rig.maps) == {"203.0.113.0/24"}
    _eventually(lambda: bool(rig.report()["errors"]))
    assert rig.report()["errors"][0].startswith(f"{rig.denied}:4: deny list: denies nothing: 'example.com'")
    rig.denied.write_text("# by hand\n203.0.113.0/24\n2001:db8::/32\n")
    _eventually(lambda: in_force(rig.maps) == {"203.0.113.0/24", "2001:db8::/32"})
    _eventually(lambda: not rig.report()["errors"])
    assert rig.served() == WEB


def test_without_cgroup2_pods_have_services_until_it_is_mounted(rig: Rig, tmp_path: Path) -> None:
    """That connect-time translation cannot be had is a problem, and keeps nothing else from working."""
    late = tmp_path / "cgroup"
    rig.stop(signal.SIGTERM)
    rig.start(CALICO_EBPF_CONNECT_TIME="host", CALICO_EBPF_CGROUP=str(late), CALICO_EBPF_AUDIT_INTERVAL_S="1")
    assert rig.served() == WEB
    _eventually(lambda: any(str(late) in line and "mount cgroup2" in line for line in rig.report()["errors"]))
    with cgroup() as group:
        late.symlink_to(group)
        _eventually(lambda: len(list(rig.pins.links.glob("*"))) == len(attach.CGROUP_HOOKS))
        _eventually(lambda: not any("cgroup2" in line for line in rig.report()["errors"]))
        rig.stop(signal.SIGTERM)
        attach.detach_cgroup(rig.pins)


def test_health_is_served_once_its_address_is_free(rig: Rig) -> None:
    """kube-proxy had it, and is gone."""
    rig.stop(signal.SIGTERM)
    code = "import socket, time; s = socket.create_server(('0.0.0.0', 10256)); print(flush=True); time.sleep(60)"
    command = rig.inside([sys.executable, "-I", "-c", code])
    with subprocess.Popen(command, stdout=subprocess.PIPE) as taken:
        assert taken.stdout
        taken.stdout.readline()
        rig.start()
        _eventually(lambda: bool(rig.logged("health-not-served")))
        assert "lastUpdated" in rig.get(f"http://{PROBES_ADDRESS}/healthz"), "kubelet would hear kube-proxy"
        taken.kill()
    _eventually(lambda: bool(rig.logged("health-served")))
    assert "lastUpdated" in rig.get("http://127.0.0.1:10256/healthz")


def test_health_port_of_a_service_is_served(rig: Rig) -> None:
    """On every address of the node, by either family, and no longer than the Service wants it."""
    fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999}
    both = service(ips=["198.51.100.1", "2001:db8:5::1"], **fields)
    here = {**endpoint("203.0.113.1"), "nodeName": "own"}
    far = {**endpoint("2001:db8:b::1"), "nodeName": "near"}
    slices = endpoint_slice("s1", [here]), endpoint_slice("s2", [far], addressType="IPv6")
    rig.place("web.json", both, *slices)

    def asked(host: str) -> str:
        return rig.sh(f"curl -s -o /dev/null -w '%{{http_code}}' --max-time 5 http://{host}:30999/ || true")

    _eventually(lambda: [asked(host) for host in ("127.0.0.1", "192.0.2.1", "[::1]")] == ["200", "200", "503"])
    rig.place("web.json", service(), endpoint_slice("s1", [here]))
    _eventually(lambda: asked("127.0.0.1") == "000")


def test_health_and_metrics_are_served(rig: Rig) -> None:
    """On their standard addresses, health by either family."""
    assert "lastUpdated" in rig.get("http://[::1]:10256/livez")
    assert json.loads(rig.get("http://127.0.0.1:10256/healthz"))["nodeEligible"] is True
    assert "lastUpdated" in rig.get("http://127.0.0.1:10256/livez")
    assert rig.get("http://127.0.0.1:10249/proxyMode").strip() == "calico-ebpf"
    metrics = rig.get("http://127.0.0.1:10249/metrics")
    for line in (
        'calico_ebpf_map_entries{map="frontends"} 2.0',
        'calico_ebpf_map_entries{map="sockets"} 0.0',
        'calico_ebpf_map_max_entries{map="sockets"} 65536.0',
        'calico_ebpf_map_max_entries{map="flows"} 524288.0',
        'calico_ebpf_objects{kind="Node"} 2.0',
        "calico_ebpf_pending_changes 0.0",
        "calico_ebpf_flows_created_total 0.0",
        'kubeproxy_proxy_livez_total{code="200"} 2.0',
        "kubeproxy_sync_proxy_rules_service_changes_total 1.0",
        "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0.0",
    ):
        assert line in metrics
    assert re.search(r"calico_ebpf_sync_duration_seconds_count [1-9]", metrics)
    assert re.search(r'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv6"} [1-9]', metrics)
