# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this package's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import loader
from bpf.pins import Pins
from bpf.tests import datapath as dp
from bpf.tests import profiles, trivial
from bpf.tests.datapath import Datapath
from bpf.tests.mounts import mounted_bpffs

profiles.register()


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of this test's own."""
    with mounted_bpffs(tmp_path) as point:
        yield point


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with trivial objects in the place of all."""
    directory = tmp_path_factory.mktemp("objects")
    for name in (*loader.OBJECTS, loader.SWEEP):
        trivial.build(directory, name, name.removesuffix(".o"))
    return directory


@pytest.fixture
def pins(bpffs: Path) -> Pins:
    """Where this version's maps and programs are pinned in it."""
    return Pins(bpffs)


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "run" / "load.lock"


@pytest.fixture(scope="module")
def programs() -> Iterator[Datapath]:
    """The real ones, in a network namespace where everything is routed out of lo, which is the underlay."""
    with dp.routed_namespace(), dp.loaded() as programs:
        yield programs


@pytest.fixture
def datapath(programs: Datapath) -> Datapath:
    """The programs with empty maps."""
    programs.reset()
    return programs
