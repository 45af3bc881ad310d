# SPDX-License-Identifier: Apache-2.0
"""The commands as they are called, on real maps, with no daemon running."""

import dataclasses
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from bpf import abi, bundle, features
from bpf.address import packed
from bpf.errors import BpfError
from bpf.features import Features
from controller import alone
from controller.commands import checks, checks_install, cnifiles, daemons, doctor, status, uninstall
from controller.commands.checks import Check, Verdict
from controller.commands.tests.conftest import Node

pytestmark = pytest.mark.root

Run = Callable[..., Result]


@pytest.fixture
def filled(node: Node) -> Node:
    """A Service with one backend, a pod, and a flow between them."""
    service, client, server = map(packed, ("10.96.0.10", "10.244.0.5", "10.244.1.7"))
    node.put("frontends", abi.FrontendKey(service, 80, 6), abi.Frontend(1, 1, 0, 0, 1, 0))
    node.put("slots", abi.SlotKey(1, 0), abi.Slot(7))
    node.put("backends", abi.BackendKey(7), abi.Backend(server, 8080, 6, 0))
    node.put("pods", abi.PodKey(client), abi.Pod(1, 0, bytes(6), bytes(6), 5))
    opener, answer = abi.Tuple(client, service, 1000, 80, 6), abi.Tuple(server, client, 8080, 1000, 6)
    now = time.monotonic_ns()
    flow = abi.Flow(answer, now, now + 10**12, now, 7, abi.FlowState.ESTABLISHED, 0, abi.Way(0, 0, bytes(16)))
    node.put("flows", opener, flow)
    node.put("flows", answer, flow._replace(twin=opener, flags=abi.FlowFlag.REPLY))
    return node


def as_json(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("services", ["10.96.0.10:80", "TCP", "cluster_ip", "10.244.1.7:8080"]),
        ("backends", ["7", "10.244.1.7:8080", "TCP", "1"]),
        ("flows", ["10.244.0.5:1000", "10.96.0.10:80", "10.244.1.7:8080", "established"]),
        ("pods", ["10.244.0.5", "lo", "hash"]),
    ],
)
def test_listing_shows_what_the_maps_hold(run: Run, command: str, words: list[str]) -> None:
    """With the daemons down, the table has a row of what is pinned, and JSON has as many items."""
    lines = run(command).output.splitlines()
    assert len(lines) == 2
    assert set(words) <= set(lines[1].split())
    assert len(as_json(run(command, "--output", "json"))) == 1


@pytest.mark.usefixtures("filled")
def test_services_and_flows_can_be_narrowed(run: Run) -> None:
    """Options leave out what does not match."""
    assert len(as_json(run("services", "--address", "10.96.0.10", "--output", "json"))) == 1
    assert as_json(run("services", "--address", "10.96.0.11", "--output", "json")) == []
    assert as_json(run("flows", "--port", "81", "--output", "json")) == []
    assert len(as_json(run("flows", "--address", "10.244.1.7", "--port", "1000", "--output", "json"))) == 1


def test_flows_limit_tells_how_many_more(run: Run, filled: Node) -> None:
    """What is cut off is counted, on standard error."""
    client, server = packed("10.244.0.5"), packed("10.244.1.7")
    direct = abi.Tuple(client, server, 2000, 8080, 6)
    back = abi.Tuple(server, client, 8080, 2000, 6)
    now = time.monotonic_ns()
    filled.put(
        "flows", direct, abi.Flow(back, now, now + 10**12, now, 0, abi.FlowState.NEW, 0, abi.Way(0, 0, bytes(16)))
    )
    result = run("flows", "--limit", "1", "--output", "json")
    assert len(as_json(result)) == 1
    assert "1 more flows" in result.stderr


@pytest.mark.usefixtures("node")
def test_drops_of_nothing_says_so(run: Run) -> None:
    """An untroubled node is told in words; every counter is there."""
    assert "nothing was dropped" in run("drops").output
    assert set(as_json(run("drops", "--output", "json"))["counters"]) == {item.name.lower() for item in abi.Counter}


