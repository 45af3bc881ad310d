# SPDX-License-Identifier: Apache-2.0
"""conf/base/daemonset.yaml agrees with the code that it starts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller.health import PROBES_ADDRESS

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def containers() -> dict[str, dict[str, Any]]:
    """Those of the pod, by name."""
    spec = yaml.safe_load((CONF / "base/daemonset.yaml").read_text())["spec"]["template"]["spec"]
    return {container["name"]: container for container in spec["containers"]}


@pytest.mark.parametrize("probe", ["startupProbe", "livenessProbe", "readinessProbe"])
def test_controller_is_probed_where_it_alone_answers(containers: dict[str, dict[str, Any]], probe: str) -> None:
    """Not at kube-proxy's address, whose answer would be kube-proxy's where both run."""
    asked = containers["controller"][probe]["httpGet"]
    assert f"{asked['host']}:{asked['port']}" == PROBES_ADDRESS


# Puts something small where `install` puts it.
INSTALL = """
import sys
from pathlib import Path
from controller.commands.install import install
root = Path(sys.argv[1])
list(install(root / "host", root / "bundle-1", [root / "given"], "n1"))
"""
LIBRARY = "usr/local/lib/calico-ebpf"
PUT = (
    "opt/cni/bin/calico-ebpf",
    "opt/cni/bin/loopback",
    f"{LIBRARY}/bundle-1/bin/oneshot",
    f"{LIBRARY}/current",
    f"{LIBRARY}/oneshot",
    "usr/local/bin/calico-ebpf",
    "etc/calico-ebpf/config.yaml",
    "etc/calico-ebpf/10-calico-ebpf.conflist",
)


@contextmanager
def keeping(script: str, directory: Path, calico_ebpf: str) -> Iterator[subprocess.Popen[bytes]]:
    """The script of the container `keep` on directory/host, with another command in the place of the command line, and
    without long pauses."""
    for name in ("bundle-1/bin/oneshot", "bundle-1/cni/calico-ebpf", "bundle-1/cni/loopback", "given/config.yaml"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    (directory / "given/10-calico-ebpf.conflist").touch()
    (directory / "host").mkdir()
    command = directory / "calico-ebpf"
    command.write_text(f"#!/bin/sh\n{calico_ebpf}\n")
    command.chmod(0o755)
    script = script.replace("cd /host", f"cd {directory}/host").replace("sleep 5", "sleep 0.05")
    environment = os.environ | {"PATH": f"{directory}:{os.environ['PATH']}", "PYTHONPATH": str(CONF.parent)}
    with subprocess.Popen(["sh", "-c", script], env=environment, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def eventually(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.02)


def test_keep_brings_back_whatever_was_wiped(containers: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Each thing that `install` puts on a node, and it ends at once when it is told to."""
    (script,) = containers["keep"]["args"]
    (tmp_path / "install.py").write_text(INSTALL)
    host = tmp_path / "host"

    def there() -> set[str]:
        return {name for name in PUT if os.path.lexists(host / name)}

    with keeping(script, tmp_path, f"exec {sys.executable} {tmp_path}/install.py {tmp_path}") as process:
        eventually(lambda: there() == set(PUT))
        for name in PUT:
            (host / name).unlink()
            eventually(lambda: there() == set(PUT))
        process.send_signal(signal.SIGTERM)
        process.wait(5)


def test_keep_that_cannot_install_ends(containers: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    """Kubelet starts it again, on directories that are there."""
    (script,) = containers["keep"]["args"]
    with keeping(script, tmp_path, "exit 1") as process:
        assert process.wait(10) == 1
