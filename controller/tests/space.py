# SPDX-License-Identifier: Apache-2.0
"""A network namespace of a test's own."""

import ctypes
import os
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

CLONE_NEWNET = 0x40000000
PATIENCE_S = 60

Answer = TypeVar("Answer")


class Space:
    """A thread that has a network namespace to itself: sockets that it opens, and commands that it runs, are there."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=_unshare)

    @property
    def path(self) -> Path:
        """Of the namespace."""
        return Path(f"/proc/{os.getpid()}/task/{self.run(threading.get_native_id)}/ns/net")

    def run(self, work: Callable[[], Answer]) -> Answer:
        return self._thread.submit(work).result(timeout=PATIENCE_S)

    def ip(self, command: str) -> list[str]:
        """The lines that ip(8) prints."""
        words = ["ip", *command.split()]
        return self.run(lambda: subprocess.run(words, check=True, capture_output=True, text=True)).stdout.splitlines()

    def close(self) -> None:
        self._thread.shutdown()


def _unshare() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
