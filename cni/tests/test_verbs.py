# SPDX-License-Identifier: Apache-2.0
"""The verbs on real namespaces, through the launcher: by the warm server and by the one-shot process alike."""

import itertools
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cni.config import VERSIONS
from cni.datapath import container_hash
from cni.link import host_name
from cni.tests.conftest import CLEAN, POD_CIDRS, Node, Reply, ip

pytestmark = pytest.mark.root

CONFIG: dict[str, Any] = {
    "cniVersion": "1.0.0",
    "name": "pods",
    "type": "calico-ebpf",
    "ipam": {"type": "calico-ebpf"},
}
HOST_LOCAL = Path("/usr/lib/cni/host-local")
needs_host_local = pytest.mark.skipif(not HOST_LOCAL.exists(), reason="host-local is not installed")


def config(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, **changes}


def ranges(*subnets: str) -> dict[str, Any]:
    return {"type": "calico-ebpf", "ranges": [[{"subnet": subnet}] for subnet in subnets]}


def added(node: Node, pod: str, **changes: Any) -> dict[str, Any]:
    """The result of an ADD that succeeds."""
    reply = node.call("ADD", pod, config(**changes))
    assert reply.status == 0, reply
    return reply.data


def refused(reply: Reply, code: int, said: str) -> None:
    """A call failed as the specification wants it to."""
    assert reply.status == 1
    assert reply.data["code"] == code, reply
    assert said in reply.data["msg"]
    assert reply.data["cniVersion"] in VERSIONS


def ping(node: Node, address: str) -> bool:
    command = node.inside("ping", "-c1", "-W2", address)
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_add_gives_both_families_at_once(either_node: Node) -> None:
    """A pod of a dual-stack node is reached over both families as soon as ADD has returned, and DEL leaves nothing."""
    with either_node.pods("a"):
        result = added(either_node, "a")
        addresses = [item["address"].partition("/")[0] for item in result["ips"]]
        assert addresses == ["10.244.0.2", "fd00:10:244::2"]
        assert all(ping(either_node, address) for address in addresses)
        assert either_node.call("DEL", "a", CONFIG) == (0, {})
        assert either_node.leftovers() == CLEAN


def test_add_makes_the_link_that_the_programs_expect(node: Node) -> None:
    """Names, MACs, MTU, programs and the map's entry agree with the result."""
    with node.pods("a"):
        result = added(node, "a")
        host, pod = result["interfaces"]
        (link,) = node.ip("link", "show", host_name("a", "eth0"))
        (inner,) = ip(node.netns("a"), "link", "show", "eth0")
        assert (host["name"], host["mac"]) == (link["ifname"], link["address"])
        assert (pod["name"], pod["mac"]) == ("eth0", inner["address"])
        assert (link["mtu"], inner["mtu"], link["inet6_addr_gen_mode"]) == (1450, 1450, "none")
        entry = node.pod_entry("10.244.0.2")
        assert entry
        assert (entry.ifindex, entry.pod_mac.hex(":"), entry.host_mac.hex(":"), entry.container_hash) == (
            link["ifindex"],
            pod["mac"],
            host["mac"],
            container_hash("a"),
        )
        assert node.pod_entry("fd00:10:244::2") == entry
        assert hooks(node, link["ifname"]) == {"from_pod", "to_pod"}


def hooks(node: Node, device: str) -> set[str]:
    """The names of the programs attached to a device."""
    found = set()
    for direction in ("ingress", "egress"):
        command = node.inside("tc", "-json", "filter", "show", "dev", device, direction)
        filters = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        found |= {item["options"]["prog"]["name"] for item in filters if "options" in item}
    return found


def test_add_leaves_no_address_undetermined(node: Node) -> None:
    """Neither end has a link-local address, and the pod's are not tentative: nothing waits for detection."""
    with node.pods("a"):
        added(node, "a")
        (inner,) = ip(node.netns("a"), "addr", "show", "eth0")
        assert {item["local"] for item in inner["addr_info"]} == {"10.244.0.2", "fd00:10:244::2"}
        assert not any(item.get("tentative") for item in inner["addr_info"])


