# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernels, each booted once: what a kernel has is found, every object loads, every packet test passes;
then real sockets and frames, and what this machine's kernel may not have.
"""

import os
import platform
import re
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bpf import bpftool, features, loader, node, sockdiag
from bpf.abi import Counter, FrontendFlag
from bpf.attach import XDP_PROGRAM
from bpf.settings import Settings
from bpf.tests import datapath as dp
from bpf.tests.kernel import Programs
from e2e.kernels import images, machine, packets
from e2e.kernels.guest import tools
from e2e.kernels.machine import Machine
from e2e.kernels.rootfs import TREE
from e2e.kernels.tests import scene
from e2e.kernels.tests.scene import FAR, HOST, NODE, POD, POD_BY_OTHER_VNI, ROUTED, SERVICE, TUNNELLED, Scene

# Booting, and what the verifier does with the programs, take up to a minute each when others use the machine.
pytestmark = [pytest.mark.root, pytest.mark.timeout(900)]

FAMILIES = pytest.mark.parametrize("version", [4, 6], ids=["ipv4", "ipv6"])
TCP, UDP = 6, 17
VPN_MTU = 1420


class Guest(NamedTuple):
    """A kernel that runs, with the programs loaded, and what the packet tests have said."""

    machine: Machine
    version: tuple[int, int]
    programs: Programs
    end: ExitStack
    packets: "subprocess.CompletedProcess[str] | None"


@pytest.fixture(scope="module")
def _guests(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Guest]]:
    """The guests that are asked for: two at a time boot and run the packet tests, while others wait or are tested."""
    if platform.machine() != "x86_64":
        pytest.skip("the kernels are Debian's for amd64")
    items = [item for item in request.session.items if item.path == Path(__file__)]
    wanted = dict.fromkeys(item.callspec.params["guest"] for item in items)
    tested = {item.callspec.params["guest"] for item in items if item.originalname == test_packets.__name__}
    with ThreadPoolExecutor(2) as pool:
        futures = {name: pool.submit(_boot, name, name in tested) for name in wanted}
        try:
            yield lambda name: futures[name].result()
        finally:
            for future in futures.values():
                if not future.cancel() and not future.exception():
                    future.result().end.close()


@pytest.fixture(scope="module", params=images.SUITES)
def guest(request: pytest.FixtureRequest, _guests: Callable[[str], Guest]) -> Iterator[Guest]:
    guest = _guests(request.param)
    yield guest
    guest.end.close()


def _boot(name: str, test_packets: bool) -> Guest:
    with ExitStack() as end:
        booted = end.enter_context(machine.booted(images.image(name)))
        version, _ = booted(features.kernel)
        programs = booted(tools.load_once, *dp.load_arguments(version))
        tested = packets.run(booted) if test_packets else None
        return Guest(booted, version, programs, end.pop_all(), tested)


@pytest.fixture(scope="module")
def found(guest: Guest) -> Mapping[str, Any]:
    """What bpftool finds of the kernel's features, with hundreds of small programs."""
    return guest.machine(bpftool.features)


@pytest.fixture(scope="module")
def _built(guest: Guest) -> Scene:
    return scene.build(guest.machine, guest.programs)


@pytest.fixture
def stage(_built: Scene) -> Scene:
    """The scene of this kernel, its maps as at first."""
    _built.populate()
    return _built


def test_every_program_loads(guest: Guest) -> None:
    """All hooks have their program, and the sweep has."""
    links = {f"{way}_{there}" for there in ("pod", "netdev", "l3", "overlay") for way in ("from", "to")}
    hooks = links | {"from_other"}
    sockets = {f"{call}{version}" for call in ("connect", "sendmsg", "recvmsg", "getpeername") for version in (4, 6)}
    assert set(guest.programs.programs) == hooks | sockets | {"sweep", XDP_PROGRAM}


def test_features_are_found(guest: Guest, found: Mapping[str, Any]) -> None:
    """Nothing that the programs need is missing; the coarse clock is used from 5.11 on; sockets are closed on all."""
    assert features.missing(found) + features.missing_xdp(found) == []
    assert guest.machine(sockdiag.closes)
    assert guest.machine(node.config, Settings()).coarse_clock == (guest.version >= (5, 11))


def test_table_in_the_documents_is_right(
    guest: Guest, found: Mapping[str, Any], request: pytest.FixtureRequest
) -> None:
    """ARCHITECTURE.md says of each kernel what it has."""
    helpers = found["helpers"]["sched_cls_available_helpers"]
    has = {name: name in helpers for name in features.LATER_HELPERS}
    has[str(loader.KERNEL_BTF)] = guest.machine(os.path.exists, str(loader.KERNEL_BTF))
    has["SO_NETNS_COOKIE"] = guest.machine(loader.netns_cookie) != 0
    text = (TREE / "ARCHITECTURE.md").read_text().partition("\n## Kernels\n")[2]
    header, _, *rows = (line for line in text.partition("\n## ")[0].splitlines() if line.startswith("|"))
    column = [cell.strip() for cell in header.split("|")].index(request.node.callspec.params["guest"])
    told = {row.split("`")[1]: row.split("|")[column].strip() == "yes" for row in rows}
    assert told == has