@pytest.mark.usefixtures("bare_node")
@pytest.mark.parametrize("command", ["services", "backends", "flows", "pods", "drops"])
def test_listing_without_maps_is_one_line(run: Run, command: str) -> None:
    """Where nothing is loaded, a line says so."""
    result = run(command)
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "has a calico-ebpf daemon run on this node?" in result.output
    assert result.output.count("\n") == 1


def test_status_tells_what_is_loaded_and_who_runs(run: Run, filled: Node) -> None:
    """Programs, fill levels and daemons that are down are told without either daemon."""
    found = as_json(run("status", "--output", "json"))
    assert (found["node"], found["programs"], found["layout"]) == ("worker-1", "0123456789ab", filled.pins.root.name)
    assert {"name": "flows", "entries": 2, "max_entries": 64} in found["maps"]
    assert [(daemon["name"], daemon["up"]) for daemon in found["daemons"]] == [
        ("cni-server", False),
        ("controller", False),
    ]
    assert re.search(r"^flows +2 ", run("status").output, re.MULTILINE)


@pytest.mark.usefixtures("bare_node")
def test_status_without_maps_warns(run: Run) -> None:
    """status answers on a node where nothing was ever started."""
    found = as_json(run("status", "--output", "json"))
    assert found["programs"] is None
    assert "no programs are loaded" in found["warnings"][0]


def test_status_shows_what_the_controller_reports(run: Run, node: Node) -> None:
    """Objects, sync and problems come from the file that the controller left, also when it is gone."""
    report = {
        "pid": 2**22 + 1,
        "source": "kubernetes",
        "synced": False,
        "waiting_for": ["Node"],
        "objects": {"Service": 3},
        "service_ranges": ["198.51.100.0/24", "2001:db8:5::/64"],
        "last_sync": None,
        "errors": ["a.yaml:7: Service default/web: no port"],
    }
    (node.settings.run_dir / "controller.json").write_text(json.dumps(report))
    output = run("status").output
    assert "controller.lock: nobody holds it" in output
    assert (
        "last heard: source kubernetes: 3 Service; not in step, waiting for the first list of Node, no write yet"
        in output
    )
    assert "ranges of Services: 198.51.100.0/24, 2001:db8:5::/64" in output
    assert "a.yaml:7: Service default/web: no port" in output


def test_status_shows_handovers_and_the_way_back(run: Run, node: Node) -> None:
    """What is in force for outside clients, and why."""
    ways = [
        {"node": "n2", "address": "192.0.2.2", "way": "l2", "why": "has answered the probe"},
        {"node": "n2", "address": "2001:db8::2", "way": "l2", "why": "has answered the probe"},
        {"node": "n3", "address": "198.51.100.3", "way": "none", "why": "of another subnet"},
    ]
    report = {"handover": "auto", "return_path": "entry", "nodes": ways}
    (node.settings.run_dir / "handover.json").write_text(json.dumps(report))
    output = run("status").output
    assert "outside clients: answers go back through the node by which they came in" in output
    assert "outside clients: handed over by layer 2 to n2 (192.0.2.2, 2001:db8::2): has answered the probe" in output
    assert "outside clients: nothing is handed over to n3 (198.51.100.3): of another subnet" in output
    assert as_json(run("status", "--output", "json"))["handover"] == report


def test_status_warns_of_full_maps_and_evicted_flows() -> None:
    """What somebody must act on is named with the setting to raise."""
    found: dict[str, Any] = {
        "programs": "x",
        "maps": [
            {"name": "slots", "entries": 60, "max_entries": 64},
            {"name": "pods", "entries": 1, "max_entries": 64},
            *({"name": name, "entries": 64, "max_entries": 64} for name in ("flows", "affinities", "drops")),
        ],
        "sizes": ["map slots is for 64 entries, slots_max is 128"],
        "counters": {"flows_restored": 1},
        "controller": {},
    }
    warnings = status.warnings(found)
    assert len(warnings) == 3
    assert "slots is 94% full: raise slots_max" in warnings[0]
    assert "slots_max is 128: the controller sees to it when it starts" in warnings[1]
    assert "evicted" in warnings[2]