@pytest.mark.parametrize("version", VERSIONS)
def test_verbs_in_each_version_answer_in_it(node: Node, version: str) -> None:
    """Results have the form of the version asked for; CHECK exists from 0.4.0 on."""
    with node.pods("a"):
        result = added(node, "a", cniVersion=version)
        assert result["cniVersion"] == version
        assert ("version" in result["ips"][0]) == (version != "1.0.0")
        check = node.call("CHECK", "a", config(cniVersion=version, prevResult=result))
        if version.startswith("0.3."):
            refused(check, 1, "CHECK")
        else:
            assert check == (0, {})
        assert node.call("DEL", "a", config(cniVersion=version, prevResult=result)) == (0, {})


def test_version_lists_what_is_spoken(either_node: Node) -> None:
    """1.1.0 is not advertised before GC and STATUS are there."""
    reply = either_node.call("VERSION", "a", {"cniVersion": "0.4.0"})
    assert reply == (0, {"cniVersion": "0.4.0", "supportedVersions": list(VERSIONS)})


def test_add_twice_is_an_error_and_harms_nothing(either_node: Node) -> None:
    """The second ADD is refused; the pod stays as it was."""
    with either_node.pods("a"):
        result = added(either_node, "a")
        refused(either_node.call("ADD", "a", CONFIG), 102, "already")
        assert either_node.call("CHECK", "a", config(prevResult=result)) == (0, {})


def test_add_where_the_name_is_taken_undoes_all(node: Node) -> None:
    """Another plugin's eth0 is left alone, and no address stays reserved."""
    with node.pods("a"):
        inner = node.netns("a")
        subprocess.run(["ip", "-n", inner, "link", "add", "eth0", "type", "veth", "peer", "name", "x"], check=True)
        refused(node.call("ADD", "a", CONFIG), 102, "eth0")
        assert {link["ifname"] for link in ip(inner, "link")} == {"lo", "eth0", "x"}
        assert node.leftovers() == CLEAN


@pytest.mark.parametrize(
    ("text", "variables", "code", "said"),
    [
        ("", {}, 6, "no JSON"),
        ("{", {}, 6, "no JSON"),
        ("[]", {}, 6, "object"),
        (json.dumps(config(cniVersion="1.1.0")), {}, 1, "1.1.0"),
        (json.dumps({"name": "pods"}), {}, 1, "0.1.0"),
        (json.dumps(config(rangez=1)), {}, 2, "rangez: 1"),
        (json.dumps(config(ipam={"type": "calico-ebpf", "ranges": [[{"subnet": "10.0.0.1/8"}]]})), {}, 7, "host bits"),
        (json.dumps(config(ipam={"type": "calico-ebpf", "routes": [{"dst": "x"}]})), {}, 7, "routes"),
        (json.dumps(config(ipam={"type": "no-such-plugin"})), {}, 4, "CNI_PATH"),
        (json.dumps(config(prevResult={"ips": [1]})), {}, 7, "ips"),
        (json.dumps(CONFIG), {"CNI_COMMAND": "GC"}, 4, "CNI_COMMAND"),
        (json.dumps(CONFIG), {"CNI_IFNAME": ""}, 4, "CNI_IFNAME"),
        (json.dumps(CONFIG), {"CNI_NETNS": "/run/netns/no-such"}, 3, "/run/netns/no-such"),
        (json.dumps(CONFIG), {"CNI_NETNS": "/etc/hostname"}, 4, "not a network namespace"),
        (json.dumps(CONFIG), {"CNI_NETNS": "/proc/self/ns/uts"}, 4, "not a network namespace"),
        (json.dumps(CONFIG), {"CNI_NETNS": "/proc/self/ns/net"}, 4, "host's own"),
    ],
)
def test_add_with_wrong_input_is_refused_and_leaves_nothing(
    node: Node, text: str, variables: dict[str, str], code: int, said: str
) -> None:
    """Each mistake gets the specification's code and names what is wrong."""
    with node.pods("a"):
        refused(node.call("ADD", "a", text, **variables), code, said)
        assert node.leftovers() == CLEAN


def test_add_with_wrong_input_by_the_oneshot_is_refused_alike(bare_node: Node) -> None:
    """The one-shot process speaks the same errors."""
    with bare_node.pods("a"):
        refused(bare_node.call("ADD", "a", "{"), 6, "no JSON")
        refused(bare_node.call("ADD", "a", CONFIG, CNI_NETNS="/run/netns/no-such"), 3, "no-such")


