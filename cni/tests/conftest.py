# SPDX-License-Identifier: Apache-2.0
"""A node of its own for the tests that need root: a network namespace, a BPF file system, directories, a CNI server.

Nothing of it touches the machine's own network, and all of it is gone after the test, however that ends.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bpf import syscall
from bpf.abi import (
    MAPS,
    Backend,
    BackendKey,
    Frontend,
    FrontendFlag,
    FrontendKey,
    NodeFlag,
    NodeKey,
    Pod,
    PodKey,
    Slot,
    SlotKey,
)
from bpf.abi import Node as NodeEntry
from bpf.address import packed, text
from bpf.pins import Pins

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "build/bin/calico-ebpf"
NETNS = Path("/run/netns")
NODE_ADDRESSES = ["192.0.2.10/32", "2001:db8::10/128"]
POD_CIDRS = ["10.244.0.0/24", "fd00:10:244::/64"]


class Reply(NamedTuple):
    """What a runtime gets: the exit status, and the JSON object on standard output, or nothing."""

    status: int
    data: dict[str, Any]


class Node:
    """See `node`."""

    def __init__(self, directory: Path, name: str) -> None:
        self.directory = directory
        self.name = name
        self.run_dir = directory / "run"
        self.networks = directory / "networks"
        self.pins = Pins(directory / "bpffs")
        self.server: subprocess.Popen[str] | None = None
        self.environment = {
            "PATH": os.environ["PATH"],
            "CALICO_EBPF_RUN_DIR": str(self.run_dir),
            "CALICO_EBPF_BPFFS": str(directory / "bpffs"),
            "CALICO_EBPF_CNI_NETWORKS_DIR": str(self.networks),
            "CALICO_EBPF_OBJECTS_DIR": str(ROOT / "build/bpf"),
            "CALICO_EBPF_ONESHOT": str(directory / "oneshot"),
        }

    def start_server(self, *flags: str, through: Sequence[str] = ()) -> None:
        """Starts a CNI server, by a command that executes its arguments where one is given; returns when it listens."""
        command = self.inside(*through, sys.executable, "-m", "bpf.cli", "cni-server", *flags)
        self.server = subprocess.Popen(command, cwd=ROOT, env=self.environment, text=True, stderr=self._log())
        wait_for(lambda: (self.run_dir / "cni.sock").exists() or self.server.poll() is not None, self.log)
        assert self.server.poll() is None, self.log()

    def stop_server(self, number: int = signal.SIGTERM) -> int:
        """Ends the server by a signal; returns its exit status."""
        assert self.server
        self.server.send_signal(number)
        return self.wait_server()

    def wait_server(self) -> int:
        """The exit status of a server that ends."""
        assert self.server
        status = self.server.wait(20)
        self.server = None
        return status

    def call(self, verb: str, pod: str, config: object, **variables: str) -> Reply:
        """Executes the launcher as a runtime does; `pod` names the container and its namespace alike."""
        text = config if isinstance(config, str) else json.dumps(config)
        process = self.launch(verb, pod, variables)
        output, error = process.communicate(text, timeout=60)
        assert "Traceback" not in error, error
        return Reply(process.returncode, json.loads(output) if output else {})

    def launch(self, verb: str, pod: str, variables: Mapping[str, str]) -> "subprocess.Popen[str]":
        environment = {
            **self.environment,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": pod,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": str(NETNS / self.netns(pod)),
            "CNI_PATH": "/usr/lib/cni",
            **variables,
        }
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.inside(str(LAUNCHER)), env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe
        )

    def inside(self, *command: str) -> list[str]:
        """A command, to be run in this node's network namespace (`ip netns exec` would hide bpffs)."""
        return ["nsenter", f"--net={NETNS / self.name}", *command]

    def netns(self, pod: str) -> str:
        return f"{self.name}-{pod}"

    @contextmanager
    def pods(self, *names: str) -> Iterator[None]:
        """The network namespaces of pods."""
        with ExitStack() as stack:
            for name in names:
                stack.enter_context(namespace(self.netns(name)))
            yield

    def ip(self, *arguments: str) -> list[dict[str, Any]]:
        """What `ip` shows on the node."""
        return ip(self.name, *arguments)

    def pod_entry(self, address: str) -> Pod | None:
        fd = self.pins.open_map("pods")
        try:
            value = syscall.map_lookup(fd, PodKey(packed(address)).pack(), MAPS["pods"].value_size)
        finally:
            os.close(fd)
        return Pod.unpack(value) if value else None

    def host_ports(self) -> dict[tuple[str, int, int], tuple[str, int]]:
        """Where host ports are met: address, port, protocol -> the pod's address and port, over filled slots."""
        found = {}
        for key, value in self.entries("frontends").items():
            frontend = Frontend.unpack(value)
            if frontend.flags & FrontendFlag.HOST_PORT:
                assert (frontend.slot_count, frontend.local_count) == (1, 1)
                slot = Slot.unpack(self.entries("slots")[SlotKey(frontend.service_id, 0).pack()])
                backend = Backend.unpack(self.entries("backends")[BackendKey(slot.backend_id).pack()])
                met = FrontendKey.unpack(key)
                assert met.protocol == backend.protocol
                found[text(met.address), met.port, met.protocol] = (text(backend.address), backend.port)
        return found

    def entries(self, name: str) -> dict[bytes, bytes]:
        """All of a pinned map."""
        with self.pins.opened_map(name) as fd:
            return dict(syscall.map_entries(fd, MAPS[name].key_size, MAPS[name].value_size))

    def write(self, name: str, key: bytes, value: bytes | None) -> None:
        """Writes an entry as the controller does, or deletes it."""
        with self.pins.opened_map(name) as fd:
            if value is None:
                syscall.map_delete(fd, key)
            else:
                syscall.map_update(fd, key, value)

    def know_own_address(self) -> None:
        """As the controller does when it has looked at the node."""
        self.write("nodes", NodeKey(packed("127.0.0.1")).pack(), NodeEntry(NodeFlag.OWN).pack())

    def leftovers(self) -> dict[str, list[str]]:
        """All that pods leave when they are not removed whole."""
        maps = ("pods", "frontends", "slots", "backends")
        entries = [key.hex() for name in maps for key in self.entries(name)]
        files = [str(path.name) for path in self.networks.glob("*/*")]
        return {
            "links": [link["ifname"] for link in self.ip("link") if link["ifname"] != "lo"],
            "routes": [
                route["dst"] for family in "46" for route in self.ip(f"-{family}", "route") if route["dev"] != "lo"
            ],
            "entries": entries,
            "addresses": [name for name in files if name != "lock" and not name.startswith("last_reserved_ip.")],
            "records": [path.name for path in (self.run_dir / "state/links").glob("*")],
        }

    def log(self) -> str:
        return (self.directory / "server.log").read_text()

    def _log(self) -> int:
        return os.open(self.directory / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)


