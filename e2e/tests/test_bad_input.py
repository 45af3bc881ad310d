# SPDX-License-Identifier: Apache-2.0
"""What a node makes of bad input, through its real executable and daemons: a clear error, and nothing lost."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf.node import map_sizes
from bpf.pins import Pins
from bpf.settings import Settings
from e2e.lab import addresses, runtime, source
from e2e.lab.cluster import NODES, Lab
from e2e.lab.node import CNI_SERVER, COMMAND, CONTROLLER, PINS, PROGRAM, Node
from e2e.lab.runtime import CniError, Pod
from e2e.lab.source import DirectorySource
from e2e.tests.stage import WEB, Stage, ask, names, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

GOOD = {"cniVersion": "1.0.0", "name": "calico-ebpf", "type": "calico-ebpf", "ipam": {"type": "calico-ebpf"}}
TINY = {"type": "calico-ebpf", "ranges": [[{"subnet": "10.244.200.0/30"}]]}


@pytest.fixture(params=["warm", "one-shot"])
def node(request: pytest.FixtureRequest, directory_stage: Stage) -> Iterator[Node]:
    """A node whose CNI calls are answered by the warm server, and then by one-shot processes."""
    node = directory_stage.node(2)
    if request.param == "one-shot":
        node.kill(CNI_SERVER)
    yield node
    if request.param == "one-shot":
        node.start(CNI_SERVER)
        node.wait_ready()


@pytest.mark.parametrize(
    ("config", "code", "told"),
    [
        ("", 6, "network configuration"),
        ("{", 6, "network configuration"),
        ("[]", 6, "network configuration"),
        (GOOD | {"cniVersion": "9.9.9"}, 1, "9.9.9"),
        (GOOD | {"name": ""}, 7, "name"),
        (GOOD | {"ipam": {"type": "no-such-plugin"}}, None, "no-such-plugin"),
        (GOOD | {"ipam": {"type": "calico-ebpf", "ranges": [[{"subnet": "10.244.200.0"}]]}}, 7, "10.244.200.0"),
    ],
    ids=["empty", "cut short", "a list", "unknown version", "no name", "unknown IPAM", "no prefix"],
)
def test_cni_add_bad_configuration_is_an_error_object(node: Node, config: Any, code: int | None, told: str) -> None:
    """The answer on standard output is the spec's error object, with its code, and it names what is wrong."""
    pod = _sandbox(node, "bad")
    try:
        with pytest.raises(CniError) as caught:
            runtime.call("ADD", pod, config)
        answer = caught.value.answer
        assert code in (None, answer["code"]), answer
        assert told in answer["msg"] + answer.get("details", ""), answer
        assert _pods(node) == _pods_of(node)
    finally:
        _end(pod)


def test_cni_add_without_namespace_is_an_error(node: Node) -> None:
    """A sandbox that is not there has error 3, and takes no address."""
    pod = Pod("nowhere", node.space)
    with pytest.raises(CniError) as caught:
        runtime.call("ADD", pod, GOOD)
    assert caught.value.answer["code"] == 3
    assert not _leases(node, pod)


def test_cni_del_of_what_never_was_succeeds(node: Node) -> None:
    """DEL succeeds for an unknown container, with or without its namespace, and twice in a row."""
    pod = Pod("never", node.space)
    for _ in range(2):
        runtime.call("DEL", pod, GOOD)
    runtime.call("DEL", pod, GOOD, CNI_NETNS="")


def test_cni_add_twice_is_an_error_and_spoils_nothing(node: Node) -> None:
    """A second ADD of the same container and interface fails; the pod goes on working, and DEL cleans all of it."""
    pod = runtime.create(node.space, "twice")
    pod.serve()
    try:
        with pytest.raises(CniError):
            runtime.call("ADD", pod, GOOD)
        assert names(ask(node.space, "tcp", pod.address.v4, runtime.PORT)) == {"twice"}
    finally:
        runtime.remove(pod)
    assert not _leases(node, pod)


def test_cni_add_range_exhausted_is_an_error_until_an_address_is_free(node: Node) -> None:
    """A full range says so; an address that is given back is given again."""
    config = GOOD | {"name": "tiny", "ipam": TINY}
    pods = [_sandbox(node, f"tiny-{number}") for number in range(3)]
    try:
        refused = [pod for pod in pods if not _added(pod, config)]
        assert 0 < len(refused) < len(pods)
        with pytest.raises(CniError, match=r"10\.244\.200"):
            runtime.call("ADD", refused[0], config)
        runtime.call("DEL", pods[0], config)
        runtime.call("ADD", refused[0], config)
    finally:
        for pod in pods:
            runtime.call("DEL", pod, config)
            _end(pod)


