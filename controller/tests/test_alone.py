# SPDX-License-Identifier: Apache-2.0
"""The lock of the controller: who waits for whom."""

import os
import subprocess
from pathlib import Path

import pytest

from controller import alone
from controller.errors import AloneError


def test_second_controller_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says which file the first one holds; with the first one gone, the lock can be had."""
    monkeypatch.setattr(alone, "WAIT_S", 0.0)
    first = alone.lock(tmp_path)
    with pytest.raises(AloneError, match=r"controller\.lock"):
        alone.lock(tmp_path)
    os.close(first)
    os.close(alone.lock(tmp_path))


def test_batch_that_outlives_its_controller_is_waited_for(tmp_path: Path) -> None:
    """The descriptor that a child inherited keeps the lock, until the child ends."""
    first = alone.lock(tmp_path)
    orphan = subprocess.Popen(["sleep", "0.3"], pass_fds=[first])
    os.close(first)
    try:
        os.close(alone.lock(tmp_path))
        assert orphan.poll() is not None
    finally:
        orphan.kill()
        orphan.wait()
