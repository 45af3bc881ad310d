# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this package's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import files
from bpf.tests import profiles
from bpf.tests.mounts import mounted_bpffs

profiles.register()


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of this test's own."""
    with mounted_bpffs(tmp_path) as point:
        yield point


@pytest.fixture(scope="module")
def no_files() -> Iterator[None]:
    """The controller writes no files for others: each waits for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "write", lambda *_: None)
        yield
