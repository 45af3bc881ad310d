# SPDX-License-Identifier: Apache-2.0
"""The sweep as the controller runs it: its loop, and a real program on real shards."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpf import loader, node, syscall
from bpf.abi import Flow, FlowState, FlowTable, Tuple, Way
from bpf.address import packed
from bpf.loader import SHARD_ENTRIES, Pins
from bpf.settings import Settings
from controller import sweep
from controller.metrics import Metrics
from controller.sweep import Round, Slice

SHARDS = 8
LIMIT = FlowTable.SWEEP_LIMIT


def real(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that runs the program."""
    skip = pytest.mark.skipif(not sweep.available(), reason="skipped: kernel lacks bpf_for_each_map_elem")
    return pytest.mark.root(skip(test))


class FakeTable:
    """Shards of so many entries, of which so many have expired; runs and pauses, as they come."""

    def __init__(self, expired: dict[int, int], live: int = 0) -> None:
        self._expired, self._live = expired, live
        self.runs: list[int] = []
        self.pauses: list[float] = []

    def sweep(self, shard: int) -> Slice:
        self.runs.append(shard)
        expired = self._expired.get(shard, 0)
        removed = min(expired, LIMIT)
        self._expired[shard] = expired - removed
        return Slice(removed if removed == LIMIT else removed + self._live, removed, 0.001)

    def round(self, interval_s: float) -> Round:
        return sweep.sweep_table(SHARDS, self.sweep, interval_s, self.pauses.append)


def test_shard_of_few_expired_is_run_once() -> None:
    """A run each, and all pauses together are the interval."""
    table = FakeTable({3: LIMIT - 1}, live=10)
    done = table.round(30)
    assert table.runs == list(range(SHARDS))
    assert (done.entries, sum(one.removed for one in done.slices)) == (10 * SHARDS, LIMIT - 1)
    assert table.pauses == [pytest.approx(30 / SHARDS)] * SHARDS


def test_shard_of_many_expired_is_run_again_within_its_part_of_the_interval() -> None:
    """Until a run removes fewer than it may; it sleeps between them, and the round takes no longer."""
    table = FakeTable({3: 2 * LIMIT + 5, 4: LIMIT}, live=10)
    done = table.round(30)
    assert table.runs == [0, 1, 2, 3, 3, 3, 4, 4, *range(5, SHARDS)]
    assert [one.removed for one in done.slices[3:8]] == [LIMIT, LIMIT, 5, LIMIT, 0]
    assert done.entries == 10 * SHARDS
    assert sum(table.pauses) == pytest.approx(30)
    assert min(table.pauses) == pytest.approx(30 / SHARDS / sweep.RUNS)


def test_shard_that_does_not_end_is_left_for_the_next_round() -> None:
    """So a round ends, however many expire meanwhile."""
    table = FakeTable({0: (sweep.RUNS + 1) * LIMIT})
    table.round(30)
    assert table.runs == [0] * sweep.RUNS + list(range(1, SHARDS))
    assert sum(table.pauses) == pytest.approx(30)
    table.round(30)
    assert table.runs.count(0) == sweep.RUNS + 2


@pytest.fixture
def pins(tmp_path: Path, bpffs: Path) -> Pins:
    """Programs and maps as the settings' defaults make them, the flow table small."""
    settings = Settings(run_dir=tmp_path, bpffs=bpffs, flows_max=SHARDS * SHARD_ENTRIES)
    node.load_datapath(settings)
    return node.pins(settings)


def _fill(pins: Pins, shard: int, expires: list[int]) -> None:
    fd = pins.open_shard("flows", shard)
    for port, expires_ns in enumerate(expires):
        key = Tuple(packed("192.0.2.1"), packed("192.0.2.2"), 1000 + port, 80, 6)
        flow = Flow(key, 0, expires_ns, 0, 0, FlowState.NEW, 0, Way(0, 0, bytes(16)))
        syscall.map_update(fd, key.pack(), flow.pack())
    os.close(fd)


@real
def test_shard_is_swept_of_what_has_expired(pins: Pins) -> None:
    """Counts and times are told; what lives stays."""
    later = time.monotonic_ns() + 10**12
    _fill(pins, 6, [1, later, 1, later, later])
    program = pins.open_program(sweep.PROGRAM)
    first, second, other = (sweep.sweep_shard(program, shard) for shard in (6, 6, 7))
    os.close(program)
    assert [(one.seen, one.removed) for one in (first, second, other)] == [(5, 2), (3, 0), (0, 0)]
    assert 0 < first.seconds < 1


@real
def test_round_sweeps_every_shard_and_is_counted(pins: Pins) -> None:
    """In the metrics: entries left, removed, and the longest slice."""
    for shard in range(SHARDS):
        _fill(pins, shard, [1, time.monotonic_ns() + 10**12])
    metrics = Metrics(pins)
    done = sweep._round(pins, 0.01)
    metrics.swept(done)
    assert len(done.slices) == SHARDS
    assert metrics.map_entries.labels("flows")._value.get() == SHARDS
    assert metrics.sweep_removed._value.get() == SHARDS
    assert metrics.sweep_longest._value.get() == max(one.seconds for one in done.slices)


@real
def test_round_without_programs_says_so(pins: Pins) -> None:
    """As after an uninstall: the thread logs it and tries again later."""
    loader.unload(pins)
    with pytest.raises(loader.NotLoadedError):
        sweep._round(pins, 0.01)