def test_add_before_the_controller_has_spoken_says_try_again(node: Node) -> None:
    """Without ranges in the configuration the node's pod range must be known."""
    (node.run_dir / "node.json").unlink()
    with node.pods("a"):
        refused(node.call("ADD", "a", CONFIG), 11, "not known yet")
        (node.run_dir / "node.json").write_text('{"name": "n", "pod_cidrs": [], "mtu": 1450}')
        refused(node.call("ADD", "a", CONFIG), 11, "no pod range yet")
        assert node.leftovers() == CLEAN


def test_add_from_exhausted_range_is_refused_until_one_is_free(node: Node) -> None:
    """The error names the range; a DEL makes room."""
    ipam = ranges("10.244.7.0/30")
    with node.pods("a", "b"):
        added(node, "a", ipam=ipam)
        refused(node.call("ADD", "b", config(ipam=ipam)), 101, "10.244.7.1-10.244.7.2")
        node.call("DEL", "a", config(ipam=ipam))
        added(node, "b", ipam=ipam)


def test_add_with_ranges_and_mtu_of_the_configuration_uses_them(node: Node) -> None:
    """The configuration comes before what the controller has left, several range sets give several addresses."""
    with node.pods("a"):
        result = added(node, "a", ipam=ranges("10.244.7.0/24", "10.244.8.0/24", "fd00:10:244:7::/64"), mtu=1300)
        assert [item["address"] for item in result["ips"]] == ["10.244.7.2/32", "10.244.8.2/32", "fd00:10:244:7::2/128"]
        assert ip(node.netns("a"), "link", "show", "eth0")[0]["mtu"] == 1300


def test_add_without_known_mtu_takes_that_of_the_way_out(node: Node) -> None:
    """Where neither configuration nor controller says, the device of the default route does."""
    (node.run_dir / "node.json").unlink()
    with node.pods("a", "wire"):
        wire = ["link", "add", "up0", "mtu", "1400", "type", "veth", "peer", "name", "far", "netns", node.netns("wire")]
        for arguments in (wire, ["link", "set", "up0", "up"], ["addr", "add", "192.0.2.1/24", "dev", "up0"]):
            subprocess.run(["ip", "-n", node.name, *arguments], check=True)
        subprocess.run(["ip", "-n", node.name, "route", "add", "default", "via", "192.0.2.254"], check=True)
        added(node, "a", ipam=ranges("10.244.7.0/24"))
        assert ip(node.netns("a"), "link", "show", "eth0")[0]["mtu"] == 1400


def test_add_with_routes_leads_only_there(node: Node) -> None:
    """A pod's second network leaves its default route to the first."""
    ipam = {**ranges("10.244.7.0/24"), "routes": [{"dst": "198.51.100.0/24"}]}
    with node.pods("a"):
        added(node, "a", ipam=ipam)
        routes = {item["dst"] for item in ip(node.netns("a"), "route")}
        assert routes == {"169.254.1.1", "198.51.100.0/24"}