def test_packets(guest: Guest) -> None:
    """Every packet test passes, and none is left out."""
    process = guest.packets
    assert process
    assert process.returncode == 0, process.stdout
    assert re.findall(r"^SKIPPED.*: (.*)$", process.stdout, re.MULTILINE) == []


@FAMILIES
def test_sockets_believe_in_the_service(guest: Guest, stage: Scene, version: int) -> None:
    """TCP and UDP reach the backend, and answers and getpeername() are the Service's."""
    for protocol in (TCP, UDP):
        stage.datapath.service(SERVICE[version], 80, protocol, [(HOST[version], 8080)], number=protocol)
    guest.machine(tools.run, tools.CLIENT, "believe", SERVICE[version], "80", HOST[version], "8080")


@FAMILIES
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_overlay_carries_both_ways(stage: Scene, version: int, protocol: str) -> None:
    """A far pod's request comes out of the tunnel into the pod, and the answer goes back into it."""
    with stage.serving("pod", protocol, POD[version]):
        assert stage.ask("far", protocol, POD[version]) == TUNNELLED[version]
    assert stage.datapath.counter(Counter.FLOWS_CREATED) == 1


@FAMILIES
@pytest.mark.parametrize("sender", ["stranger", "far"])
def test_frames_of_no_node_are_dropped(stage: Scene, version: int, sender: str) -> None:
    """What a stranger sends in the cluster's tunnel, or a node in another one, is counted, and arrives nowhere."""
    address = POD[version] if sender == "stranger" else POD_BY_OTHER_VNI[version]
    before = stage.strangers_dropped()
    with stage.serving("pod", "udp", address):
        assert stage.ask_in_vain(sender, "udp", address) == ""
    assert stage.strangers_dropped() > before
    assert stage.datapath.counter(Counter.FLOWS_CREATED) == 0


@FAMILIES
def test_sctp_reaches_its_destination_and_a_service(stage: Scene, version: int) -> None:
    """By real sockets, on which both ends check the sum: straight, and by a Service whose backend has another port."""
    stage.datapath.service(SERVICE[version], 80, socket.IPPROTO_SCTP, [(ROUTED[version], 8080)])
    with stage.serving("far", "sctp", ROUTED[version]):
        assert stage.ask("pod", "sctp", ROUTED[version], source=POD[version]) == POD[version]
    with stage.serving("far", "sctp", ROUTED[version]):
        assert stage.ask("pod", "sctp", SERVICE[version], 80, POD[version]) == POD[version]
    with stage.serving("far", "sctp", ROUTED[version]):
        assert stage.ask("", "sctp", SERVICE[version], 80) == NODE[version]
    assert stage.datapath.counter(Counter.FLOWS_CREATED) == 3


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_refusal_of_what_is_left_to_a_device_is_heard(guest: Guest, stage: Scene, protocol: str) -> None:
    """Who asks has left its checksum unfinished, and the node's device has the kernel finish what still is."""
    stage.datapath.service(NODE[6], 80, {"tcp": TCP, "udp": UDP}[protocol], [], flags=FrontendFlag(0))
    guest.machine(tools.switch_offload, scene.UNDERLAY, "tx=off")
    try:
        with pytest.raises(machine.CallError, match="Connection refused"):
            guest.machine(
                tools.run, "ip", "netns", "exec", "far", tools.CLIENT, "ask", protocol, NODE[6], "80", "2"
            )  # fmt: skip
    finally:
        guest.machine(tools.switch_offload, scene.UNDERLAY, "tx=on")
    assert stage.datapath.counter(Counter.REFUSALS) == 1


@FAMILIES
def test_vlan_is_met_at_its_own_device(guest: Guest, stage: Scene, version: int) -> None:
    """With programs at that and at the device below, a request reaches the pod once, and its answer the client; what is
    for the host itself likewise."""
    for namespace, host in (("", 1), ("far", 2)):
        guest.machine(
            tools.ip, namespace, f"link add link {scene.UNDERLAY} name under.7 type vlan id 7\nlink set under.7 up\n"
            f"address add 198.18.7.{host}/24 dev under.7\naddress add 2001:db8:7::{host}/64 dev under.7 nodad\n"
        )  # fmt: skip
    programs = {hook: guest.programs.programs[hook] for hook in ("from_netdev", "to_netdev")}
    guest.machine(tools.attach_device, "under.7", programs)
    address, client = ("198.18.7.1", "198.18.7.2") if version == 4 else ("2001:db8:7::1", "2001:db8:7::2")
    try:
        stage.datapath.node(address, own=True)
        for protocol, number in (("tcp", TCP), ("udp", UDP)):
            stage.datapath.service(address, 80, number, [(POD[version], 8080)], number=number, flags=FrontendFlag(0))
            with stage.serving("pod", protocol, POD[version]):
                assert stage.ask("far", protocol, address, 80) == client
            with stage.serving("", protocol, address, 8081):
                assert stage.ask("far", protocol, address, 8081) == client
        assert stage.datapath.counter(Counter.FLOWS_CREATED) == 2
    finally:
        for namespace in ("", "far"):
            guest.machine(tools.ip, namespace, "link del under.7\n")


