# SPDX-License-Identifier: Apache-2.0
"""The wrappers of bpf(2), on the kernel."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import syscall
from bpf.syscall import MapInfo

pytestmark = pytest.mark.root

HASH, LRU_HASH = 1, 9


@pytest.fixture
def table() -> Iterator[int]:
    """A hash map of four-byte keys and eight-byte values that takes two entries."""
    fd = syscall.map_create(MapInfo(HASH, 0, 4, 8, 2, 0), "test")
    yield fd
    os.close(fd)


def test_map_create_makes_what_map_info_tells(table: int) -> None:
    """Type, sizes and flags are those asked for; the map has an id."""
    info = syscall.map_info(table)
    assert (info.map_type, info.key_size, info.value_size, info.max_entries, info.map_flags) == (HASH, 4, 8, 2, 0)
    assert info.map_id > 0


def test_map_create_refused_names_the_map() -> None:
    """What the kernel refuses is an OSError that says of which map."""
    with pytest.raises(OSError, match="creating map broken"):
        syscall.map_create(MapInfo(HASH, 0, 0, 8, 2, 0), "broken")


def test_map_lookup_of_missing_key_is_none(table: int) -> None:
    """A key without a value is no error."""
    assert syscall.map_lookup(table, b"abcd", 8) is None


def test_map_update_then_lookup_and_delete(table: int) -> None:
    """An entry is there once written, and gone once deleted; a second delete says that it was."""
    syscall.map_update(table, b"abcd", b"12345678")
    assert syscall.map_lookup(table, b"abcd", 8) == b"12345678"
    assert syscall.map_delete(table, b"abcd")
    assert not syscall.map_delete(table, b"abcd")


@pytest.mark.parametrize(
    ("key", "flags", "error"),
    [
        (b"cccc", syscall.ANY, errno.E2BIG),
        (b"aaaa", syscall.NOEXIST, errno.EEXIST),
        (b"cccc", syscall.EXIST, errno.ENOENT),
    ],
)
def test_map_update_refused_keeps_the_errno(table: int, key: bytes, flags: int, error: int) -> None:
    """A full map, an entry that is there or is not: each is the kernel's own errno."""
    for present in (b"aaaa", b"bbbb"):
        syscall.map_update(table, present, bytes(8))
    with pytest.raises(OSError, match="map update") as caught:
        syscall.map_update(table, key, bytes(8), flags)
    assert caught.value.errno == error


@pytest.mark.parametrize("map_type", [HASH, LRU_HASH])
@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_map_entries_reads_every_entry_once(map_type: int, count: int) -> None:
    """Batched reading gives each entry once, over as many batches as it takes."""
    fd = syscall.map_create(MapInfo(map_type, 0, 4, 8, 1 << 16, 0), "test")
    try:
        expected = {index.to_bytes(4, "little"): index.to_bytes(8, "big") for index in range(count)}
        for key, value in expected.items():
            syscall.map_update(fd, key, value)
        found = list(syscall.map_entries(fd, 4, 8))
    finally:
        os.close(fd)
    assert len(found) == count
    assert dict(found) == expected


def test_map_entries_grows_for_a_bucket_larger_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel answers buckets whole: where one does not fit, more is asked for."""
    monkeypatch.setattr(syscall, "BATCH_ENTRIES", 1)
    fd = syscall.map_create(MapInfo(HASH, 0, 4, 8, 512, 0), "test")
    try:
        for index in range(512):
            syscall.map_update(fd, index.to_bytes(4, "little"), bytes(8))
        assert len(set(syscall.map_entries(fd, 4, 8))) == 512
    finally:
        os.close(fd)


def test_obj_pin_then_get_is_the_same_map(table: int, bpffs: Path) -> None:
    """What is pinned is found again under its path."""
    syscall.obj_pin(table, bpffs / "test")
    again = syscall.obj_get(bpffs / "test")
    try:
        assert syscall.map_info(again) == syscall.map_info(table)
    finally:
        os.close(again)


def test_obj_get_of_missing_pin_is_file_not_found(bpffs: Path) -> None:
    """Nothing pinned is FileNotFoundError, with the path."""
    with pytest.raises(FileNotFoundError, match="absent"):
        syscall.obj_get(bpffs / "absent")
