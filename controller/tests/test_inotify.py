# SPDX-License-Identifier: Apache-2.0
"""The watch of a directory."""

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller import inotify

# More descriptors than select(2) knows.
MANY = 1100


@pytest.fixture
def many_descriptors() -> Iterator[int]:
    """One above those that select(2) knows."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], MANY + 100), max(limits[1], MANY + 100)))
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(MANY)]
    try:
        yield opened[-1]
    finally:
        for fd in opened:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_watch_waits_with_however_many_descriptors(tmp_path: Path, many_descriptors: int) -> None:
    """A thousand Services with a `healthCheckNodePort` have as many, in the same process."""
    assert many_descriptors > 1024
    watching = inotify.DirectoryWatch(tmp_path)
    never, wake = os.pipe()
    try:
        (tmp_path / "denied").write_text("")
        assert {one.name for one in watching.wait(never)} == {"denied"}
        os.write(wake, b"x")
        assert watching.wait(never) == []
    finally:
        watching.close()
        os.close(never)
        os.close(wake)
