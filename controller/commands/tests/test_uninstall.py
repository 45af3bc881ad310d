# SPDX-License-Identifier: Apache-2.0
"""uninstall as a whole, in a process with network and mount namespaces of its own, which vanish with it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

# Everything that uninstall removes, and beside it a filter, a route and files that are not ours.
SCRIPT = """
set -eu
shopt -s nullglob
for directory in /run /etc /opt /var/lib /usr/local; do mount -t tmpfs tmpfs $directory; done
mount -t bpf bpf /sys/fs/bpf
mkdir -p /etc/cni/net.d /opt/cni/bin /run/calico-ebpf /var/lib/calico-ebpf /var/lib/cni/networks/{empty,held}
echo '{"name": "empty", "plugins": [{"type": "calico-ebpf"}]}' > /etc/cni/net.d/10-calico-ebpf.conflist
echo '{"name": "held", "type": "calico-ebpf"}' > /etc/cni/net.d/20-held.conf
echo '{"name": "other", "plugins": [{"type": "bridge"}, {"type": "calico-ebpf"}]}' > /etc/cni/net.d/30-other.conflist
echo nonsense > /etc/cni/net.d/40-nonsense.conf
touch /opt/cni/bin/calico-ebpf /opt/cni/bin/bridge
mkdir -p /etc/systemd/system /usr/local/lib/calico-ebpf/bpf /usr/local/bin
touch /etc/systemd/system/{calico-ebpf-controller,calico-ebpf-cni-server,other}.service
touch /opt/cni/bin/loopback
sha256sum /opt/cni/bin/loopback > /usr/local/lib/calico-ebpf/placed
echo 'another  /opt/cni/bin/bridge' >> /usr/local/lib/calico-ebpf/placed
touch /usr/local/lib/calico-ebpf/oneshot /usr/local/lib/calico-ebpf/bpf/tc.o /usr/local/bin/other
ln -s /nowhere /usr/local/bin/calico-ebpf
printf '#!/bin/sh\necho "$@" >> /opt/asked\n' > /usr/local/bin/systemctl
chmod 755 /usr/local/bin/systemctl
PATH=/usr/local/bin:$PATH
touch /var/lib/cni/networks/{empty,held}/{lock,last_reserved_ip.0} /var/lib/cni/networks/held/10.244.0.9
echo '{"net/ipv4/ip_forward": "0", "net/ipv6/conf/gone/accept_ra": "1"}' > /var/lib/calico-ebpf/sysctl.json
echo '{"before": "8080,45000", "ours": "40000-59999"}' > /var/lib/calico-ebpf/reserved-ports.json
echo 8080,9090,40000-59999 > /proc/sys/net/ipv4/ip_local_reserved_ports
echo 1 > /proc/sys/net/ipv4/ip_forward
ip link add under0 type veth peer name peer0
ip link add calico-vxlan type vxlan external dstport 4789
for device in lo under0 peer0 calico-vxlan; do ip link set $device up; done
ip address add 192.0.2.1/24 dev under0
ip route add 198.51.100.0/24 via 192.0.2.9
ip route add 10.244.1.0/24 via 192.0.2.2 proto 206
ip route add 10.244.2.0/24 dev calico-vxlan proto 206
ip route add default via 192.0.2.2 proto 206 table 77
ip -6 route add fd00:10:244::/64 dev under0 proto 206
ip route add unreachable 10.244.3.0/24 proto 206 metric 65536
ip -6 route add unreachable fd00:10:244:3::/64 proto 206 metric 65536
%(python)s -c '
from pyroute2 import IPRoute
from bpf import attach, node
from bpf.settings import Settings
settings = Settings()
node.load_datapath(settings)
pins = node.pins(settings)
with IPRoute() as netlink:
    for name in ("under0", "peer0"):
        index = netlink.link_lookup(ifname=name)[0]
        attach.add_clsact(netlink, index)
        for hook in ("from_netdev", "to_netdev"):
            attach.attach_device(netlink, index, hook, pins.open_program(hook))
    attach.attach_xdp(netlink, index, pins.open_program(attach.XDP_PROGRAM))
    netlink.tc("add-filter", "bpf", index, handle=1, fd=pins.open_program("from_netdev"), name="theirs",
               parent=attach.INGRESS, prio=9, protocol=3, direct_action=True)
