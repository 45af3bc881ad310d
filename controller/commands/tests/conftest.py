# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the commands' tests: a node whose maps are pinned in a BPF file system of the test's own."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bpf import abi, loader, syscall
from bpf.cli import main
from bpf.pins import Pins
from bpf.settings import Settings
from bpf.tests.mounts import mounted_bpffs


class Node:
    """A node without daemons: empty maps, and directories of its own."""

    def __init__(self, bpffs: Path, directory: Path) -> None:
        self.settings = Settings(
            node_name="worker-1",
            bpffs=bpffs,
            run_dir=directory / "run",
            state_dir=directory / "state",
            cni_networks_dir=directory / "networks",
            objects_dir=directory / "objects",
            health_address="",
            metrics_address="",
        )
        for path in (self.settings.run_dir, self.settings.state_dir, self.settings.cni_networks_dir):
            path.mkdir()
        self.pins = Pins(bpffs)

    def pin(self) -> None:
        """Pins every map, small, and the directory of programs, empty."""
        sizes = {name: min(spec.max_entries, 64) for name, spec in abi.MAPS.items()}
        pins = self.pins.sized(sizes)
        loader._ensure_maps(pins, sizes)
        (pins.root / "programs-0123456789ab").mkdir()
        loader._link(pins, pins.root / "programs-0123456789ab")

    def put(self, name: str, key: Any, value: Any) -> None:
        fd = self.pins.open_map(name)
        syscall.map_update(fd, key.pack(), value.pack())
        os.close(fd)


@pytest.fixture
def bare_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node on which nothing is loaded; the commands find it by their variables."""
    with mounted_bpffs(tmp_path) as bpffs:
        node = Node(bpffs, tmp_path)
        for name in ("node_name", "bpffs", "run_dir", "state_dir", "cni_networks_dir", "objects_dir", "health_address"):
            monkeypatch.setenv(f"CALICO_EBPF_{name.upper()}", str(getattr(node.settings, name)))
        yield node
        shutil.rmtree(bpffs / "calico-ebpf", ignore_errors=True)


@pytest.fixture
def node(bare_node: Node) -> Node:
    """A node with its maps pinned."""
    bare_node.pin()
    return bare_node


@pytest.fixture
def run() -> Callable[..., Result]:
    """Runs the command line."""
    return lambda *arguments: CliRunner().invoke(main, arguments)
