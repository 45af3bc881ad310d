# SPDX-License-Identifier: Apache-2.0
"""A node of a real cluster: containerd and kubelet beside our daemons, everything at its standard path.

What container engines call a node image, without the container: a space whose hierarchies of control groups begin at
groups of its own, whose containers and volumes live in memory and go with it, and whose kubelet changes no sysctl of
the host.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from e2e import kubernetes
from e2e.lab import cgroups, images, space
from e2e.lab.errors import LabError
from e2e.lab.node import CNI_SERVER, COMMAND, CONTROLLER, REPORT, ROOT, Node
from e2e.lab.runtime import CNI_BIN
from e2e.lab.space import Space

CONTAINERD, KUBELET = "containerd", "kubelet"
SOCKET = "/run/containerd/containerd.sock"
METRICS_PORT = 1338
CONTAINERD_FILE, KUBELET_FILE, KUBECONFIG = (
    "/etc/containerd/config.toml",
    "/etc/kubernetes/kubelet.json",
    "/etc/kubernetes/kubelet.conf",
)
PODS_MAX = 250
# Ours, of `make image`.
IMAGE = ROOT / "build" / "image.tar"
KUBELET_TRIES, KUBELET_S = 10, 2.0
CONTAINED = (CONTROLLER, CNI_SERVER)
# What is left of a machine without processes: volumes and root file systems of its pods, and what the kernel holds.
POWER_OFF = """
set -e
awk '$2 ~ "^(/var/lib/kubelet/pods|/run/containerd|/run/netns|/var/lib/containerd)/" {print $2}' /proc/mounts |
    sort -r | xargs -r -n 1 umount -l || true # several at one place
find /run -mindepth 1 -maxdepth 1 -not -name 'calico-ebpf-lab' -not -name sysctls -exec rm -rf {} +
mkdir /run/netns
rm -rf /sys/fs/bpf/calico-ebpf
for device in $(ls /sys/class/net | grep -E '^(ce[0-9a-f]{11}|calico-vxlan)$'); do ip link del "$device"; done
tc qdisc del dev eth0 clsact
ip route flush table all proto 206
ip -6 route flush table all proto 206
echo 0 > /proc/sys/net/ipv4/ip_forward
echo 0 > /proc/sys/net/ipv6/conf/all/forwarding
echo > /proc/sys/net/ipv4/ip_local_reserved_ports
"""
# Whether the CNI server answers: without one the launcher has nobody to ask.
ASK = f"echo '{{}}' | CNI_COMMAND=VERSION CALICO_EBPF_ONESHOT=/bin/false {CNI_BIN}/calico-ebpf"
# containerd has it make a pod's lo, whatever the network: it belongs to every node.
LOOPBACK = Path("/usr/lib/cni/loopback")

# containerd's overlay file systems need one below them that is not of their kind: the space's memory.
PRIVATE = ("/var/lib/containerd", "/var/lib/kubelet")
# kubelet sets these, for the whole machine, unless it finds them so.
SYSCTLS = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}

CONTAINERD_CONFIG = f"""
version = 2
oom_score = 0
[grpc]
address = "{SOCKET}"
[metrics]
address = "127.0.0.1:{METRICS_PORT}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
restrict_oom_score_adj = true
"""


def _preparation(pod_logs: Path) -> str:
    """Shell commands for the holder of a machine's namespaces."""
    lines = []
    for hierarchy in cgroups.hierarchies():
        lines.append(f"mkdir -p {hierarchy.point}")
        lines.append(f"mount -n -t cgroup -o {hierarchy.options} cgroup {hierarchy.point}")
    for target in PRIVATE:
        lines.append(f"mkdir -p {target}")
        lines.append(f"mount -n -t tmpfs tmpfs {target}")
    lines.append("mkdir /run/sysctls")
    for name, value in SYSCTLS.items():
        file = f"/run/sysctls/{name.replace('/', '.')}"
        lines.append(f"echo {value} > {file}")
        lines.append(f"mount -n --bind {file} /proc/sys/{name}")
    lines.append(f"mkdir -p {pod_logs} /var/log/pods")
    lines.append(f"mount -n --bind {pod_logs} /var/log/pods")
    lines.append("mount -n --make-rshared /")
    return "\n".join(lines)