'
%(python)s -m bpf.cli uninstall --yes --output json
%(python)s -m bpf.cli uninstall --yes --output json
echo left
printf '%%s\\n' /sys/fs/bpf/calico-ebpf* /run/calico-ebpf* /var/lib/cni/networks/* /etc/cni/net.d/* /opt/cni/bin/* \\
    /etc/systemd/system/* /usr/local/lib/* /usr/local/bin/*
cat /opt/asked
cat /proc/sys/net/ipv4/ip_forward
ip route show table all proto 206
ip -6 route show table all proto 206
ip route show 198.51.100.0/24
ip -o link show type vxlan
for device in under0 peer0; do tc qdisc show dev $device clsact | cut -d' ' -f2; done
bpftool net show | grep -o 'theirs'
ip link show | grep prog/xdp || true
"""


def run(directory: Path, script: str) -> tuple[str, str]:
    """What a script prints in such a process before and after the line `left`."""
    path = directory / "script"
    path.write_text(script % {"python": sys.executable})
    unshared = ["unshare", "--net", "--mount", "--propagation", "private", "bash", path]
    ran = subprocess.run(unshared, capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert ran.returncode == 0, ran.stderr
    shown, left = ran.stdout.split("left\n")
    return shown, left


def test_uninstall_takes_ours_and_leaves_the_rest(tmp_path: Path) -> None:
    """Attachments, pins, routes, device, files and sysctls of ours are gone; a second run finds nothing."""
    steps, left = run(tmp_path, SCRIPT)
    decoder = json.JSONDecoder()
    first, end = decoder.raw_decode(steps)
    second, _ = decoder.raw_decode(steps[end:].lstrip())
    assert [step["done"] for step in first] == [
        "stopped and removed /etc/systemd/system/calico-ebpf-cni-server.service",
        "stopped and removed /etc/systemd/system/calico-ebpf-controller.service",
        "removed /etc/cni/net.d/10-calico-ebpf.conflist",
        "removed /etc/cni/net.d/20-held.conf",
        "removed /opt/cni/bin/calico-ebpf",
        "removed /var/lib/cni/networks/empty",
        "left /var/lib/cni/networks/held, which holds 1 addresses",
        *(f"detached {hook} from {device}" for device in ("peer0", "under0") for hook in ("from_netdev", "to_netdev")),
        "detached xdp from peer0",
        "removed the overlay device",
        "removed 5 routes",
        "removed /sys/fs/bpf/calico-ebpf",
        "restored net/ipv4/ip_forward to 0",
        "restored net/ipv4/ip_local_reserved_ports to 8080,9090,45000",
        "removed /var/lib/calico-ebpf",
        "removed /run/calico-ebpf",
        "removed /opt/cni/bin/loopback",
        "removed /usr/local/bin/calico-ebpf",
        "removed /usr/local/lib/calico-ebpf",
    ]
    assert second == [{"done": "nothing of ours was there", "failed": ""}]
    assert left.splitlines() == [
        "/var/lib/cni/networks/held",
        "/etc/cni/net.d/30-other.conflist",
        "/etc/cni/net.d/40-nonsense.conf",
        "/opt/cni/bin/bridge",
        "/etc/systemd/system/other.service",
        "/usr/local/bin/other",
        "/usr/local/bin/systemctl",
        "disable --now calico-ebpf-cni-server.service",
        "daemon-reload",
        "disable --now calico-ebpf-controller.service",
        "daemon-reload",
        "0",
        "198.51.100.0/24 via 192.0.2.9 dev under0 ",
        "clsact",
        "theirs",
    ]


PODS = """
set -e
mount -t bpf bpf /sys/fs/bpf
for directory in /run /var/lib /etc /opt /usr/local; do mount -t tmpfs tmpfs $directory; done
mkdir -p /etc/calico-ebpf /etc/networks /var/lib/cni/networks/cbr0 /usr/local/lib/calico-ebpf /usr/local/bin
echo '{"name": "cbr0", "plugins": [{"type": "calico-ebpf"}]}' > /etc/networks/10-calico-ebpf.conflist
export CALICO_EBPF_CNI_CONF_DIR=/etc/networks
printf 'flows_max: \\377' > /etc/calico-ebpf/config.yaml
touch /var/lib/cni/networks/cbr0/{lock,10.244.1.5,10.244.1.9}
ln -s /nowhere /usr/local/bin/calico-ebpf
ip link add ce0123456789a type veth peer name pod0
%(python)s -c '
from bpf import abi, node, syscall
from bpf.address import packed
from bpf.settings import Settings
node.load_datapath(Settings())
pods = node.pins(Settings()).open_map("pods")
syscall.map_update(pods, abi.PodKey(packed("10.244.1.9")).pack(), abi.Pod(1, 0, bytes(6), bytes(6), 5).pack())
'
mount --bind /proc/sys/net /opt; mkdir -p /var/lib/calico-ebpf
echo '{"before": "nonsense", "ours": "40000-59999"}' > /var/lib/calico-ebpf/reserved-ports.json
%(python)s -m bpf.cli uninstall --yes --pods --output json && exit 9
echo left
ls /usr/local/bin /var/lib/cni/networks/cbr0
ip -o link show type veth
rm /var/lib/calico-ebpf/reserved-ports.json
%(python)s -m bpf.cli uninstall --yes --pods > /dev/null
ls -A /usr/local/bin
"""


def test_uninstall_with_pods_takes_their_addresses_and_is_tried_again_where_it_failed(tmp_path: Path) -> None:
    """Another plugin's addresses of the same network stay; and while something is left, the command is, and what tells
    how sysctls were. Settings that are no text keep nothing from going."""
    steps, left = run(tmp_path, PODS)
    done = [step["done"] for step in json.loads(steps)]
    assert "removed /etc/networks/10-calico-ebpf.conflist" in done
    assert "removed 1 addresses of pods and their links" in done
    assert "left /var/lib/cni/networks/cbr0, which holds 1 addresses" in done
    assert "ports: not finished" in done
    assert left.split() == ["/usr/local/bin:", "calico-ebpf", "/var/lib/cni/networks/cbr0:", "10.244.1.5", "lock"]
