# SPDX-License-Identifier: Apache-2.0
"""The lock of the controller: who waits for whom."""

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_daemons_are_kept_off_while_their_lock_is_held_in_their_place(tmp_path: Path) -> None:
    """One that was waiting is not to go on beside a file that was taken away."""
    os.close(alone.lock(tmp_path))
    path = tmp_path / alone.LOCK_NAME
    with ThreadPoolExecutor(1) as pool, alone.kept_off("controller", path, 0):
        waiting = pool.submit(alone.lock, tmp_path)
        time.sleep(2 * alone.LOOK_S)
        assert not waiting.done()
        path.unlink()
        held = alone.is_held(path)
    assert not held
    with pytest.raises(AloneError, match="was removed meanwhile"):
        waiting.result()


def test_daemon_that_ends_in_time_is_waited_for(tmp_path: Path) -> None:
    """And one that does not is named, with what to do; one that never ran is no obstacle."""
    path = tmp_path / alone.LOCK_NAME
    with alone.kept_off("controller", path, 0):
        running = alone.lock(tmp_path)
    with pytest.raises(AloneError, match=r"controller runs: .*stop it"), alone.kept_off("controller", path, 0):
        pass
    threading.Timer(0.1, os.close, (running,)).start()
    with alone.kept_off("controller", path, 10):
        assert alone.is_held(path)


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