def test_map_of_another_size_than_its_setting_is_named(node: Node) -> None:
    """As where the controller has not been started since the setting was raised."""
    found = {item.name: item for item in checks_install.install_checks(node.settings)}["map sizes"]
    assert found.verdict == Verdict.WARN
    assert f"map pods is for 64 entries, pods_max is {node.settings.pods_max}" in found.seen


def test_controller_is_up_while_its_lock_is_held(node: Node) -> None:
    """Also where it runs in a container, whose process ids are others."""
    held = alone.lock(node.settings.run_dir)
    assert daemons.controller(node.settings).up
    os.close(held)
    assert not daemons.controller(node.settings).up


@pytest.mark.parametrize("content", ["", "nonsense", "[1]"])
def test_senseless_report_is_empty(node: Node, content: str) -> None:
    """A file that is cut short or foreign is no traceback."""
    (node.settings.run_dir / "controller.json").write_text(content)
    assert daemons.report(node.settings, "controller.json") == {}


def test_pins_of_another_layout_fail_the_check(node: Node) -> None:
    """A map that is missing is named, and so is one of another layout's directory."""
    node.pins.map("pods").unlink()
    (node.pins.root.parent / "v999").mkdir()
    found = {item.name: item for item in checks_install.install_checks(node.settings)}
    assert found["pins"].verdict == Verdict.FAIL
    assert "pods" in found["pins"].seen
    assert found["other layouts"].verdict == Verdict.WARN
    assert found["objects"].verdict == Verdict.FAIL


