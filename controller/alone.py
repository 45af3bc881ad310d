# SPDX-License-Identifier: Apache-2.0
"""One writer to the maps: a lock that the controller holds while it runs, and each bpftool that it started.

A controller that is killed leaves a batch running; its successor must not read the maps before that has ended. Whoever
takes everything away holds this lock, and the CNI server's, instead of them.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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
        AloneError: another controller runs, or what it waited for took the file away.
    """
    path = run_dir / LOCK_NAME
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _taken(descriptor, 0):
        log.warning("waiting-for-another-controller", path=str(path), at_most_s=WAIT_S)
        if not _taken(descriptor, WAIT_S):
            os.close(descriptor)
            raise AloneError(f"another controller runs: it holds {path}")
    if is_lost(descriptor, run_dir):
        os.close(descriptor)
        raise AloneError(f"{path} was removed meanwhile")
    return descriptor


@contextmanager
def kept_off(daemon: str, path: Path, wait_s: float) -> Iterator[None]:
    """Holds a daemon's lock in its place, so that it does not start; one that has never run is not waited for.

    Raises:
        AloneError: the daemon runs, and did not end in time.
    """
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if not _taken(descriptor, wait_s):
                raise AloneError(f"{daemon} runs: it holds {path}; stop it, or delete its DaemonSet, and try again")
        yield


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


def _taken(descriptor: int, wait_s: float) -> bool:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(LOOK_S)
        else:
            return True
