# SPDX-License-Identifier: Apache-2.0
"""The image in a container, and its bundle on a system that could not run any of it by itself.

That is Debian 11, with glibc 2.31 and without Python.
"""

import json
import os
from collections.abc import Iterator

import pytest

from e2e.lab import runtime, source
from e2e.lab.cluster import NODES, Lab
from e2e.lab.machine import CONTAINERD, Machine
from e2e.lab.node import CONTROLLER, REPORT
from e2e.lab.old import OldNode
from e2e.lab.space import LabError
from hack.image import build
from hack.image.runtime import NATIVE

pytestmark = pytest.mark.root

IMAGE = f"docker.io/library/{build.NAME}"


@pytest.fixture(scope="module")
def node() -> Iterator[OldNode]:
    """Such a node; the controller runs there from the bundle, on an API server's TLS, and no CNI server."""
    with Lab(f"test-{os.getpid()}-bundle") as lab:
        services, made = lab.api_source(), lab.add_node(OldNode)
        services.apply(NODES, [source.node(made.name, made.index, made.address)])
        made.install(services.settings())
        made.start(CONTROLLER)
        made.wait(lambda: bool(_report(made).get("synced")), CONTROLLER)
        yield made


def _report(node: OldNode) -> dict[str, object]:
    try:
        report: dict[str, object] = json.loads(node.space.path(REPORT).read_bytes())
    except FileNotFoundError:
        return {}
    return report


def test_pod_comes_and_goes_without_python_on_the_node(node: OldNode) -> None:
    """ADD, CHECK and DEL by the launcher and the one-shot process, whose Python and C library the node has not got."""
    assert node.inside("getconf", "GNU_LIBC_VERSION") == "glibc 2.31\n"
    with pytest.raises(LabError, match="status 127"):
        node.inside("sh", "-c", "python3 --version")
    with pytest.raises(LabError, match="error while loading shared libraries"):
        node.inside("/usr/local/lib/calico-ebpf/current/bin/python3", "--version")

    pod = node.add_pod("web", serve=False)
    assert node.space.run("ping", "-c", "1", "-W", "2", pod.address.v4).returncode == 0
    assert pod.address.v4 in node.calico("pods")
    runtime.check(pod)
    node.remove_pod("web")
    assert pod.address.v4 not in node.calico("pods")


def test_command_line_runs_from_the_bundle(node: OldNode) -> None:
    """It tells its version, and finds the programs that came with it loaded by the bundle's own bpftool."""
    assert node.calico("--version").startswith("calico-ebpf ")
    assert "not loaded" not in node.calico("status")
    objects = node.inside("readlink", "-f", "/usr/local/lib/calico-ebpf/current/bpf").strip()
    findings = json.loads(
        node.space.run("/usr/local/bin/calico-ebpf", "doctor", "--output", "json", check=False).stdout
    )
    assert objects in json.dumps(findings)


def test_loopback_of_the_bundle_starts(node: OldNode) -> None:
    """A container runtime executes it for every pod, with the node's C library or none."""
    answer = node.space.run(f"{runtime.CNI_BIN}/loopback", stdin="{}", env={"CNI_COMMAND": "VERSION"})
    assert "1.0.0" in json.loads(answer.stdout)["supportedVersions"]


def test_image_is_imported_and_runs(fresh: Lab) -> None:
    """containerd takes the archive, and the image's entry point is the command line."""
    machine = fresh.add_node(Machine)
    machine.start_containerd()
    machine.wait(lambda: not machine.space.run("ctr", "version", check=False).returncode, CONTAINERD)
    machine.space.run("ctr", "images", "import", str(build.image(NATIVE)), timeout_s=120)
    command = (IMAGE, "probe", "/usr/local/bin/calico-ebpf", "--version")
    assert machine.space.run("ctr", "run", "--rm", *command).stdout.startswith("calico-ebpf ")