@pytest.mark.parametrize("there", [False, True], ids=["missing", "there"])
def test_missing_loopback_plugin_is_a_warning(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    """containerd runs it beside ours for every pod, and no pod starts without it."""
    plugin = tmp_path / "loopback"
    if there:
        plugin.touch(0o755)
    monkeypatch.setattr(cnifiles, "LOOPBACK", plugin)
    found = {item.name: item for item in checks_install.install_checks(node.settings)}["cni loopback"]
    assert found.verdict == (Verdict.OK if there else Verdict.WARN)
    assert ("containernetworking-plugins" in found.advice) != there


def test_advice_from_a_bundle_speaks_of_no_checkout(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to make or to copy: the DaemonSet's pod installs, and the CNI server gives the network."""
    monkeypatch.setattr(bundle, "root", lambda: str(tmp_path))
    monkeypatch.setattr(cnifiles, "LOOPBACK", tmp_path / "absent")
    monkeypatch.setattr(cnifiles, "EXECUTABLE", tmp_path / "absent")
    settings = dataclasses.replace(node.settings, cni_conf_dir=tmp_path)
    advice = {item.name: item.advice for item in checks_install.install_checks(settings)}
    for name in ("objects", "cni executable", "cni loopback"):
        assert advice[name] == "delete calico-ebpf's pod of this node: the next one installs it"
    assert advice["cni network"] == "the CNI server's log says why it has given none"


def test_network_is_looked_for_where_the_runtime_does(node: Node, tmp_path: Path) -> None:
    """The setting says where that is."""
    (tmp_path / "10-x.conf").write_text('{"name": "x", "type": "calico-ebpf"}')
    settings = dataclasses.replace(node.settings, cni_conf_dir=tmp_path)
    found = {item.name: item for item in checks_install.install_checks(settings)}["cni network"]
    assert (found.verdict, found.seen) == (Verdict.OK, f"{tmp_path / '10-x.conf'} is the first")


def test_kernel_checks_pass_where_these_tests_run(node: Node) -> None:
    """A kernel that runs these tests has what the programs need."""
    assert [item for item in checks.kernel_checks(node.settings) if item.verdict == Verdict.FAIL] == []


def test_kernel_without_xdp_is_a_warning_where_it_is_set(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """All works without: it does not fail, and nobody is told who has not asked for it."""
    monkeypatch.setattr(features, "probe", lambda: Features((), ("program type xdp",), {}))
    for xdp, expected in (("off", []), ("on", [("xdp features", Verdict.WARN, "program type xdp")])):
        found = checks.kernel_checks(dataclasses.replace(node.settings, xdp=xdp))
        assert [(item.name, item.verdict, item.seen) for item in found if "xdp" in item.name] == expected


def test_kernel_checks_without_bpftool_or_cgroup_fail(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot be made is a failure with its reason, and the others go on."""
    monkeypatch.setattr("bpf.bpftool.BPFTOOL", "/nonexistent/bpftool")
    monkeypatch.setattr(checks.node, "cgroup_root", lambda _: (_ for _ in ()).throw(BpfError("no cgroup2")))
    failed = {item.name for item in checks.kernel_checks(node.settings) if item.verdict == Verdict.FAIL}
    assert failed == {"bpftool", "features", "cgroup2"}


def test_doctor_exits_1_when_a_check_fails(run: Run, node: Node) -> None:
    """Objects that are missing fail it; JSON has checks and settings with their origins."""
    result = run("doctor", "--output", "json", "--flows-max", "4096")
    assert result.exit_code == 1
    told = json.loads(result.stdout)
    assert {item["name"]: item["verdict"] for item in told["checks"]}["objects"] == "fail"
    origins = {item["name"]: item["origin"] for item in told["settings"]}
    assert (origins["flows_max"], origins["bpffs"], origins["source"]) == (
        "--flows-max",
        "CALICO_EBPF_BPFFS",
        "default",
    )
    assert str(node.settings.objects_dir) in result.stdout


def test_doctor_page_lists_advice_for_what_is_not_well() -> None:
    """Only what is not well is in the list of what to do."""
    lines = doctor.render([Check("kernel", Verdict.OK, "6.1"), Check("jit", Verdict.WARN, "off", "turn it on")])
    assert lines[-2:] == ["To do:", "jit: turn it on"]


def test_uninstall_refuses_while_pods_are_there(run: Run, filled: Node) -> None:
    """A node that is not drained is left alone, unless forced."""
    result = run("uninstall", "--yes")
    assert result.exit_code == 1
    assert "1 pod addresses are in use" in result.output
    assert filled.pins.root.exists()


@pytest.mark.usefixtures("node")
def test_uninstall_asks_first(run: Run) -> None:
    """Without --yes and without an answer nothing is done."""
    result = run("uninstall")
    assert result.exit_code == 1
    assert "Go on?" in result.stderr


@pytest.mark.parametrize("name", ["controller.lock", "state/server.lock"])
def test_uninstall_takes_nothing_while_a_daemon_holds_its_lock(
    run: Run, node: Node, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It would put everything back; --force is no help, but stopping it is."""
    monkeypatch.setattr(uninstall, "WAIT_S", 0.0)
    for step in ("_cni", "_cgroup", "_devices", "_pins", "_sysctls", "_directories"):
        monkeypatch.setattr(uninstall, step, lambda *_: iter([uninstall.Step("taken")]))
    monkeypatch.setattr(uninstall.installed, "remove", lambda: iter([]))
    path = node.settings.run_dir / name
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = run("uninstall", "--yes", "--force")
    assert result.exit_code == 1
    assert f"it holds {path}; stop it" in result.stdout
    assert "taken" not in result.stdout


def test_uninstall_goes_on_after_a_failed_step(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails is reported; what comes after it is done all the same."""

    def failing(*_: object) -> Iterator[uninstall.Step]:
        raise OSError(5, "Input/output error")
        yield

    for name in ("_cni", "_cgroup", "_devices"):
        monkeypatch.setattr(uninstall, name, failing)
    monkeypatch.setattr(uninstall, "_sysctls", lambda _: [])
    steps = list(uninstall.uninstall(node.settings))
    assert [bool(step.failed) for step in steps] == [True, True, True, False, False, False]
    assert not node.pins.root.parent.exists()
    assert not node.settings.state_dir.exists()
    assert not node.settings.run_dir.exists()