def test_add_with_ipv6_switched_off_inside_switches_it_on(node: Node) -> None:
    """Some runtimes make namespaces without IPv6; an address of that family wants it."""
    with node.pods("a"):
        command = ["ip", "netns", "exec", node.netns("a"), "sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]
        subprocess.run(command, check=True)
        added(node, "a")
        assert ping(node, "fd00:10:244::2")


def test_add_behind_another_plugin_passes_its_result_on(node: Node) -> None:
    """Second in a chain, our interfaces stand behind the other's."""
    before = {"interfaces": [{"name": "first0"}], "ips": [{"address": "198.51.100.9/24", "interface": 0}]}
    with node.pods("a"):
        result = added(node, "a", prevResult=before)
        assert [item["name"] for item in result["interfaces"]] == ["first0", host_name("a", "eth0"), "eth0"]
        assert [item["interface"] for item in result["ips"]] == [0, 2, 2]
        assert node.call("CHECK", "a", config(prevResult=result)) == (0, {})


def test_second_interface_of_a_container_lives_beside_the_first(node: Node) -> None:
    """Interfaces of one container are told apart, in names, addresses and on DEL."""
    with node.pods("a"):
        added(node, "a")
        ipam = {**ranges("10.244.7.0/24"), "routes": [{"dst": "198.51.100.0/24"}]}
        other = config(name="storage", ipam=ipam)
        assert node.call("ADD", "a", other, CNI_IFNAME="net1").status == 0
        assert node.call("DEL", "a", CONFIG).status == 0
        assert [link["ifname"] for link in ip(node.netns("a"), "link")] == ["lo", "net1"]
        assert node.pod_entry("10.244.7.2")
        assert node.call("DEL", "a", other, CNI_IFNAME="net1").status == 0
        assert node.leftovers() == CLEAN


def test_del_of_what_never_was_succeeds(either_node: Node) -> None:
    """DEL is for a state, not for a change."""
    assert either_node.call("DEL", "a", CONFIG, CNI_NETNS="") == (0, {})
    assert either_node.call("DEL", "a", CONFIG, CNI_NETNS="/run/netns/no-such") == (0, {})


def test_del_after_the_namespace_is_gone_leaves_nothing(either_node: Node) -> None:
    """The link went with the namespace; addresses, entry and record go now, however often it is said."""
    with either_node.pods("a"):
        added(either_node, "a")
    for _ in range(2):
        assert either_node.call("DEL", "a", CONFIG, CNI_NETNS="") == (0, {})
    assert either_node.leftovers() == CLEAN


def test_del_after_everything_was_forgotten_leaves_nothing(node: Node) -> None:
    """Without record and prevResult the reservations still tell the addresses."""
    with node.pods("a"):
        added(node, "a")
        for record in (node.run_dir / "state/links").iterdir():
            record.unlink()
        assert node.call("DEL", "a", CONFIG) == (0, {})
        assert node.leftovers() == CLEAN


def test_del_of_an_old_sandbox_spares_the_newer_pod(node: Node) -> None:
    """A late DEL, told an address that another container has by now, takes nothing of it."""
    ipam = ranges("10.244.7.0/30")
    with node.pods("old", "new"):
        before = added(node, "old", ipam=ipam)
        assert node.call("DEL", "old", config(ipam=ipam)).status == 0
        result = added(node, "new", ipam=ipam)
        assert result["ips"][0]["address"] == before["ips"][0]["address"]
        assert node.call("DEL", "old", config(ipam=ipam, prevResult=before)) == (0, {})
        assert node.call("CHECK", "new", config(ipam=ipam, prevResult=result)) == (0, {})
        assert ping(node, "10.244.7.2")


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (["ip", "-n", "{pod}", "addr", "flush", "dev", "eth0"], "is gone"),
        (["ip", "-n", "{pod}", "link", "set", "eth0", "down"], "is down"),
        (["ip", "-n", "{pod}", "link", "delete", "eth0"], "no such link"),
        (["ip", "-n", "{pod}", "link", "set", "eth0", "address", "02:00:00:00:00:01"], "MAC"),
        (["tc", "-n", "{node}", "filter", "delete", "dev", "{link}", "ingress"], "from_pod"),
        (["tc", "-n", "{node}", "qdisc", "delete", "dev", "{link}", "clsact"], "from_pod"),
        (["rm", "{networks}/pods/10.244.0.2", "{networks}/pods/fd00:10:244::2"], "reserved"),
    ],
)
def test_check_of_a_damaged_attachment_says_what_is_wrong(node: Node, harm: list[str], said: str) -> None:
    """CHECK finds what ADD made and somebody has changed."""
    with node.pods("a"):
        result = added(node, "a")
        places = {"pod": node.netns("a"), "node": node.name, "link": host_name("a", "eth0"), "networks": node.networks}
        subprocess.run([part.format(**places) for part in harm], check=True)
        refused(node.call("CHECK", "a", config(prevResult=result)), 103, said)


def test_check_without_result_is_refused(node: Node) -> None:
    """CHECK compares with what ADD returned, and needs it."""
    with node.pods("a"):
        added(node, "a")
        refused(node.call("CHECK", "a", CONFIG), 7, "prevResult")
        refused(node.call("CHECK", "a", config(prevResult={})), 7, "prevResult")


@needs_host_local
def test_verbs_with_delegated_addresses_ask_the_other_plugin(either_node: Node) -> None:
    """host-local as a plugin of its own gives the addresses, and gets them back."""
    ranges_ = [[{"subnet": subnet}] for subnet in POD_CIDRS]
    ipam = {"type": "host-local", "dataDir": str(either_node.networks), "ranges": ranges_}
    with either_node.pods("a"):
        result = added(either_node, "a", ipam=ipam)
        assert [item["address"] for item in result["ips"]] == ["10.244.0.2/32", "fd00:10:244::2/128"]
        assert ping(either_node, "10.244.0.2")
        assert either_node.call("CHECK", "a", config(ipam=ipam, prevResult=result)) == (0, {})
        assert either_node.call("DEL", "a", config(ipam=ipam)) == (0, {})
        assert either_node.leftovers() == CLEAN


