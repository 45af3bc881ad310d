# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this package's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.tests.mounts import mounted_bpffs


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    """A BPF file system of this test's own."""
    with mounted_bpffs(tmp_path) as point:
        yield point