class Machine(Node):
    """A node with a container runtime and a kubelet.

    Besides the daemons of a `Node`, `start`, `kill` and `stop` know CONTAINERD and KUBELET.

    Attributes:
        daemons: what is started on it when it joins a cluster, containerd being there.
        bare: whether our daemons are not among them.
    """

    daemons: ClassVar[tuple[str, ...]] = (KUBELET, CNI_SERVER, CONTROLLER)
    bare = False

    @staticmethod
    def hold(name: str, group: Path, lab_dir: Path, keep: bool) -> Space:
        """Makes a machine's space. Its pods' logs are kept in the lab's folder of logs.

        Raises:
            LabError: a namespace, a mount or a control group was refused.
        """
        cgroups.delegate(group)
        held = space.hold(name, group, lab_dir, keep, _preparation(lab_dir / "logs" / f"{name}-pods"))
        cgroups.settle(group, held.pid)
        return held

    def start(self, daemon: str) -> None:
        self._daemons[daemon] = self.space.start(*self._command(daemon), log=self.log(daemon))

    def install(self, settings: Mapping[str, object]) -> None:
        """Puts our files where an installation does, and the plugin that containerd asks for besides.

        Raises:
            LabError: something is not built or installed.
        """
        super().install(settings)
        if not LOOPBACK.exists():
            raise LabError(f"{LOOPBACK} is not installed (Debian package containernetworking-plugins)")
        self._put(f"{CNI_BIN}/{LOOPBACK.name}", LOOPBACK.read_bytes(), 0o755)

    def start_containerd(self) -> None:
        """Configures and starts containerd. Raises LabError: it is not installed."""
        for command in (CONTAINERD, "runc", "ctr"):
            if not shutil.which(command):
                raise LabError(f"{command} is not installed (Debian packages containerd, runc)")
        self._put(CONTAINERD_FILE, CONTAINERD_CONFIG.encode(), 0o644)
        self.start(CONTAINERD)

    def configure_kubelet(
        self, kubeconfig: Mapping[str, Any], authority: Path, cluster_dns: list[str], ips: list[str]
    ) -> None:
        """Writes the kubelet's files.

        Args:
            kubeconfig: the kubelet's own.
            authority: the certificate authority of those who may ask the kubelet.
            cluster_dns: addresses of the cluster's name servers.
            ips: the node's addresses, one of each family that the cluster has.
        """
        self._ips = ips
        self._put(KUBECONFIG, json.dumps(kubeconfig).encode(), 0o600)
        self._put(KUBELET_FILE, json.dumps(_kubelet_config(authority, cluster_dns)).encode(), 0o644)

    def load_images(self) -> None:
        """Gives containerd, once it answers, the lab's images.

        Raises:
            LabError: it ended, or the images cannot be made.
        """
        self.wait(lambda: not self.space.run("ctr", "version", check=False).returncode, CONTAINERD)
        for archive in self._archives():
            self.space.run("ctr", "-n", "k8s.io", "images", "import", str(archive), timeout_s=120)

    def _archives(self) -> list[Path]:
        return [images.archive()]

    def sandbox_of(self, address: str) -> Space:
        """The space of the pod that has an address, for commands that its image does not have. Raises LabError."""
        for netns in self.space.path("/run/netns").iterdir():
            sandbox = self.space.sandbox(netns.name)
            sandbox.group.mkdir(exist_ok=True)
            if f" {address}/" in sandbox.run("ip", "-oneline", "address").stdout:
                return sandbox
        raise LabError(f"{self.name} has no pod with the address {address}")

    def _command(self, daemon: str) -> list[str]:
        if daemon == CONTAINERD:
            return [CONTAINERD]
        if daemon != KUBELET:
            return [COMMAND, daemon]
        return [
            str(kubernetes.command(KUBELET)),
            f"--config={KUBELET_FILE}",
            f"--kubeconfig={KUBECONFIG}",
            f"--hostname-override={self.name}",
            f"--node-ip={','.join(self._ips)}",
        ]


