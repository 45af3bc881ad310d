# SPDX-License-Identifier: Apache-2.0
"""The watch of a directory."""

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue

import pytest

from controller import inotify

# More descriptors than select(2) knows.
MANY = 1100
PATIENCE_S = 10


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


def test_file_is_followed_and_others_beside_it_are_not(tmp_path: Path) -> None:
    """Its lock, which who reads it takes; at first it is looked at in any case."""
    told: Queue[None] = Queue()
    inotify.follow("test", tmp_path, lambda: told.put(None), "denied")
    told.get(timeout=PATIENCE_S)
    (tmp_path / "denied.lock").write_text("")
    (tmp_path / "denied.new").write_text("")
    with pytest.raises(Empty):
        told.get(timeout=0.1)
    (tmp_path / "denied.new").rename(tmp_path / "denied")
    told.get(timeout=PATIENCE_S)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.ENOMEM, errno.EACCES])
def test_file_that_cannot_be_watched_is_looked_at_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    """The node has no watch left, say: a range that is denied must not wait for ever. It is logged once, and when there
    is a watch, what happened until then has been seen."""
    told: Queue[None] = Queue()
    spent = threading.Event()
    make = inotify.DirectoryWatch

    def refuse_at_first(directory: Path) -> inotify.DirectoryWatch:
        if not spent.is_set():
            raise OSError(number, os.strerror(number), str(directory))
        return make(directory)

    monkeypatch.setattr(inotify, "DirectoryWatch", refuse_at_first)
    monkeypatch.setattr(inotify, "RETRY_S", 0.01)
    inotify.follow("test", tmp_path, lambda: told.put(None), "denied")
    for _ in range(3):
        told.get(timeout=PATIENCE_S)
    spent.set()
    with suppress(Empty):  # when nothing more comes, it is watched
        while True:
            told.get(timeout=0.5)
    (tmp_path / "denied").write_text("")
    told.get(timeout=PATIENCE_S)
    assert capsys.readouterr().out.count("not-watched") == 1


def test_directory_that_is_not_there_is_waited_for_in_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing can have happened to a file of it; nor where a file has its name."""
    told: Queue[None] = Queue()
    monkeypatch.setattr(inotify, "RETRY_S", 0.01)
    (tmp_path / "state").write_text("")
    inotify.follow("test", tmp_path / "state", lambda: told.put(None), "denied")
    with pytest.raises(Empty):
        told.get(timeout=0.1)
    (tmp_path / "state").unlink()
    with pytest.raises(Empty):
        told.get(timeout=0.1)
    (tmp_path / "state").mkdir()
    told.get(timeout=PATIENCE_S)
    assert "not-watched" not in capsys.readouterr().out
