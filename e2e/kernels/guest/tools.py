# SPDX-License-Identifier: Apache-2.0
"""What the tests call in the guest beside bpf(2): devices, attachments, clients and servers."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from bpf import attach
from bpf.abi import Config
from bpf.pins import Pins
from bpf.tests import kernel
from bpf.tests.kernel import Programs

CLIENT = "/usr/bin/client"

# IP_VS_CONN_F_MASQ of linux/ip_vs.h
IPVS_MASQUERADE = 0

_loaded: list[Programs] = []


def load_once(config: Config, sizes: dict[str, int]) -> Programs:
    """As kernel.load, but every call returns what the first one has loaded: the verifier takes its time here."""
    if not _loaded:
        _loaded.append(kernel.load(config, sizes))
    return _loaded[0]


def run(*command: str) -> str:
    """A command's standard output. Raises RuntimeError, with its complaint."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)}: {process.stderr.strip()}")
    return process.stdout


def ip(namespace: str, script: str) -> None:
    """Runs lines of ip(8) in a named network namespace, or in the guest's own where it is ''."""
    where = ["-n", namespace] if namespace else []
    process = subprocess.run(["ip", *where, "-batch", "-"], input=script, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"ip {namespace}: {process.stderr.strip()}")


def write(values: dict[str, str]) -> None:
    for path, value in values.items():
        Path(path).write_text(value)


def ifindex(device: str) -> int:
    return int(Path(f"/sys/class/net/{device}/ifindex").read_text())


def attach_device(device: str, hooks: dict[str, int]) -> None:
    """Attaches programs, by hook and descriptor, to a device of the guest's own namespace."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    with IPRoute() as netlink:
        try:
            attach.add_clsact(netlink, ifindex(device))
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        for hook, program in hooks.items():
            attach.attach_device(netlink, ifindex(device), hook, program)


def attach_cgroup() -> None:
    attach.attach_cgroup(Pins(Path(_loaded[0].directory) / "bpffs"), Path("/sys/fs/cgroup"))


def add_ipvs(address: str, port: int, server: str, server_port: int) -> None:
    """A TCP service of IPVS's, as kube-proxy would make it, with one server behind it."""
    from pyroute2 import IPVS, IPVSDest, IPVSService

    with IPVS() as ipvs:
        service = IPVSService(addr=address, port=port, protocol=socket.IPPROTO_TCP, sched_name="rr")
        ipvs.service("add", service=service)
        ipvs.dest("add", service=service, dest=IPVSDest(addr=server, port=server_port, fwd_method=IPVS_MASQUERADE))


def join(device: str, namespace: str, other: str) -> None:
    """Joins a TUN device of the guest's own namespace with one of a named one, until they are gone."""
    words = ("-S", "/tree/e2e/lab/vpn.py", device, f"/run/netns/{namespace}", other)
    vpn = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert vpn.stdout
    if vpn.stdout.readline() != "ready\n":
        raise RuntimeError(f"{device} and {other} of {namespace} are not joined")


def switch_offload(device: str, word: str) -> None:
    """Switches an offload of a device of the guest's own namespace: `tx=off`."""
    run(sys.executable, "-S", "/tree/e2e/lab/offloads.py", device, word)


def serve(namespace: str, protocol: str, address: str, port: int) -> int:
    """Starts a server that answers with its client's address and port; its process, once it listens."""
    server = subprocess.Popen(
        _in(namespace, CLIENT, "echo", protocol, address, str(port)), stdout=subprocess.PIPE, text=True
    )
    assert server.stdout
    if server.stdout.readline() != "ready\n":
        raise RuntimeError(f"no server at {protocol} {address} {port}")
    return server.pid


def stop(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def ask(namespace: str, protocol: str, address: str, port: int, patience_s: int, source: str, size: int = 1) -> str:
    """What a server answers: the address and port as which it saw the asker; "" where nothing answers in time.

    Args:
        size: of the request in bytes, and of a datagram's answer.
    """
    words = ["ask", protocol, address, str(port), str(patience_s), source, str(size)]
    return subprocess.run(_in(namespace, CLIENT, *words), capture_output=True, text=True, check=False).stdout.strip()


def _in(namespace: str, *command: str) -> list[str]:
    return ["ip", "netns", "exec", namespace, *command] if namespace else list(command)