class BareMachine(Machine):
    """As kubeadm leaves a node: nothing of ours on it but the image. The rest comes by `real.install`, and kubelet runs
    our daemons then: it is it that starts one again that was killed.
    """

    daemons: ClassVar[tuple[str, ...]] = (KUBELET,)
    bare = True
    _killed = 0.0

    def install(self, settings: Mapping[str, object]) -> None:
        """Does nothing: that is the manifests' part."""

    def start(self, daemon: str) -> None:
        if daemon not in CONTAINED:
            super().start(daemon)

    def kill(self, daemon: str) -> None:
        if daemon not in CONTAINED:
            super().kill(daemon)
            return
        found = self.processes(daemon)
        if not found:
            raise LabError(f"{self.name}: {daemon} does not run")
        if daemon == CONTROLLER:
            self._killed = time.time()
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def log(self, daemon: str) -> Path:
        if daemon not in CONTAINED:
            return super().log(daemon)
        logs = (self._logs / f"{self.name}-pods").glob(f"kube-system_calico-ebpf-*/{daemon}/*.log")
        return max(logs, key=lambda path: path.stat().st_mtime, default=self._logs / f"{self.name}-{daemon}.log")

    def processes(self, daemon: str) -> list[int]:
        """The ids, as the host knows them, of a daemon's processes in its container."""
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has just ended
                words = (directory / "cmdline").read_bytes().split(b"\0")
                here = f"/{self.space.group.parent.name}/{self.space.group.name}/" in (directory / "cgroup").read_text()
                if here and b"bpf.cli" in words and daemon.encode() in words:
                    found.append(int(directory.name))
        return found

    def reserved(self) -> set[str]:
        """The addresses that are reserved for pods."""
        directory = self.space.path("/var/lib/cni/networks/calico-ebpf")
        return {path.name for path in directory.iterdir() if path.name[0].isdigit() or ":" in path.name}

    def reboot(self) -> None:
        """What a boot does: every process ends, and kernel state and what lies in memory is lost; the disk stays, and
        with it kubelet's, containerd's and our files. Then containerd and kubelet start."""
        for daemon in (KUBELET, CONTAINERD):
            self.kill(daemon)
        cgroups.kill_below(self.space.group)
        self.space.run("sh", "-c", POWER_OFF)
        self._killed = time.time()
        self.start(CONTAINERD)
        self._start_kubelet()

    def _start_kubelet(self) -> None:
        """As systemd does: it ends where containerd is not there yet, and is started again."""
        for _ in range(KUBELET_TRIES):
            self.start(KUBELET)
            try:
                self._daemons[KUBELET].wait(KUBELET_S)
            except subprocess.TimeoutExpired:
                return
        raise LabError(f"{self.name}: kubelet does not start:\n{self.tail(KUBELET)}")

    def _is_ready(self) -> bool:
        """Whether a controller that began after the last kill has written everything, and the CNI server answers."""
        try:
            report = json.loads(self.space.path(REPORT).read_bytes())
        except FileNotFoundError:
            return False
        asked = self.space.run("sh", "-c", ASK, check=False)
        return report["written"] > self._killed and report["synced"] and not asked.returncode

    def _archives(self) -> list[Path]:
        return [*super()._archives(), IMAGE]


def _kubelet_config(authority: Path, cluster_dns: list[str]) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(authority)},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "clusterDNS": cluster_dns,
        "clusterDomain": "cluster.local",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%"},
        "failCgroupV1": False,
        "failSwapOn": False,
        "imageGCHighThresholdPercent": 100,
        "kubeAPIBurst": 200,
        "kubeAPIQPS": 100,
        "maxPods": PODS_MAX,
        "oomScoreAdj": 0,
        "resolvConf": "/etc/resolv.conf",
        "volumePluginDir": "/var/lib/kubelet/plugins",
    }
