# SPDX-License-Identifier: Apache-2.0
"""Returns the memory of expired flows: runs the sweep program on one shard of the flow table after the other.

A thread of its own, which sleeps between runs of the program, so that a whole round takes as long as the settings say.
A run walks one shard and removes so many entries at most: it holds its CPU. Where it stopped at that, the next one
goes through the same shard again. Before kernel 5.13 there is no such program; the table then forgets by LRU alone.
"""

import os
import struct
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import structlog

from bpf import features, syscall
from bpf.abi import FlowTable
from bpf.errors import BpfError
from bpf.loader import OPTIONAL, SHARD_ENTRIES, Pins

log = structlog.get_logger()

PROGRAM = "sweep"
# Of one shard in a round: twice what one of the loader's size takes. What is left then waits for the next round.
RUNS = 2 * SHARD_ENTRIES // FlowTable.SWEEP_LIMIT

# struct __sk_buff: the program takes the shard from cb[0], and leaves in cb[1] how many entries it saw.
_CONTEXT_BYTES, _CB_OFFSET = 192, 48
_SHARD = struct.Struct("=II")


class Slice(NamedTuple):
    """What one run came to: entries that it met, and removed."""

    seen: int
    removed: int
    seconds: float


class Round(NamedTuple):
    """All slices of a round, and how many entries the table has after it; those that no run came to are not counted."""

    slices: list[Slice]
    entries: int


class Counts(Protocol):
    def swept(self, done: Round) -> None:
        """Takes note of a whole round."""


def available() -> bool:
    """Whether this kernel can sweep."""
    return features.kernel()[0] >= OPTIONAL["sweep.o"]


def start(pins: Pins, interval_s: float, counts: Counts) -> None:
    """Starts the thread, which goes through the whole table within `interval_s`."""
    threading.Thread(target=_run, args=(pins, interval_s, counts), name="sweep", daemon=True).start()


def sweep_shard(program_fd: int, shard: int) -> Slice:
    """Runs the program once on a shard. Raises OSError."""
    context = bytearray(_CONTEXT_BYTES)
    _SHARD.pack_into(context, _CB_OFFSET, shard, 0)
    began = time.monotonic()
    result = syscall.program_test_run(program_fd, bytes(64), bytes(context))
    seconds = time.monotonic() - began
    _, seen = _SHARD.unpack_from(result.context, _CB_OFFSET)
    return Slice(seen, result.verdict, seconds)


def _run(pins: Pins, interval_s: float, counts: Counts) -> None:
    while True:
        try:
            counts.swept(_round(pins, interval_s))
        except (BpfError, OSError) as error:
            log.error("sweep-failed", error=str(error))
            time.sleep(interval_s)


def _round(pins: Pins, interval_s: float) -> Round:
    """The program is opened anew each time: another build may have been loaded meanwhile."""
    program = pins.open_program(PROGRAM)
    try:
        shards = pins.count_shards("flows")
        return sweep_table(shards, lambda shard: sweep_shard(program, shard), interval_s, time.sleep)
    finally:
        os.close(program)


def sweep_table(shards: int, sweep: Callable[[int], Slice], interval_s: float, sleep: Callable[[float], None]) -> Round:
    """Sweeps every shard, each in its part of the interval, and what runs it needs evenly in that."""
    pause_s = interval_s / (shards * RUNS)
    slices = []
    entries = 0
    for shard in range(shards):
        for left in reversed(range(RUNS)):
            last = sweep(shard)
            slices.append(last)
            if last.removed < FlowTable.SWEEP_LIMIT:
                sleep(pause_s * (left + 1))
                break
            sleep(pause_s)
        entries += last.seen - last.removed
    return Round(slices, entries)
