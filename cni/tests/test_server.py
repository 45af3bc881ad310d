# SPDX-License-Identifier: Apache-2.0
"""The server under load, killed, stopped, beside another one, and after a reload of the programs."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from bpf import syscall
from bpf.abi import DropCount, DropKey, DropReason, Flow, Tuple, Way, WayKind
from bpf.address import packed
from cni.errors import TryAgainError
from cni.link import host_name
from cni.tests.conftest import CLEAN, ROOT, Node, wait_for
from cni.tests.test_verbs import CONFIG, added, config, hooks, ping

pytestmark = pytest.mark.root

PARALLEL = 30
# An IPAM plugin that says that it was asked, and then takes its time.
SLOW = """#!/bin/sh
if [ "$CNI_COMMAND" = ADD ]; then touch {mark}; sleep {seconds}; fi
exec /usr/lib/cni/host-local
"""


# A container without privileges: /proc/sys is read-only, and the node's is seen elsewhere.
CONTAINED = """
mkdir -p "$0/net" && mount --bind /proc/sys/net "$0/net" &&
mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"
"""


LISTENER = """
import socket, sys
server = socket.create_server((sys.argv[1], 0), family=socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET)
print(server.getsockname()[1], flush=True)
server.accept()[0].recv(1)
"""
WAITER = """
import socket, sys
client = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
print("connected", flush=True)
try:
    client.recv(1)
except OSError as error:
    print(type(error).__name__, flush=True)
"""

# The controller with other sizes of maps, which dies where these are in force and before anything is replaced.
KILLED_TAKEOVER = """
import os, signal
from bpf import node, settings, upgrade
upgrade._send = lambda messages: os.kill(os.getpid(), signal.SIGKILL)
node.load_datapath(settings.Settings.load({}))
"""


def slow_ipam(node: Node, seconds: float) -> tuple[dict[str, object], dict[str, str]]:
    """A configuration and variables with an IPAM plugin that takes long over ADD."""
    plugin = node.directory / "slow"
    plugin.write_text(SLOW.format(mark=node.directory / "asked", seconds=seconds))
    plugin.chmod(0o755)
    ipam = {"type": "slow", "dataDir": str(node.networks), "ranges": [[{"subnet": "10.244.7.0/24"}]]}
    return config(ipam=ipam), {"CNI_PATH": str(node.directory)}


def test_server_in_a_container_sets_sysctls_where_it_was_told(bare_node: Node) -> None:
    """Those of the link, and of a pod in which IPv6 was off; it is the server that does so, no other process."""
    sysctls = bare_node.directory / "sysctls"
    bare_node.environment |= {"CALICO_EBPF_PROC_SYS": str(sysctls), "CALICO_EBPF_ONESHOT": "/bin/false"}
    bare_node.start_server(through=("unshare", "--mount", "sh", "-c", CONTAINED, str(sysctls)))
    with bare_node.pods("a"):
        off = ("ip", "netns", "exec", bare_node.netns("a"), "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1")
        subprocess.run(off, check=True)
        addresses = [item["address"].partition("/")[0] for item in added(bare_node, "a")["ips"]]
        assert all(ping(bare_node, address) for address in addresses)
        read = bare_node.inside("cat", f"/proc/sys/net/ipv6/conf/{host_name('a', 'eth0')}/accept_ra")
        assert subprocess.run(read, capture_output=True, text=True, check=True).stdout == "0\n"
        assert bare_node.call("DEL", "a", CONFIG).status == 0


def test_thirty_pods_at_once_each_get_their_own(node: Node) -> None:
    """Parallel calls neither share an address nor fail, and parallel DELs leave nothing."""
    names = [f"p{number}" for number in range(PARALLEL)]
    with node.pods(*names), ThreadPoolExecutor(PARALLEL) as pool:
        replies = list(pool.map(lambda name: node.call("ADD", name, CONFIG), names))
        assert {reply.status for reply in replies} == {0}
        assert len({reply.data["ips"][0]["address"] for reply in replies}) == PARALLEL
        replies = list(pool.map(lambda name: node.call("DEL", name, CONFIG), names))
        assert {reply.status for reply in replies} == {0}
        assert node.leftovers() == CLEAN


def test_server_killed_in_the_middle_of_an_add_is_stood_in_for(node: Node) -> None:
    """The launcher's one-shot process clears away what the server had begun, and the pod comes up."""
    settings, variables = slow_ipam(node, 1)
    with node.pods("a"):
        process = node.launch("ADD", "a", variables)
        assert process.stdin
        process.stdin.write(json.dumps(settings))
        process.stdin.close()
        process.stdin = None
        wait_for((node.directory / "asked").exists, node.log)
        node.stop_server(signal.SIGKILL)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        address = json.loads(output)["ips"][0]["address"].removesuffix("/32")
        assert ping(node, address)
        assert node.call("DEL", "a", settings, **variables).status == 0
        assert node.leftovers() == CLEAN