def test_manifest_broken_is_named_and_the_good_ones_apply(directory_stage: Stage) -> None:
    """A file that does not parse is named with its line in the log; others go on applying, before and after it."""
    stage, directory = directory_stage, directory_stage.source
    assert isinstance(directory, DirectorySource)
    stage.expose("beside", addresses.service(50), ["web-1"])
    directory.write("broken", "kind: Service\nmetadata: [unclosed\n")
    try:
        wait(lambda: ("broken.yaml", 3) in _problems(stage.node(1)))
        stage.expose("beside", addresses.service(50), ["web-2"])
        wait(lambda: names(ask(stage.place("ask-1"), "tcp", addresses.service(50).v4, count=5)) == {"web-2"})
        assert names(ask(stage.place("ask-1"), "tcp", WEB.v4, count=20)) == {"web-1", "web-2"}
    finally:
        directory.delete("broken")
        directory.delete("beside")


def test_manifest_that_breaks_keeps_its_last_good_content(directory_stage: Stage) -> None:
    """A Service's file spoilt by an edit takes nothing away from those who use the Service."""
    stage, directory = directory_stage, directory_stage.source
    assert isinstance(directory, DirectorySource)
    stage.expose("spoilt", addresses.service(51), ["web-1"])
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", addresses.service(51).v4)) == {"web-1"})
    directory.write("spoilt", "apiVersion: v1\nkind: Service\nmetadata: {name: spoilt\n")
    wait(lambda: ("spoilt.yaml", 4) in _problems(stage.node(1)))
    assert names(ask(stage.place("ask-1"), "tcp", addresses.service(51).v4, count=5)) == {"web-1"}
    directory.delete("spoilt")
    wait(lambda: "web-1" not in names(ask(stage.place("ask-1"), "tcp", addresses.service(51).v4)))


@pytest.mark.parametrize("daemon", [CNI_SERVER, CONTROLLER])
def test_daemon_unknown_setting_is_named_with_file_and_line(fresh: Lab, daemon: str) -> None:
    """The daemon does not start, and says which line of which file."""
    node = _bare_node(fresh, {"flows_maximum": 5})
    process = node.space.run(COMMAND, daemon, check=False)
    assert process.returncode == 1
    assert "/etc/calico-ebpf/config.yaml:" in process.stderr
    assert "flows_maximum" in process.stderr


@pytest.mark.parametrize("daemon", [CNI_SERVER, CONTROLLER])
def test_daemon_pinned_map_of_another_layout_is_named_and_kept(fresh: Lab, daemon: str) -> None:
    """A map that this version did not make is neither used nor removed; the message says what to do."""
    node = _bare_node(fresh, {})
    layout = Pins(Path("/sys/fs/bpf")).sized(map_sizes(Settings()))
    pin = str(layout.map("pods"))
    node.space.run("mkdir", "-p", str(Path(pin).parent))
    node.space.run(*f"bpftool map create {pin} type hash key 8 value 8 entries 16 name pods".split())
    process = node.space.run(COMMAND, daemon, check=False)
    assert process.returncode == 1
    assert pin in process.stderr
    assert "uninstall" in process.stderr
    assert node.space.path(pin).exists()


