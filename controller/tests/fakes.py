# SPDX-License-Identifier: Apache-2.0
"""The fake of the one seam to the kernel: maps in memory, with errors to order, which judge every single write."""

from collections.abc import Iterable

from bpf.abi import MAPS
from bpf.errors import BatchError, BpftoolError
from controller.maps import Op
from controller.mirror import NETWORK_MAPS
from controller.tests.objects import served

NAMES = ("state", "frontends", "slots", "backends", "sources", "maglev", *NETWORK_MAPS)

# What a program looks up because another entry has led it there.
LOOKED_UP = ("slots", "backends", "sources", "maglev")


class FakeMaps:
    """Attributes:
    maps: the entries.
    written: how many operations have run.
    fail_after: operations that still succeed before one fails; None: no failure.
    fail_reads: every read fails.
    refused: keys that no map takes.
    damaged: a test has broken them, so they need not be whole while they are mended.
    """

    def __init__(self, **capacities: int) -> None:
        self.maps: dict[str, dict[bytes, bytes]] = {name: {} for name in NAMES}
        self.maps["state"] = {index.to_bytes(4, "little"): bytes(8) for index in range(2)}
        self.capacities = {name: capacities.get(name, MAPS[name].max_entries) for name in NAMES}
        self.written = 0
        self.fail_after: int | None = None
        self.fail_reads = False
        self.refused: set[bytes] = set()
        self.damaged = False
        self._awaited = True

    def hold(self, name: str) -> None:
        """Has one more map, which is of nobody's sync."""
        self.maps[name], self.capacities[name] = {}, MAPS[name].max_entries

    def read(self, name: str) -> dict[bytes, bytes]:
        if self.fail_reads:
            raise BpftoolError("bpftool is not installed")
        return dict(self.maps[name])

    def capacity(self, name: str) -> int:
        return self.capacities[name]

    def write(self, ops: Iterable[Op]) -> None:
        for op in ops:
            if self.fail_after is not None:
                if not self.fail_after:
                    self.fail_after = None
                    raise BpftoolError("bpftool died")
                self.fail_after -= 1
            self._run(op)
            if not self.damaged:
                served(self.maps)  # every frontend leads to filled slots and backends, after each single write

    def await_readers(self) -> None:
        self._awaited = True

    def _run(self, op: Op) -> None:
        self.written += 1
        if op.value is not None:
            self._awaited = False
        elif op.map in LOOKED_UP:
            assert self._awaited, f"{op} while a program may have read what led there"
        held = self.maps[op.map]
        if op.value is None:
            held.pop(op.key, None)
            return
        if op.key in self.refused:
            raise BatchError("Invalid argument", str(op), full=False)
        assert (len(op.key), len(op.value)) == (MAPS[op.map].key_size, MAPS[op.map].value_size)
        if op.key not in held and len(held) >= self.capacities[op.map]:
            raise BatchError("Argument list too long", str(op), full=True)
        held[op.key] = op.value
