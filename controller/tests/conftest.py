# SPDX-License-Identifier: Apache-2.0
"""Fixtures of this package's tests, and how long those of properties go on that do not say so themselves: some seconds,
or as long as `make soak` lets them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from bpf import files
from bpf.tests.mounts import mounted_bpffs

_PATIENT: dict[str, Any] = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}

settings.register_profile("short", max_examples=50, stateful_step_count=30, **_PATIENT)
settings.register_profile("soak", max_examples=3000, stateful_step_count=50, **_PATIENT)
settings.load_profile("short")


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
