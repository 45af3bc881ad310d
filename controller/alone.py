# SPDX-License-Identifier: Apache-2.0
"""One writer to the maps: a lock that the controller holds while it runs, and each bpftool that it started.

A controller that is killed leaves a batch running; its successor must not read the maps before that has ended.
"""

import fcntl
import os
import time
from pathlib import Path

import structlog

from controller.errors import AloneError

log = structlog.get_logger()

LOCK_NAME = "controller.lock"
# As long as an orphaned batch may take; after that it is another controller that lives.
WAIT_S = 60.0
LOOK_S = 0.02


def lock(run_dir: Path) -> int:
    """Takes the lock, for as long as the process and those that inherit it live; returns its descriptor.

    Raises:
        AloneError: another controller runs.
    """
    path = run_dir / LOCK_NAME
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + WAIT_S
    told = False
    while not _taken(descriptor):
        if not told:
            told = True
            log.warning("waiting-for-another-controller", path=str(path), at_most_s=WAIT_S)
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise AloneError(f"another controller runs: it holds {path}")
        time.sleep(LOOK_S)
    return descriptor


def is_lost(descriptor: int, run_dir: Path) -> bool:
    """Whether somebody has removed the file since: what else stood beside it is gone as well, and nobody would be kept
    from running beside this controller."""
    try:
        return os.fstat(descriptor).st_ino != (run_dir / LOCK_NAME).stat().st_ino
    except FileNotFoundError:
        return True


def is_held(path: Path) -> bool:
    """Whether a controller runs, or a bpftool of one that was killed."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two who ask do not find each other.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