def test_server_killed_and_restarted_serves_the_same_pods(node: Node) -> None:
    """What one server made, the one-shot process and the next server know."""
    with node.pods("a", "b"):
        result = added(node, "a")
        node.stop_server(signal.SIGKILL)
        added(node, "b")
        node.start_server()
        assert node.call("CHECK", "a", config(prevResult=result)).status == 0
        assert ping(node, "10.244.0.2")
        assert ping(node, "10.244.0.3")
        for pod in ("a", "b"):
            assert node.call("DEL", pod, CONFIG).status == 0
        assert node.leftovers() == CLEAN


def test_server_told_to_stop_finishes_what_is_under_way(node: Node) -> None:
    """SIGTERM costs no call: that under way is answered, the next one finds the one-shot process."""
    settings, variables = slow_ipam(node, 1)
    with node.pods("a"), ThreadPoolExecutor(1) as pool:
        reply = pool.submit(node.call, "ADD", "a", settings, **variables)
        wait_for((node.directory / "asked").exists, node.log)
        assert node.stop_server() == 0
        assert not (node.run_dir / "cni.sock").exists()
        assert reply.result().status == 0
        assert '"call_done"' in node.log()
        assert node.call("DEL", "a", settings, **variables).status == 0


def test_calls_for_one_container_wait_for_each_other(node: Node) -> None:
    """A DEL that comes while ADD is still at work takes away what that made."""
    settings, variables = slow_ipam(node, 0.5)
    with node.pods("a"), ThreadPoolExecutor(2) as pool:
        adding = pool.submit(node.call, "ADD", "a", settings, **variables)
        wait_for((node.directory / "asked").exists, node.log)
        deleting = pool.submit(node.call, "DEL", "a", settings, **variables)
        assert adding.result().status == 0
        assert deleting.result().status == 0
        assert node.leftovers() == CLEAN


def test_second_server_refuses_to_start(node: Node) -> None:
    """Two servers would take each other's socket."""
    command = node.inside(sys.executable, "-m", "bpf.cli", "cni-server")
    process = subprocess.run(command, env=node.environment, capture_output=True, text=True, timeout=30, check=False)
    assert process.returncode == 1
    assert "another cni-server runs" in process.stderr
    assert node.call("VERSION", "a", {}).status == 0


def test_caller_who_is_not_root_gets_no_answer(node: Node) -> None:
    """The socket's mode and the kernel's word both keep others out."""
    (node.run_dir / "cni.sock").chmod(0o666)
    program = "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX)\n"
    program += "s.connect(sys.argv[1]); print(len(s.recv(10)))"
    node.run_dir.chmod(0o755)
    for parent in node.run_dir.parents[:3]:
        parent.chmod(0o755)
    command = ["python3", "-c", program, str(node.run_dir / "cni.sock")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == "0\n"
    assert "caller_refused" in node.log()


def test_caller_who_says_nothing_or_nonsense_is_hung_up_on(node: Node) -> None:
    """The server goes on after each."""
    for data in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(64)):
        with socket.socket(socket.AF_UNIX) as caller:
            caller.connect(str(node.run_dir / "cni.sock"))
            caller.sendall(data)
            caller.shutdown(socket.SHUT_WR)
            caller.settimeout(10)
            with suppress(ConnectionResetError):
                assert caller.recv(10) == b""
    assert node.call("VERSION", "a", {}).status == 0


def attached_ids(node: Node, device: str) -> set[int]:
    found = set()
    for direction in ("ingress", "egress"):
        command = node.inside("tc", "-json", "filter", "show", "dev", device, direction)
        filters = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        found |= {item["options"]["prog"]["id"] for item in filters if "options" in item}
    return found


