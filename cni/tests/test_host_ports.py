# SPDX-License-Identifier: Apache-2.0
"""Host ports through the verbs on real namespaces: what stands in the Service maps, and whose it is."""

import itertools
import json
import shutil
import signal
from typing import Any

import pytest

from bpf.abi import Frontend, FrontendFlag, FrontendKey
from bpf.address import packed
from cni.link import host_name
from cni.tests.conftest import CLEAN, Node, wait_for
from cni.tests.test_verbs import KILLED, added, config, ranges, refused

pytestmark = pytest.mark.root

TCP, UDP = 6, 17
POD = ("10.244.0.2", "fd00:10:244::2")
SERVICES = FrontendKey(packed("0.0.0.0"), 8053, UDP).pack(), Frontend(7, 0, 0, 0, FrontendFlag.EXTERNAL, 0).pack()


def asked(*mappings: tuple[str, int, str, int]) -> dict[str, Any]:
    names = ("hostIP", "hostPort", "protocol", "containerPort")
    return {"portMappings": [dict(zip(names, mapping, strict=True)) for mapping in mappings]}


DNS = asked(("", 8053, "udp", 53))
MET = {("0.0.0.0", 8053, UDP): (POD[0], 53), ("::", 8053, UDP): (POD[1], 53)}


@pytest.fixture
def known(node: Node) -> Node:
    """A node with its CNI server, whose addresses the controller has written."""
    node.know_own_address()
    return node


def start(node: Node) -> None:
    node.start_server()
    node.know_own_address()


def remove(node: Node, pod: str, **changes: Any) -> None:
    assert node.call("DEL", pod, config(**changes)) == (0, {})


def test_add_opens_host_ports_and_del_closes_them(either_node: Node) -> None:
    """Several addresses and protocols of one port, both families; a second DEL changes nothing."""
    node, wanted = either_node, asked(("", 8053, "udp", 53), ("192.0.2.10", 8053, "tcp", 53), ("::", 80, "TCP", 8080))
    with node.pods("first", "a"):
        added(node, "first", ipam=ranges("10.244.9.0/24"))  # loads the data plane
        remove(node, "first", ipam=ranges("10.244.9.0/24"))
        node.know_own_address()
        result = added(node, "a", runtimeConfig=wanted)
        specific = {("192.0.2.10", 8053, TCP): (POD[0], 53), ("::", 80, TCP): (POD[1], 8080)}
        assert node.host_ports() == {**MET, **specific}
        assert node.call("CHECK", "a", config(runtimeConfig=wanted, prevResult=result)) == (0, {})
        remove(node, "a", runtimeConfig=wanted)
        assert node.leftovers() == CLEAN
        remove(node, "a", runtimeConfig=wanted)


@pytest.mark.parametrize("runtime", [DNS, {}], ids=["mappings told", "mappings not told"])
def test_del_with_its_record_needs_no_mappings(known: Node, runtime: dict[str, Any]) -> None:
    """What was opened is in the record."""
    with known.pods("a"):
        added(known, "a", runtimeConfig=DNS)
        remove(known, "a", runtimeConfig=runtime)
        assert known.leftovers() == CLEAN


def test_del_after_everything_was_forgotten_closes_what_it_is_told(known: Node) -> None:
    """Records are gone, the runtime still tells the mappings."""
    with known.pods("a"):
        added(known, "a", runtimeConfig=DNS)
        shutil.rmtree(known.run_dir / "state/links")
        remove(known, "a", runtimeConfig=DNS)
        assert known.leftovers() == CLEAN


def test_add_of_a_mapping_that_cannot_be_is_refused_whole(known: Node) -> None:
    """Nothing stays; and a DEL with such a mapping succeeds."""
    cases = [
        (asked(("", 0, "tcp", 80)), "hostPort"),
        (asked(("2001:db8::10", 80, "tcp", 80)), "no address of that family"),
    ]
    ipam = ranges("10.244.9.0/24")
    with known.pods("a"):
        for wanted, said in cases:
            refused(known.call("ADD", "a", config(runtimeConfig=wanted, ipam=ipam)), 7, said)
            assert known.leftovers() == CLEAN
            remove(known, "a", runtimeConfig=wanted, ipam=ipam)


def test_add_before_the_nodes_addresses_are_known_says_try_again(node: Node) -> None:
    """Its host ports would be met nowhere."""
    with node.pods("a"):
        refused(node.call("ADD", "a", config(runtimeConfig=DNS)), 11, "addresses are not known yet")
        assert node.leftovers() == CLEAN


def test_newer_pod_has_the_port_and_the_late_del_of_the_older_spares_it(known: Node) -> None:
    """A pod that is replaced may be removed after its successor was made."""
    with known.pods("old", "new"):
        before = added(known, "old", runtimeConfig=DNS)
        result = added(known, "new", runtimeConfig=DNS)
        met = {("0.0.0.0", 8053, UDP): ("10.244.0.3", 53), ("::", 8053, UDP): ("fd00:10:244::3", 53)}
        assert known.host_ports() == met
        assert len(known.entries("backends")) == len(known.entries("slots")) == 2
        refused(known.call("CHECK", "old", config(runtimeConfig=DNS, prevResult=before)), 103, "host port 8053/udp")
        for _ in range(2):
            remove(known, "old", runtimeConfig=DNS, prevResult=before)
        assert known.host_ports() == met
        assert known.call("CHECK", "new", config(runtimeConfig=DNS, prevResult=result)) == (0, {})