@needs_host_local
def test_add_that_the_other_plugin_refuses_passes_its_error_on(node: Node) -> None:
    """The operator reads host-local's own words."""
    ipam = {"type": "host-local", "dataDir": str(node.networks), "ranges": [[{"subnet": "10.244.7.0/31"}]]}
    with node.pods("a"):
        reply = node.call("ADD", "a", config(ipam=ipam))
        assert reply.status == 1
        assert "too small" in reply.data["msg"]
        assert node.leftovers() == CLEAN


def test_shipped_configuration_works_as_it_is(node: Node) -> None:
    """conf/base/10-calico-ebpf.conflist needs no editing: a runtime makes this of its first plugin."""
    conflist = json.loads((Path(__file__).resolve().parents[2] / "conf/base/10-calico-ebpf.conflist").read_text())
    plugin = {**conflist["plugins"][0], "cniVersion": conflist["cniVersion"], "name": conflist["name"]}
    with node.pods("a"):
        assert node.call("ADD", "a", plugin).status == 0
        assert node.call("DEL", "a", plugin).status == 0


def test_fifty_pods_made_and_removed_leave_nothing(node: Node) -> None:
    """No link, address, route, entry or record stays."""
    with node.pods("a"):
        for number in range(50):
            variables = {"CNI_CONTAINERID": f"c{number}"}
            assert node.call("ADD", "a", CONFIG, **variables).status == 0
            assert node.call("DEL", "a", CONFIG, **variables).status == 0
    assert node.leftovers() == CLEAN


# A one-shot process that is killed before the n-th of its calls that change something, or ends well when it has fewer.
KILLED = """
import os, signal, sys
from pathlib import Path
from bpf import syscall
from cni import netlink, oneshot
left = int(os.environ["KILL_AT"])
def fatal(holder, name):
    whole = getattr(holder, name)
    def step(*arguments, **options):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(*arguments, **options)
    setattr(holder, name, step)
for name in ("write_bytes", "write_text", "rename", "unlink"):
    fatal(Path, name)
fatal(os, "link")
fatal(syscall, "map_update")
fatal(syscall, "map_delete")
fatal(netlink.Netlink, "call")
raise SystemExit(oneshot.main())
"""


def test_add_killed_at_each_step_is_cleared_away(bare_node: Node) -> None:
    """Whatever a killed process had made, DEL takes it away, and so does an ADD of the same interface."""
    node = bare_node
    (node.directory / "killed.py").write_text(KILLED)
    with node.pods("a"):
        added(node, "a")  # loads the data plane
        node.call("DEL", "a", CONFIG)
        whole = (node.directory / "oneshot").read_text()
        for number in itertools.count(1):
            script = whole.replace("-I -m cni.oneshot", f"-I {node.directory}/killed.py")
            (node.directory / "oneshot").write_text(script)
            process = node.launch("ADD", "a", {"KILL_AT": str(number)})
            process.communicate(json.dumps(CONFIG), timeout=60)
            (node.directory / "oneshot").write_text(whole)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL
            if number % 2:
                assert node.call("ADD", "a", CONFIG).status == 0
            assert node.call("DEL", "a", CONFIG) == (0, {})
            assert node.leftovers() == CLEAN
        assert number > 15


def test_add_with_a_full_map_of_pods_says_which_setting(bare_node: Node) -> None:
    """The pod that does not fit is refused whole; those before it are unharmed."""
    node = bare_node
    node.environment["CALICO_EBPF_PODS_MAX"] = "16"
    node.start_server()
    names = [f"p{number}" for number in range(9)]
    with node.pods(*names):
        for name in names[:8]:
            added(node, name)
        before = node.leftovers()
        reply = node.call("ADD", names[8], CONFIG)
        refused(reply, 104, "map of pods")
        assert "pods_max" in reply.data["details"]
        assert node.leftovers() == before
        assert ping(node, "10.244.0.2")