def test_programs_that_another_daemon_has_replaced_reach_the_pod_links(node: Node) -> None:
    """When the controller loads newer programs, those at the pod links follow, and CHECK stays content."""
    with node.pods("a"):
        result = added(node, "a")
        before = attached_ids(node, host_name("a", "eth0"))
        program = "from bpf.node import load_datapath; from bpf.settings import Settings\n"
        program += "assert load_datapath(Settings.load({'tcp_new_s': 61}))"
        subprocess.run(node.inside(sys.executable, "-c", program), env=node.environment, check=True)
        wait_for(lambda: attached_ids(node, host_name("a", "eth0")).isdisjoint(before), node.log)
        pinned = {syscall.program_id(node.pins.open_program(hook)) for hook in ("from_pod", "to_pod")}
        assert attached_ids(node, host_name("a", "eth0")) == pinned
        assert node.call("CHECK", "a", config(prevResult=result)).status == 0


def test_maps_that_were_removed_under_the_server_are_made_anew(node: Node) -> None:
    """After `uninstall` the next pod loads the data plane again; its entry is in the map that is pinned."""
    with node.pods("a"):
        subprocess.run(["rm", "-r", node.pins.root.parent], check=True)
        added(node, "a")
        assert node.pod_entry("10.244.0.2")
        assert hooks(node, host_name("a", "eth0")) == {"from_pod", "to_pod"}


def test_pods_from_before_maps_were_made_anew_are_entered_in_them(node: Node) -> None:
    """Pods of the maps that are gone get the new programs and entries, too, without a restart."""
    with node.pods("a", "b"):
        added(node, "a")
        subprocess.run(["rm", "-r", node.pins.root.parent], check=True)
        added(node, "b")
        wait_for(lambda: node.pod_entry("10.244.0.2"), node.log)
        assert ping(node, "10.244.0.2")


def test_pods_outlive_the_loss_of_every_pin(node: Node) -> None:
    """A new layout, like a bpffs that was mounted anew, starts with an empty map: the server enters its pods again."""
    with node.pods("a", "b"):
        result = added(node, "a")
        added(node, "b")
        before = [node.pod_entry(address) for address in ("10.244.0.2", "fd00:10:244::2", "10.244.0.3")]
        node.stop_server()
        subprocess.run(["rm", "-r", node.pins.root.parent], check=True)
        node.start_server()
        assert [node.pod_entry(address) for address in ("10.244.0.2", "fd00:10:244::2", "10.244.0.3")] == before
        assert ping(node, "10.244.0.2")
        assert ping(node, "fd00:10:244::3")
        assert node.call("CHECK", "a", config(prevResult=result)).status == 0
        for pod in ("a", "b"):
            assert node.call("DEL", pod, CONFIG).status == 0
        assert node.leftovers() == CLEAN


def test_server_whose_socket_was_removed_ends_and_the_next_one_serves(node: Node) -> None:
    """Somebody has cleared its directory: its pods' links get new programs all the same, and DEL leaves nothing."""
    with node.pods("a"):
        added(node, "a")
        shutil.rmtree(node.run_dir / "state")
        (node.run_dir / "cni.sock").unlink()
        assert node.wait_server() == 1
        subprocess.run(["rm", "-r", node.pins.root.parent], check=True)
        node.start_server()
        pinned = {syscall.program_id(node.pins.open_program(hook)) for hook in ("from_pod", "to_pod")}
        assert attached_ids(node, host_name("a", "eth0")) == pinned
        assert node.call("DEL", "a", CONFIG).status == 0
        assert node.leftovers() == CLEAN


def test_server_from_which_another_version_takes_over_ends(node: Node) -> None:
    """It does not take back; and what comes meanwhile, a DEL by a fresh process, meets what the other one knows."""
    other = node.pins.root.with_name("v1000")
    with node.pods("a", "b"):
        added(node, "a")
        # As if all of it were of another layout.
        node.pins.root.resolve().rename(other)
        node.pins.root.unlink()
        assert node.call("ADD", "b", CONFIG).data["code"] == TryAgainError.code
        assert node.wait_server() == 1
        assert other.exists()
        assert node.call("DEL", "a", CONFIG).status == 0
        assert not other.exists()
        assert node.leftovers() == CLEAN


def test_pod_is_reached_where_who_took_over_was_killed(node: Node) -> None:
    """Maps of other sizes are in force, and nothing that is attached uses them: the server finishes that."""
    with node.pods("a", "b"):
        added(node, "a")
        environment = node.environment | {"CALICO_EBPF_PODS_MAX": "64"}
        command = node.inside(sys.executable, "-c", KILLED_TAKEOVER)
        assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == -signal.SIGKILL
        added(node, "b")
        assert ping(node, "10.244.0.2")
        assert ping(node, "10.244.0.3")
        assert len(list(node.pins.root.parent.glob("v*-*"))) == 1


