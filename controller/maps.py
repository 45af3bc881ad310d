# SPDX-License-Identifier: Apache-2.0
"""The seam to the pinned maps: read one, how many entries it takes, write a list of operations in order."""

import os
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from bpf import bpftool, syscall
from bpf.loader import Pins
from controller import mapread


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

    def write(self, ops: Sequence[Op]) -> None:
        """Runs `ops` in order; deleting what is gone already is no error.

        Raises:
            BpfError: one failed; those before it are done, none after it.
        """


class PinnedMaps:
    """The kernel's maps, written by bpftool; implements Maps."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins

    def read(self, name: str) -> dict[bytes, bytes]:
        return mapread.read(self._pins, name)

    def capacity(self, name: str) -> int:
        fd = self._pins.open_map(name)
        try:
            return syscall.map_info(fd).max_entries
        finally:
            os.close(fd)

    def write(self, ops: Sequence[Op]) -> None:
        bpftool.batch([self._line(op) for op in ops])

    def _line(self, op: Op) -> str:
        pin = self._pins.map(op.map)
        return bpftool.delete(pin, op.key) if op.value is None else bpftool.update(pin, op.key, op.value)