def test_next_pod_with_the_address_and_the_port_has_another_id(known: Node) -> None:
    """A UDP flow that knows the one before asks for its backend, and does not find it."""
    ipam = ranges("10.244.7.0/30")
    with known.pods("a", "b"):
        added(known, "a", runtimeConfig=DNS, ipam=ipam)
        first = set(known.entries("backends").items())
        remove(known, "a", runtimeConfig=DNS, ipam=ipam)
        added(known, "b", runtimeConfig=DNS, ipam=ipam)
        second = set(known.entries("backends").items())
    assert {value for _, value in first} == {value for _, value in second}
    assert not {key for key, _ in first} & {key for key, _ in second}


def test_service_keeps_its_port_and_the_pod_has_it_when_the_service_is_gone(known: Node) -> None:
    """Whichever came first: what the controller has written is not touched, and its deletion is followed."""
    key, value = SERVICES
    with known.pods("a", "b"):
        known.write("frontends", key, value)
        result = added(known, "a", runtimeConfig=DNS)
        assert known.entries("frontends")[key] == value
        refused(known.call("CHECK", "a", config(runtimeConfig=DNS, prevResult=result)), 103, "a Service is met")
        known.write("frontends", key, None)
        wait_for(lambda: known.host_ports() == MET, known.log)
        known.write("frontends", key, value)
        remove(known, "a", runtimeConfig=DNS)
        assert known.entries("frontends") == {key: value}
        assert not known.entries("backends")
        assert not known.entries("slots")


def test_host_ports_come_back_after_the_maps_were_lost(known: Node) -> None:
    """With the pods' own entries: the records tell of them."""
    node = known
    with node.pods("a"):
        added(node, "a", runtimeConfig=DNS)
        assert node.stop_server() == 0
        shutil.rmtree(node.pins.root.parent)
        start(node)
        wait_for(lambda: node.host_ports() == MET, node.log)
        remove(node, "a", runtimeConfig=DNS)
        assert node.leftovers() == CLEAN


def test_restart_of_the_server_leaves_host_ports_as_they_are(known: Node) -> None:
    """Also where the records are gone: pods that live keep them."""
    node = known
    with node.pods("a"):
        added(node, "a", runtimeConfig=DNS)
        before = node.entries("frontends")
        for _ in range(2):
            assert node.stop_server() == 0
            start(node)
            assert node.entries("frontends") == before
            shutil.rmtree(node.run_dir / "state/links")
            (node.run_dir / "state/links").mkdir()


def test_host_port_of_nobody_goes_when_its_address_becomes_another_pods(known: Node) -> None:
    """Records and reservations were lost, and the address is given out anew: nothing leads to the new pod."""
    with known.pods("lost", "new"):
        added(known, "lost", runtimeConfig=DNS)
        shutil.rmtree(known.run_dir / "state/links")
        shutil.rmtree(known.networks)
        known.ip("link", "delete", host_name("lost", "eth0"))
        result = added(known, "new")
        assert result["ips"][0]["address"] == "10.244.0.2/32"
        assert known.host_ports() == {}
        assert not known.entries("backends")


def test_server_that_starts_removes_host_ports_of_pods_that_are_gone(known: Node) -> None:
    """Nobody said DEL with what would have told of them."""
    node = known
    with node.pods("a"):
        added(node, "a", runtimeConfig=DNS)
        shutil.rmtree(node.run_dir / "state/links")
        remove(node, "a")
        assert node.host_ports() == MET
        assert node.stop_server() == 0
        start(node)
        assert node.host_ports() == {}


def test_add_with_full_service_maps_says_which_settings(bare_node: Node) -> None:
    """The pod that does not fit is refused whole."""
    node = bare_node
    node.environment["CALICO_EBPF_FRONTENDS_MAX"] = "1024"
    start(node)
    for number in range(2048):
        try:
            node.write("frontends", FrontendKey(packed("192.0.2.9"), number + 1, TCP).pack(), SERVICES[1])
        except OSError:
            break
    with node.pods("a"):
        reply = node.call("ADD", "a", config(runtimeConfig=DNS))
        refused(reply, 104, "host port 8053/udp")
        assert "frontends_max" in reply.data["details"]
        assert not node.entries("backends")
        assert not node.entries("pods")


def test_add_killed_at_each_step_leaves_nothing_after_del(bare_node: Node) -> None:
    """Whatever a killed process had opened, DEL closes."""
    node, wanted = bare_node, config(runtimeConfig=DNS, ipam=ranges("10.244.7.0/24"))
    (node.directory / "killed.py").write_text(KILLED)
    with node.pods("a"):
        added(node, "a")  # loads the data plane
        node.call("DEL", "a", config())
        node.know_own_address()
        whole = (node.directory / "oneshot").read_text()
        for number in itertools.count(1):
            script = whole.replace("-I -m cni.oneshot", f"-I {node.directory}/killed.py")
            (node.directory / "oneshot").write_text(script)
            process = node.launch("ADD", "a", {"KILL_AT": str(number)})
            process.communicate(json.dumps(wanted), timeout=60)
            (node.directory / "oneshot").write_text(whole)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            assert node.call("DEL", "a", config(ipam=wanted["ipam"])) == (0, {})
            assert node.leftovers() == CLEAN
        assert number > 18
