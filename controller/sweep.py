# SPDX-License-Identifier: Apache-2.0
"""Returns the memory of expired flows: runs the sweep program on one shard of the flow table after the other.

A thread of its own, which sleeps between shards, so that a whole round takes as long as the settings say. Before kernel
5.13 there is no such program; the table then forgets by LRU alone.
"""

import os
import struct
import threading
import time
from typing import NamedTuple, Protocol

import structlog

from bpf import features, syscall
from bpf.abi import FlowTable
from bpf.errors import BpfError
from bpf.loader import OPTIONAL, Pins

log = structlog.get_logger()

PROGRAM = "sweep"

# struct __sk_buff: the program takes the shard from cb[0], and leaves in cb[1] how many entries it saw.
_CONTEXT_BYTES, _CB_OFFSET = 192, 48
_SHARD = struct.Struct("=II")


class Slice(NamedTuple):
    """What one shard came to."""

    seen: int
    removed: int
    seconds: float


class Counts(Protocol):
    def swept(self, slices: list[Slice]) -> None:
        """Takes note of a whole round."""


def available() -> bool:
    """Whether this kernel can sweep."""
    return features.kernel()[0] >= OPTIONAL["sweep.o"]


def start(pins: Pins, interval_s: float, counts: Counts) -> None:
    """Starts the thread, which goes through the whole table within `interval_s`."""
    threading.Thread(target=_run, args=(pins, interval_s, counts), name="sweep", daemon=True).start()


def sweep_shard(program_fd: int, shard: int) -> Slice:
    """Sweeps one shard. Raises OSError."""
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


def _round(pins: Pins, interval_s: float) -> list[Slice]:
    """The program is opened anew each time: another build may have been loaded meanwhile."""
    program = pins.open_program(PROGRAM)
    slices = []
    try:
        for shard in range(FlowTable.SHARDS):
            slices.append(sweep_shard(program, shard))
            time.sleep(interval_s / FlowTable.SHARDS)
    finally:
        os.close(program)
    return slices