@FAMILIES
def test_clients_come_by_a_device_without_link_layer(guest: Guest, stage: Scene, version: int) -> None:
    """Services of pods and of host processes are met there, by TCP and by datagrams that fill its MTU, and see the
    client; what else the host sends there arrives as well."""
    here, client, external = (
        ("198.18.9.1", "198.18.9.2", "198.51.100.200") if version == 4 else
        ("2001:db8:9::1", "2001:db8:9::2", "2001:db8:200::200")
    )  # fmt: skip
    for namespace in ("", "far"):
        guest.machine(tools.ip, namespace, f"tuntap add tun0 mode tun\nlink set tun0 up mtu {VPN_MTU}\n")
    guest.machine(tools.join, "tun0", "far", "tun0")
    prefix = "/24" if version == 4 else "/64 nodad"
    for namespace, address in (("", here), ("far", client)):
        guest.machine(tools.ip, namespace, f"address add dev tun0 {address}{prefix}\n")
    guest.machine(tools.ip, "far", f"route add {external} dev tun0\n")
    guest.machine(tools.attach_device, "tun0", {hook: guest.programs.programs[hook] for hook in ("from_l3", "to_l3")})
    try:
        stage.datapath.device(guest.machine(tools.ifindex, "tun0"), mtu=VPN_MTU, other=True)
        full = VPN_MTU - (28 if version == 4 else 48)
        for number, (place, backend) in enumerate((("pod", POD[version]), ("", NODE[version]))):
            for protocol, code in (("tcp", TCP), ("udp", UDP)):
                flags, service = FrontendFlag.EXTERNAL, 10 * number + code
                stage.datapath.service(external, 80 + number, code, [(backend, 8080)], service, flags=flags)
                with stage.serving(place, protocol, backend):
                    size = full if protocol == "udp" else 1
                    assert stage.ask("far", protocol, external, 80 + number, size=size) == client
        assert stage.datapath.counter(Counter.FLOWS_CREATED) == 4
        with stage.serving("far", "udp", client):
            assert stage.ask("", "udp", client, size=full) == here
    finally:
        for namespace in ("", "far"):
            guest.machine(tools.ip, namespace, "link del tun0\n")


def test_ipip_to_the_node_is_the_stacks(guest: Guest, stage: Scene) -> None:
    """A tunnel between hosts that is not ours works through our hooks."""
    guest.machine(
        tools.ip, "", f"tunnel add ipip1 mode ipip local {NODE[4]} remote {FAR[4]}\n"
        "link set ipip1 up\naddress add 198.51.100.129/31 dev ipip1\n"
    )  # fmt: skip
    guest.machine(
        tools.ip, "far", f"tunnel add ipip1 mode ipip local {FAR[4]} remote {NODE[4]}\n"
        "link set ipip1 up\naddress add 198.51.100.128/31 dev ipip1\n"
    )  # fmt: skip
    with stage.serving("", "udp", "198.51.100.129"):
        assert stage.ask("far", "udp", "198.51.100.129") == "198.51.100.128"
    assert stage.datapath.counter(Counter.FLOWS_CREATED) == 0


@FAMILIES
def test_fq_beside_our_hooks(guest: Guest, stage: Scene, version: int) -> None:
    """With fq on the underlay, plain routes and the overlay work, and attaching again does."""
    guest.machine(tools.run, "tc", "qdisc", "replace", "dev", scene.UNDERLAY, "root", "fq")
    programs = {hook: guest.programs.programs[hook] for hook in ("from_netdev", "to_netdev")}
    guest.machine(tools.attach_device, scene.UNDERLAY, programs)
    queues = guest.machine(tools.run, "tc", "qdisc", "show", "dev", scene.UNDERLAY)
    assert re.search(r"qdisc fq .* root", queues), queues
    assert "qdisc clsact" in queues
    for there in (ROUTED, TUNNELLED):
        with stage.serving("far", "tcp", there[version]):
            assert stage.ask("pod", "tcp", there[version], source=POD[version]) == POD[version]


def test_ipvs_beside_our_services(guest: Guest, stage: Scene) -> None:
    """A Service of ours goes to our backend, from a pod and from the host, though IPVS has the same one for another;
    and one of IPVS's own works as before."""
    others = "10.96.0.11"
    guest.machine(tools.ip, "", f"address replace {SERVICE[4]}/32 dev lo\naddress replace {others}/32 dev lo\n")
    guest.machine(tools.add_ipvs, SERVICE[4], 80, "10.244.2.99", 8080)  # nobody
    guest.machine(tools.add_ipvs, others, 80, ROUTED[4], 8080)
    stage.datapath.service(SERVICE[4], 80, TCP, [(ROUTED[4], 8080)])
    with stage.serving("far", "tcp", ROUTED[4]):
        assert stage.ask("pod", "tcp", SERVICE[4], 80, POD[4]) == POD[4]
        assert stage.ask("", "tcp", SERVICE[4], 80) == NODE[4]
        assert stage.ask("", "tcp", others, 80, NODE[4]) == NODE[4]
