# SPDX-License-Identifier: Apache-2.0
"""A node of the lab: our executables and files at their standard paths, and our two daemons."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bpf.pins import Pins
from e2e.lab import runtime, space
from e2e.lab.addresses import Dual
from e2e.lab.errors import LabError
from e2e.lab.runtime import Pod
from e2e.lab.space import Space

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(sys.prefix) / "bin" / "calico-ebpf"
LAUNCHER = ROOT / "build" / "bin" / "calico-ebpf"
CONF = ROOT / "conf" / "base" / "10-calico-ebpf.conflist"
CONFIG_FILE = "/etc/calico-ebpf/config.yaml"
ONE_SHOT = "/usr/local/lib/calico-ebpf/oneshot"
COMMAND = "/usr/local/bin/calico-ebpf"
PINS = str(Pins(Path("/sys/fs/bpf")).root)
CNI_SERVER, CONTROLLER = "cni-server", "controller"
REPORT = "/run/calico-ebpf/controller.json"
START_S = 60


class Node:
    """A node.

    Attributes:
        index: counts from 1; the node's pod ranges follow from it.
        address: in the underlay.
        pods: those made here and not yet removed, by name.
    """

    def __init__(self, space: Space, index: int, address: Dual, logs: Path) -> None:
        self.space = space
        self.index = index
        self.address = address
        self.pods: dict[str, Pod] = {}
        self._logs = logs
        self._settings: dict[str, object] = {}
        self._daemons: dict[str, subprocess.Popen[str]] = {}

    @staticmethod
    def hold(name: str, group: Path, lab_dir: Path, keep: bool) -> Space:
        """Makes the space of such a node."""
        return space.hold(name, group, lab_dir, keep)

    @property
    def name(self) -> str:
        return self.space.name

    def install(self, settings: Mapping[str, object]) -> None:
        """Puts our files where an installation does.

        Raises:
            LabError: something is not built yet.
        """
        if not LAUNCHER.exists():
            raise LabError(f"{LAUNCHER} is missing: `make build` makes it")
        self._put(f"{runtime.CNI_BIN}/calico-ebpf", LAUNCHER.read_bytes(), 0o755)
        self._put(runtime.CNI_CONF, CONF.read_bytes(), 0o644)
        self.run_from(ROOT)
        self._settings = {"node_name": self.name, **settings}
        self.configure()

    def run_from(self, tree: Path) -> None:
        """Has daemons that are started, commands and the one-shot process run the sources of a tree."""
        python = f"#!/bin/sh\nPYTHONPATH={tree} exec"
        self._put(ONE_SHOT, f"{python} {sys.executable} -P -m cni.oneshot\n".encode(), 0o755)
        self._put(COMMAND, f'{python} {PROGRAM} "$@"\n'.encode(), 0o755)

    def configure(self, **changes: object) -> None:
        """Changes settings in the node's file; daemons follow when they are started again."""
        self._settings |= changes
        self._put(CONFIG_FILE, yaml.safe_dump(self._settings).encode(), 0o644)

    def start(self, daemon: str) -> None:
        """Starts a daemon, CNI_SERVER or CONTROLLER."""
        self._daemons[daemon] = self.space.start(COMMAND, daemon, log=self.log(daemon))

    def runs(self, daemon: str) -> bool:
        """Whether a daemon was started, and neither killed nor stopped since."""
        return daemon in self._daemons

    def kill(self, daemon: str) -> None:
        """Kills a daemon with SIGKILL."""
        process = self._daemons.pop(daemon)
        process.kill()
        process.wait()

    def stop(self, daemon: str, timeout_s: float = 10) -> int:
        """Ends a daemon with SIGTERM; its exit status."""
        process = self._daemons.pop(daemon)
        process.terminate()
        return process.wait(timeout_s)

    def wait_ready(self) -> None:
        """Waits until pods can be made and Services are in force.

        Raises:
            LabError: a daemon ended, or was not ready in time; the message carries the end of its log.
        """
        self.wait(self._is_ready, CONTROLLER)

    def wait(self, condition: Callable[[], bool], daemon: str) -> None:
        """Waits until something is so that a daemon brings about.

        Raises:
            LabError: a daemon ended, or it was not so in time; the message carries the end of its log.
        """
        deadline = time.monotonic() + START_S
        while not condition():
            for name, process in self._daemons.items():
                if process.poll() is not None:
                    raise LabError(f"{self.name}: {name} ended with {process.returncode}:\n{self.tail(name)}")
            if time.monotonic() > deadline:
                raise LabError(f"{self.name}: not ready after {START_S} s:\n{self.tail(daemon)}")
            time.sleep(0.05)

    def log(self, daemon: str) -> Path:
        return self._logs / f"{self.name}-{daemon}.log"

    def tail(self, daemon: str, lines: int = 20) -> str:
        path = self.log(daemon)
        return "\n".join(path.read_text(errors="replace").splitlines()[-lines:]) if path.exists() else "(no log)"

    def add_pod(self, name: str, serve: bool = True, port_mappings: Sequence[dict[str, Any]] = ()) -> Pod:
        """Makes a pod through the CNI executable; with `serve`, one that answers at runtime.PORT."""
        pod = runtime.create(self.space, name, port_mappings)
        self.pods[name] = pod
        if serve:
            pod.serve()
        return pod

    def remove_pod(self, name: str) -> None:
        runtime.remove(self.pods.pop(name))

    def calico(self, *arguments: str) -> str:
        """What our command line prints on this node."""
        return self.space.run(COMMAND, *arguments).stdout

    def _is_ready(self) -> bool:
        """Whether the controller that runs now has written everything once, not one before it, and pods can be made."""
        controller = self._daemons.get(CONTROLLER)
        try:
            report = json.loads(self.space.path(REPORT).read_bytes())
        except FileNotFoundError:
            return False
        synced = controller is not None and report["pid"] == controller.pid and report["synced"]
        return synced and self.space.path("/run/calico-ebpf/cni.sock").exists()

    def _put(self, inside: str, content: bytes, mode: int) -> None:
        path = self.space.path(inside)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