CLEAN: dict[str, list[str]] = {"links": [], "routes": [], "entries": [], "addresses": [], "records": []}


def ip(netns: str, *arguments: str) -> list[dict[str, Any]]:
    command = ["ip", "-n", netns, "-json", "-details", *arguments]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(process.stdout or "[]")


def wait_for(condition: Any, complaint: Any, timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, complaint()
        time.sleep(0.02)


@contextmanager
def namespace(name: str) -> Iterator[None]:
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)


@contextmanager
def mounted(kind: str, path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", kind, kind, path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def bare_node(tmp_path: Path) -> Iterator[Node]:
    """A node without a server: the launcher falls back to the one-shot process."""
    name = f"cni{os.getpid()}"
    with namespace(name), mounted("bpf", tmp_path / "bpffs"), mounted("tmpfs", tmp_path / "run"):
        node = Node(tmp_path, name)
        for arguments in (
            ["link", "set", "lo", "up"],
            *(["addr", "add", item, "dev", "lo"] for item in NODE_ADDRESSES),
        ):
            subprocess.run(["ip", "-n", name, *arguments], check=True)
        content = {"name": name, "pod_cidrs": POD_CIDRS, "mtu": 1450}
        (node.run_dir / "node.json").write_text(json.dumps(content))
        (tmp_path / "oneshot").write_text(f"#!/bin/sh\ncd {ROOT}\nexec {sys.executable} -I -m cni.oneshot\n")
        (tmp_path / "oneshot").chmod(0o755)
        (tmp_path / "server.log").write_text("")
        try:
            yield node
        finally:
            if node.server:
                node.stop_server(signal.SIGKILL)


@pytest.fixture
def node(bare_node: Node) -> Node:
    """A node with its CNI server."""
    bare_node.start_server()
    return bare_node


@pytest.fixture(params=["server", "oneshot"])
def either_node(request: pytest.FixtureRequest, bare_node: Node) -> Node:
    """A node where the server carries out the verbs, and one where the one-shot process does."""
    if request.param == "server":
        bare_node.start_server()
    return bare_node