def test_daemon_without_bpftool_says_so(fresh: Lab, tmp_path: Path) -> None:
    """bpftool missing is one clear line with the name of the package."""
    node = _bare_node(fresh, {})
    for name in ("ip", "sh"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    command = ("env", f"PATH={tmp_path}", str(PROGRAM), CONTROLLER)
    process = node.space.run("timeout", "10", *command, check=False)
    assert "bpftool" in process.stderr + process.stdout
    assert "not installed" in process.stderr + process.stdout


def test_map_full_keeps_what_is_in_it_and_says_so(fresh: Lab) -> None:
    """More frontends than fit: an error names the map, and what was in force stays so."""
    services = fresh.directory_source()
    fresh.start_nodes(1, services, {"frontends_max": 16})
    node = fresh.nodes[0]
    server, client = node.add_pod("web"), node.add_pod("ask", serve=False)
    backends = [(server.address, node.name)]
    first = addresses.service(10)
    services.apply(
        "first", [source.service("first", first, 80, runtime.PORT), *source.endpoints("first", backends, 8080)]
    )
    wait(lambda: names(ask(client.space, "tcp", first.v4)) == {"web"})
    many = [source.service(f"more-{number}", addresses.service(100 + number), 80, 8080) for number in range(20)]
    services.apply("many", many)
    wait(lambda: "frontends" in node.tail(CONTROLLER) and "full" in node.tail(CONTROLLER))
    assert names(ask(client.space, "tcp", first.v4, count=5)) == {"web"}
    services.delete("many")
    second = addresses.service(11)
    services.apply("second", [source.service("second", second, 80, 8080), *source.endpoints("second", backends, 8080)])
    wait(lambda: names(ask(client.space, "tcp", second.v4)) == {"web"})


def test_api_server_away_services_go_on_and_changes_follow_when_it_is_back(api_stage: Stage) -> None:
    """While the API server does not answer, Services work and a controller that starts anew does no harm."""
    if "KUBECONFIG" in os.environ:
        pytest.skip("the API server of KUBECONFIG is not this test's to stop")
    stage, service = api_stage, addresses.service(52)
    stage.expose("outage", service, ["web-1"])
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", service.v4)) == {"web-1"})
    stage.lab.api.pause()
    try:
        stage.node(1).kill(CONTROLLER)
        stage.node(1).start(CONTROLLER)
        assert names(ask(stage.place("ask-1"), "tcp", service.v4, count=5)) == {"web-1"}
        pod = stage.node(1).add_pod("during-outage")
        assert names(ask(stage.place("ask-2"), "tcp", pod.address.v4, runtime.PORT)) == {"during-outage"}
        stage.node(1).remove_pod("during-outage")
        assert names(ask(stage.place("node1"), "tcp", WEB.v4, count=20)) == {"web-1", "web-2"}
    finally:
        stage.lab.api.resume()
    stage.expose("outage", service, ["web-2"])
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", service.v4, count=5)) == {"web-2"}, timeout_s=40)
    stage.source.delete("outage")
    stage.node(1).wait_ready()


def test_api_server_refusing_permission_is_named(fresh: Lab) -> None:
    """With a token that may list nothing, the controller says what it may not do, and programs nothing."""
    services = fresh.api_source()
    kubeconfig = fresh.directory / "api" / "nobody"
    config = json.loads(services.kubeconfig.read_text())
    config["users"][0]["user"]["token"] = fresh.api.powerless
    kubeconfig.write_text(json.dumps(config))
    node = fresh.add_node()
    services.apply(NODES, [source.node(node.name, node.index, node.address)])
    node.install({**services.settings(), "kubeconfig": str(kubeconfig)})
    node.start(CONTROLLER)
    wait(lambda: "forbidden" in node.log(CONTROLLER).read_text().lower(), timeout_s=20)


def _sandbox(node: Node, name: str) -> Pod:
    """A pod's namespace, not yet on the network."""
    pod = Pod(name, node.space)
    node.space.run("ip", "netns", "add", pod.netns)
    return pod


def _added(pod: Pod, config: dict[str, Any]) -> bool:
    try:
        runtime.call("ADD", pod, config)
    except CniError:
        return False
    return True


def _end(pod: Pod) -> None:
    runtime.call("DEL", pod, GOOD)
    pod.node.run("ip", "netns", "delete", pod.netns)


def _leases(node: Node, pod: Pod) -> str:
    """Files that still name a pod's container."""
    return node.space.run("grep", "-rl", pod.container_id, "/var/lib/cni", check=False).stdout


def _pods(node: Node) -> int:
    """How many addresses the map of pods has."""
    pin = f"{PINS}/maps/pods"
    return len(json.loads(node.space.run("bpftool", "-j", "map", "dump", "pinned", pin).stdout))


def _pods_of(node: Node) -> int:
    """How many it should have."""
    return 2 * len(node.pods)


def _problems(node: Node) -> set[tuple[str, int]]:
    """The files and lines of which the controller has complained so far."""
    events = [json.loads(line) for line in node.log(CONTROLLER).read_text().splitlines() if line.startswith("{")]
    return {(event["file"], event["line"]) for event in events if event["event"] == "problem" and "file" in event}


def _bare_node(lab: Lab, settings: dict[str, object]) -> Node:
    """A node with our files and none of our daemons."""
    node = lab.add_node()
    node.install({**lab.directory_source().settings(), **settings})
    return node
