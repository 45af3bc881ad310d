# SPDX-License-Identifier: Apache-2.0
"""doctor's view of devices and of kube-proxy, and how daemons are asked over HTTP."""

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bpf.settings import Settings
from controller import kubeproxy, nodes, routes, sysctl, web
from controller.commands import checks_network, links
from controller.commands.checks import Verdict
from controller.devices import Device

ETH0, ETH1 = Device(2, "eth0", 1500, True), Device(3, "eth1", 1400, True)


class Answer(BaseHTTPRequestHandler):
    """503 for /healthz, 200 for anything else."""

    def do_GET(self) -> None:
        self.send_response(503 if self.path == "/healthz" else 200)
        self.end_headers()
        self.wfile.write(self.path.encode() + b"\n")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    """The port of a server on the loopback address."""
    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def test_device_without_its_xdp_program_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """TC does its work: no failure. What stands on other devices, or on TC's hooks, is not it."""
    hooks = [links.Attached("eth0", 2, "xdp", 7), links.Attached("eth1", 3, "from_netdev")]
    monkeypatch.setattr(links, "attached", lambda: hooks)
    found = checks_network._xdp([ETH0, ETH1])
    assert (found.verdict, found.seen) == (Verdict.WARN, "not on eth1")
    hooks.append(links.Attached("eth1", 3, "xdp", 7))
    found = checks_network._xdp([ETH0, ETH1])
    assert (found.verdict, found.seen, found.advice) == (Verdict.OK, "on eth0, eth1", "")


def test_xdp_on_a_veth_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a node of kind has: it drops in silence."""
    monkeypatch.setattr(links, "attached", lambda: [links.Attached("eth0", 2, "xdp", 7)])
    found = checks_network._xdp([ETH0._replace(kind="veth")])
    assert (found.verdict, found.seen) == (Verdict.WARN, "on eth0, of a veth pair")


def test_get_gives_status_and_body_whatever_the_status(port: int) -> None:
    """An unhealthy daemon's answer is an answer; a wildcard address is asked on loopback."""
    assert web.get(f"127.0.0.1:{port}", "/livez") == (200, "/livez")
    assert web.get(f"0.0.0.0:{port}", "/healthz") == (503, "/healthz")


def test_get_where_nobody_listens_says_why() -> None:
    """No answer has status 0."""
    status, why = web.get("127.0.0.1:1", "/healthz")
    assert status == 0
    assert "refused" in why


@pytest.mark.parametrize(
    ("answer", "verdict"), [("nftables", Verdict.FAIL), ("# HELP calico_ebpf_objects", Verdict.OK), ("", Verdict.OK)]
)
def test_kube_proxy_is_known_by_its_mode(monkeypatch: pytest.MonkeyPatch, answer: str, verdict: Verdict) -> None:
    """Our own metrics at the same address are not taken for it."""
    monkeypatch.setattr(kubeproxy, "processes", list)
    monkeypatch.setattr(web, "get", lambda *_: (200, answer))
    monkeypatch.setattr(routes, "firewall_chains", lambda **_: [])
    found = {item.name: item.verdict for item in checks_network._kube_proxy(Settings())}
    assert found == {"kube-proxy": verdict, "kube-proxy's rules": Verdict.OK}


def test_kube_proxy_is_known_by_its_process(tmp_path: Path) -> None:
    """A process of that name in this network namespace is found while it runs."""
    program = tmp_path / "kube-proxy"
    shutil.copy(shutil.which("sleep") or "", program)
    with subprocess.Popen([program, "60"]) as process:
        try:
            while "kube-proxy" not in Path(f"/proc/{process.pid}/comm").read_text():
                time.sleep(0.001)  # exec closes what Popen waits for before it changes the name
            assert process.pid in kubeproxy.processes()
        finally:
            process.kill()
    assert process.pid not in kubeproxy.processes()


@pytest.mark.parametrize(
    ("pods", "addresses", "overlay", "verdict"),
    [
        (1400, ["192.0.2.1"], False, Verdict.OK),
        (1401, ["192.0.2.1"], False, Verdict.WARN),
        (1350, ["192.0.2.1"], True, Verdict.OK),
        (1351, ["192.0.2.1"], True, Verdict.WARN),
        (1330, ["192.0.2.1", "2001:db8::1"], True, Verdict.OK),
        (1331, ["192.0.2.1", "2001:db8::1"], True, Verdict.WARN),
        (None, [], True, Verdict.WARN),
    ],
)
def test_mtu_of_pods_must_fit_the_smallest_device(
    tmp_path: Path, pods: int | None, addresses: list[str], overlay: bool, verdict: Verdict
) -> None:
    """The narrowest way counts, less what the overlay adds."""
    (tmp_path / "node.json").write_text(json.dumps({"mtu": pods, "addresses": addresses}))
    assert checks_network._mtu([ETH0, ETH1], overlay, Settings(run_dir=tmp_path)).verdict == verdict


