# SPDX-License-Identifier: Apache-2.0
"""Returns the memory of expired flows: reads through the iterator over the flow table, which removes them.

A thread of its own, which reads a slice of the table, sleeps, and reads the next one: a slice holds its CPU. A round
goes through the whole table, and a table that is full takes as long as the settings say; the next one begins when that
time is over. Where the kernel does not take the program, the table forgets by LRU alone.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import structlog

from bpf import syscall
from bpf.errors import BpfError
from bpf.pins import Pins

log = structlog.get_logger()

PROGRAM = "sweep"
# Entries of a slice. To meet one takes 0.3 us, to remove it half a microsecond more. In a table that is all but empty a
# slice passes all buckets, at 3 to 5 ns each: it takes 2 to 3 ms at the default size, 20 with four million entries.
SLICE_ENTRIES = 2048


class Slice(NamedTuple):
    """What one read came to: entries that it met, and removed."""

    seen: int
    removed: int
    seconds: float


class Round(NamedTuple):
    """All slices of a round, the last of which met nothing more, and how many entries the table has after it."""

    slices: list[Slice]
    entries: int


class Counts(Protocol):
    def swept(self, done: Round) -> None:
        """Takes note of a whole round."""


def available(pins: Pins) -> bool:
    """Whether the programs that are loaded include the sweep."""
    return pins.program(PROGRAM).exists()


def start(pins: Pins, interval_s: float, counts: Counts) -> None:
    """Starts the thread, which goes through the whole table within `interval_s`."""
    threading.Thread(target=_run, args=(pins, interval_s, counts), name="sweep", daemon=True).start()


def read_slice(iterator: int) -> Slice:
    """Reads on from an iterator (`syscall.map_iterator`); of its bytes each is an entry, 1 for one that it removed.

    Raises:
        OSError.
    """
    began = time.monotonic()
    met = os.read(iterator, SLICE_ENTRIES)
    return Slice(len(met), met.count(1), time.monotonic() - began)


def sweep_table(read: Callable[[], Slice], capacity: int, interval_s: float, sleep: Callable[[float], None]) -> Round:
    """Reads every slice, at a pace at which `capacity` entries take the interval, and sleeps for the rest of it."""
    pause_s = interval_s * min(1, SLICE_ENTRIES / capacity)
    slices = [read()]
    while slices[-1].seen:
        sleep(pause_s)
        interval_s -= pause_s
        slices.append(read())
    sleep(max(interval_s, pause_s))
    return Round(slices, sum(one.seen - one.removed for one in slices))


def _run(pins: Pins, interval_s: float, counts: Counts) -> None:
    while True:
        try:
            counts.swept(_round(pins, interval_s))
        except (BpfError, OSError) as error:
            log.error("sweep-failed", error=str(error))
            time.sleep(interval_s)


def _round(pins: Pins, interval_s: float) -> Round:
    """The program is opened anew each time: another build may have been loaded meanwhile."""
    with pins.opened_map("flows") as table, pins.opened_program(PROGRAM) as program:
        capacity = syscall.map_info(table).max_entries
        with syscall.map_iterator(program, table) as iterator:
            return sweep_table(lambda: read_slice(iterator), capacity, interval_s, time.sleep)
