# SPDX-License-Identifier: Apache-2.0
"""What a guest's root file system is made of: the archive's format, and modules in the order of their insertion."""

import lzma
from pathlib import Path

import pytest

from e2e.kernels import modules
from e2e.kernels.cpio import Archive


def entries(data: bytes) -> list[tuple[str, int, bytes]]:
    """(path, mode, content) of an archive, read by the format's description."""
    found, place = [], 0
    while place < len(data):
        assert data[place : place + 6] == b"070701"
        fields = [int(data[place + 6 + 8 * n : place + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[place + 110 : place + 110 + name_size - 1].decode()
        start = place + (110 + name_size + 3 & ~3)
        found.append((name, mode, data[start : start + size]))
        place = start + (size + 3 & ~3)
    return found


def test_archive_has_parents_first_and_files_once(tmp_path: Path) -> None:
    """Directories come before what is in them; a path that is given twice is written once."""
    with Archive(tmp_path / "archive") as archive:
        archive.write("/usr/bin/tool", b"first")
        archive.write("/usr/bin/tool", b"second")
    assert entries((tmp_path / "archive").read_bytes()) == [
        ("usr", 0o40755, b""),
        ("usr/bin", 0o40755, b""),
        ("usr/bin/tool", 0o100755, b"first"),
        ("TRAILER!!!", 0, b""),
    ]


def module(depends: str) -> bytes:
    return b"\x7fELF\0license=GPL\0depends=" + depends.encode() + b"\0name=any\0"


def test_modules_come_after_what_they_need(tmp_path: Path) -> None:
    """Each once, unpacked, dashes or not; what is built in is left out."""
    (tmp_path / "modules.builtin").write_text("kernel/net/core/built-in-one.ko\n")
    (tmp_path / "top.ko.xz").write_bytes(lzma.compress(module("left-side,right,built_in_one")))
    (tmp_path / "left_side.ko").write_bytes(module("base"))
    (tmp_path / "right.ko").write_bytes(module("base"))
    (tmp_path / "base.ko").write_bytes(module(""))
    found = dict(modules.insertion(tmp_path, ["top", "base", "built_in_one"]))
    assert list(found) == ["base", "left_side", "right", "top"]
    assert found["top"] == module("left-side,right,built_in_one")


def test_module_that_is_missing_is_named(tmp_path: Path) -> None:
    """A kernel without a module that the tests need is an error, not a test less."""
    (tmp_path / "modules.builtin").write_text("")
    with pytest.raises(FileNotFoundError, match="no module vxlan"):
        list(modules.insertion(tmp_path, ["vxlan"]))