@pytest.mark.parametrize(
    ("values", "devices", "verdict"),
    [
        ({"all": "0", "eth0": "1"}, [ETH0], Verdict.OK),
        ({"all": "1", "eth0": "0"}, [ETH0, ETH1], Verdict.WARN),
        ({"all": "1", "eth0": "2", "eth1": "2"}, [ETH0, ETH1], Verdict.OK),
    ],
)
def test_rp_filter_is_the_stricter_number_of_all_and_device(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], devices: list[Device], verdict: Verdict
) -> None:
    """Strict filtering matters where there are several ways in; the kernel takes the larger number."""
    monkeypatch.setattr(checks_network, "sysctl", lambda name: values.get(name.split("/")[3], ""))
    assert checks_network._rp_filter(devices).verdict == verdict


@pytest.mark.parametrize(
    ("way", "why", "verdict"),
    [
        ("l2", "has answered the probe", Verdict.OK),
        ("vxlan", "of another subnet", Verdict.OK),
        ("vxlan", nodes.SILENT, Verdict.WARN),
        ("none", nodes.NO_TUNNEL, Verdict.WARN),
    ],
)
def test_handover_is_told_with_its_reason(tmp_path: Path, way: str, why: str, verdict: Verdict) -> None:
    """A node of the same subnet that does not answer the probe is worth a look, and one that gets nothing is."""
    ways = [{"node": f"n{number}", "address": f"192.0.2.{number}", "way": way, "why": why} for number in range(7)]
    report = {"handover": "auto", "return_path": "direct", "nodes": ways}
    (tmp_path / "handover.json").write_text(json.dumps(report))
    found = checks_network._handover(Settings(run_dir=tmp_path))
    assert found.verdict == verdict
    assert "answers go back direct" in found.seen
    assert "n0 (192.0.2.0)" in found.seen
    assert f"and 2 more: {why}" in found.seen


@pytest.mark.parametrize(
    ("reserved", "ephemeral", "masquerade", "seen"),
    [
        ("80,10000-29999", "32768\t60999", "all", "all, ports 10000-29999"),
        ("10000-29998", "32768\t60999", "all", "all, ports 10000-29999, 1 not reserved"),
        ("", "32768\t60999", "ipv4", "ipv4, ports 10000-29999, 20000 not reserved"),
        ("10000-29999", "29998\t65535", "all", "all, ports 10000-29999, 2 of them ephemeral ones: "),
        ("", "1024\t65535", "off", "off"),
    ],
)
def test_ports_of_masquerade_must_be_reserved_and_not_ephemeral(
    monkeypatch: pytest.MonkeyPatch, reserved: str, ephemeral: str, masquerade: str, seen: str
) -> None:
    """Every one of them, where there is masquerade."""
    values = {sysctl.RESERVED: reserved, sysctl.EPHEMERAL: ephemeral}
    monkeypatch.setattr(checks_network, "sysctl", values.__getitem__)
    found = checks_network._reserved_ports(Settings(masquerade=masquerade))
    assert found.seen.startswith(seen)
    assert (found.verdict == Verdict.OK) == (found.seen in ("off", "all, ports 10000-29999"))


def test_devices_that_were_set_but_are_absent_fail() -> None:
    """A name that no device has is told."""
    found = checks_network._devices([ETH0], Settings(underlay_devices=("eth0", "bond7")))
    assert (found.verdict, found.seen) == (Verdict.FAIL, "no device bond7")


@pytest.mark.root
def test_links_find_the_devices_of_default_routes(tmp_path: Path) -> None:
    """In a namespace of its own: by route, by name."""
    script = """
import subprocess
from controller.commands import links
def ip(text): subprocess.run(["ip", *text.split()], check=True)
for name, net in (("a0", 1), ("b0", 2)):
    ip(f"link add {name} type veth peer name {name}p")
    ip(f"address add 192.0.2.{net}/32 dev {name}")
    ip(f"link set {name} up"); ip(f"link set {name}p up")
def names(*wanted):
    return [device.name for device in links.underlay(links.seen(), wanted)]
print(names())
ip("route add default nexthop dev a0 nexthop dev a0p")
ip("-6 route add default dev b0")
print(sorted(names()), names("b0p"))
"""
    (tmp_path / "script.py").write_text(script)
    command = ["unshare", "--net", sys.executable, tmp_path / "script.py"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == ["[]", "['a0', 'a0p', 'b0'] ['b0p']"], ran.stderr