def test_network_is_given_to_the_runtime_once_pods_can_be_started(node: Node) -> None:
    """Not before the pod range is known; and again when it was lost."""
    given, source = node.directory / "net.d" / "10-x.conflist", node.directory / "10-x.conflist"
    network = {
        "cniVersion": "1.0.0",
        "name": "x",
        "plugins": [{"type": "calico-ebpf", "ipam": {"type": "calico-ebpf"}}],
    }
    source.write_text(json.dumps(network))
    (node.run_dir / "node.json").unlink(missing_ok=True)
    node.stop_server()
    node.start_server("--network-file", str(source), "--cni-conf-dir", str(given.parent))
    wait_for(lambda: "network_not_published" in node.log(), node.log)
    assert not given.exists()
    (node.run_dir / "node.json").write_text('{"name": "n", "pod_cidrs": ["10.244.7.0/24"], "mtu": 1500}')
    wait_for(lambda: given.exists() and json.loads(given.read_text()) == network, node.log)


@pytest.mark.parametrize("address", ["10.244.0.2", "fd00:10:244::2"])
def test_hosts_connection_to_a_pod_that_is_gone_ends(node: Node, address: str) -> None:
    """Its owner, here one that waits for an answer, is told within seconds, in place of a quarter of an hour."""
    with node.pods("a", "b"):
        result = added(node, "a")
        added(node, "b")
        assert address in [item["address"].partition("/")[0] for item in result["ips"]]
        server = ["ip", "netns", "exec", node.netns("a"), sys.executable, "-c", LISTENER, address]
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as listening:
            assert listening.stdout
            port = listening.stdout.readline().strip()
            with subprocess.Popen(
                node.inside(sys.executable, "-c", WAITER, address, port), text=True, stdout=-1
            ) as one:
                assert one.stdout
                assert one.stdout.readline() == "connected\n"
                # As a machine that is cut off: nobody closes.
                listening.send_signal(signal.SIGSTOP)
                assert node.call("DEL", "a", CONFIG).status == 0
                assert one.stdout.readline() == "ConnectionAbortedError\n"
            listening.kill()


def test_del_leaves_no_drops_or_flows_of_the_pod(node: Node) -> None:
    """Drops are kept in a sum of all that are gone; a flow that began before goes, and one of another pod stays."""
    with node.pods("a", "b"):
        added(node, "a")
        added(node, "b")
        entry = node.pod_entry("10.244.0.2")
        assert entry
        drops, flows = (node.pins.open_map(name) for name in ("drops", "flows"))
        every_cpu = DropCount(3, 300).pack() * os.sysconf("SC_NPROCESSORS_CONF")
        syscall.map_update(drops, DropKey(DropReason.SPOOFED, entry.ifindex).pack(), every_cpu)
        syscall.map_update(drops, DropKey(DropReason.SPOOFED, 0).pack(), every_cpu)
        theirs, service, far = packed("10.244.0.3"), packed("10.96.0.1"), packed("192.0.2.77")
        keys = [Tuple(far, service, 1, 80, 6), Tuple(packed("10.244.0.2"), far, 80, 1, 6), Tuple(far, theirs, 1, 80, 6)]
        twins, way = (keys[1], keys[0], Tuple(theirs, far, 80, 1, 6)), Way(0, WayKind.DESTINATION, bytes(16))
        for key, twin in zip(keys, twins, strict=True):
            syscall.map_update(flows, key.pack(), Flow(twin, 2**62, 2**62, 1, 0, 0, 0, way).pack())
        assert node.call("DEL", "a", CONFIG).status == 0
        assert syscall.map_lookup(drops, DropKey(DropReason.SPOOFED, entry.ifindex).pack(), len(every_cpu)) is None
        summed = syscall.map_lookup(drops, DropKey(DropReason.SPOOFED, 0).pack(), len(every_cpu))
        assert summed
        assert DropCount.unpack(summed[:16]) == DropCount(6, 600)
        wait_for(lambda: syscall.map_lookup(flows, keys[0].pack(), 96) is None, node.log)
        wait_for(lambda: syscall.map_lookup(flows, keys[1].pack(), 96) is None, node.log)
        assert syscall.map_lookup(flows, keys[2].pack(), 96)
        os.close(drops)
        os.close(flows)
