# SPDX-License-Identifier: Apache-2.0
"""The seam to the pinned maps: read one, how many entries it takes, write a list of operations in order."""

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import NamedTuple, Protocol

from bpf import bpftool, syscall
from bpf.errors import BatchError
from bpf.pins import Pins
from controller import mapread

# bpftool is started in the time that so many entries take by system calls of our own.
FEW_OPS = 256


class Op(NamedTuple):
    """An entry to write; value None: to delete."""

    map: str
    key: bytes
    value: bytes | None


class Maps(Protocol):
    def read(self, name: str) -> dict[bytes, bytes]:
        """Every entry of a map. Raises BpfError."""

    def capacity(self, name: str) -> int:
        """max_entries. Raises BpfError."""

    def write(self, ops: Iterable[Op]) -> None:
        """Runs `ops` in order, perhaps while later ones are still made; deleting what is gone already is no error.

        Raises:
            BpfError: one failed; those before it are done, none after it.
        """

    def await_readers(self) -> None:
        """Returns when no program that ran when this was called is still at work."""


class PinnedMaps:
    """The kernel's maps, written by bpftool, but for a few entries; implements Maps.

    Args:
        held: descriptors that bpftool holds, too, while it writes: see `controller.alone`.
    """

    def __init__(self, pins: Pins, held: Sequence[int] = ()) -> None:
        self._pins = pins
        self._held = held

    def read(self, name: str) -> dict[bytes, bytes]:
        return mapread.read(self._pins, name)

    def holds(self, name: str, key: bytes) -> bool:
        """Whether the kernel has an entry under a key. Raises BpfError."""
        with self._pins.opened_map(name) as fd:
            return syscall.map_lookup(fd, key, syscall.map_info(fd).value_size) is not None

    def capacity(self, name: str) -> int:
        return self._info(name).max_entries

    def write(self, ops: Iterable[Op]) -> None:
        rest = iter(ops)
        first = list(islice(rest, FEW_OPS + 1))
        if len(first) > FEW_OPS:
            self._write_many(chain(first, rest))
        else:
            self._write_few(first)

    def await_readers(self) -> None:
        syscall.await_programs()

    def _write_few(self, ops: Iterable[Op]) -> None:
        opened: dict[str, int] = {}
        try:
            for op in ops:
                fd = opened.get(op.map)
                if fd is None:
                    fd = opened[op.map] = self._pins.open_map(op.map)
                _write(fd, op)
        finally:
            for fd in opened.values():
                os.close(fd)

    def _write_many(self, ops: Iterable[Op]) -> None:
        # By id, a line takes bpftool a third less than by path.
        ids: dict[str, int] = {}
        try:
            bpftool.batch(self._lines(ops, ids), self._held)
        except BatchError as error:
            names = [name for name, number in ids.items() if f" id {number} " in error.line]
            raise BatchError(f"map {', '.join(names)}: {error}", error.line, error.full) from error

    def _lines(self, ops: Iterable[Op], ids: dict[str, int]) -> Iterator[str]:
        for op in ops:
            number = ids.get(op.map)
            if number is None:
                number = ids[op.map] = self._info(op.map).map_id
            yield _line(op, number)

    def _info(self, name: str) -> syscall.MapInfo:
        with self._pins.opened_map(name) as fd:
            return syscall.map_info(fd)


def _write(fd: int, op: Op) -> None:
    """Raises BatchError."""
    try:
        if op.value is None:
            syscall.map_delete(fd, op.key)
        else:
            syscall.map_update(fd, op.key, op.value)
    except OSError as error:
        raise BatchError(f"map {op.map}: {error}", f"{op.map} {op.key.hex()}", error.errno in syscall.FULL) from error


def _line(op: Op, map_id: int) -> str:
    if op.value is None:
        return f"map delete id {map_id} key hex {op.key.hex(' ')}"
    return f"map update id {map_id} key hex {op.key.hex(' ')} value hex {op.value.hex(' ')}"
