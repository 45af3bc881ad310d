# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there, also after a loss of power."""

import ctypes
import errno
import os
from pathlib import Path

import pytest

from bpf import files


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bytes | list[str]]]:
    """What was written to the disk, in order: of a file its content, of a directory its names."""
    seen: list[tuple[str, bytes | list[str]]] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        seen.append((path.name, sorted(os.listdir(path)) if path.is_dir() else path.read_bytes()))

    monkeypatch.setattr(os, "fsync", fsync)
    return seen


def test_file_is_on_the_disk_before_its_name_is(tmp_path: Path, synced: list[tuple[str, bytes | list[str]]]) -> None:
    """The other way round a node boots with an empty network configuration, or launcher."""
    path = tmp_path / "net.d" / "10-x.conflist"
    files.write(path, b"new", mode=0o755)
    assert synced == [(".10-x.conflist.new", b"new"), ("net.d", ["10-x.conflist"])]
    assert path.stat().st_mode & 0o777 == 0o755


def test_file_replaces_what_a_writer_has_left_that_was_killed(tmp_path: Path) -> None:
    """Its draft, and the file of before."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    (tmp_path / ".file.new").write_bytes(b"half of something longer")
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    files.link(path, "elsewhere")
    assert path.readlink() == Path("elsewhere")
    assert os.listdir(tmp_path) == ["file"]


def test_sync_of_a_directory_that_is_none_is_an_error(tmp_path: Path) -> None:
    """The file system of one that is there is written."""
    files.sync(tmp_path)
    with pytest.raises(FileNotFoundError):
        files.sync(tmp_path / "none")


def test_sync_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From Linux 5.8 on an error of writing is told of."""

    class Failing:
        @staticmethod
        def syncfs(_: int) -> int:
            ctypes.set_errno(errno.EIO)
            return -1

    monkeypatch.setattr(files, "_libc", Failing)
    with pytest.raises(OSError, match="Input/output error"):
        files.sync(tmp_path)
