# SPDX-License-Identifier: Apache-2.0
"""The sweep as the controller runs it: its pace, and the real program on a real table."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bpf import loader, node, syscall
from bpf.abi import Flow, FlowState, Tuple, Way
from bpf.address import packed
from bpf.pins import Pins
from bpf.settings import Settings
from controller import sweep
from controller.metrics import Metrics
from controller.sweep import SLICE_ENTRIES, Round, Slice

CAPACITY = 8 * SLICE_ENTRIES


def real(test: Callable[..., None]) -> Callable[..., None]:
    """Marks a test that runs the program."""
    skip = pytest.mark.skipif(not loader.KERNEL_BTF.exists(), reason="skipped: kernel lacks BTF")
    return pytest.mark.root(skip(test))


def round_of(sizes: list[int], interval_s: float) -> tuple[Round, list[float]]:
    """A round over slices of so many entries, of each of which a half has expired; and its pauses."""
    pauses: list[float] = []
    slices = (Slice(size, size // 2, 0.001) for size in (*sizes, 0))
    return sweep.sweep_table(lambda: next(slices), CAPACITY, interval_s, pauses.append), pauses


@pytest.mark.parametrize("full", [0, 1, 5, 8])
def test_round_takes_the_interval_however_full_the_table(full: int) -> None:
    """Its slices are as far apart as in a full table, and come to an end."""
    done, pauses = round_of([SLICE_ENTRIES] * full, 30)
    assert len(done.slices) == full + 1
    assert done.entries == full * SLICE_ENTRIES / 2
    assert pauses[:-1] == [pytest.approx(30 / 8)] * full
    assert sum(pauses) == pytest.approx(30 if full < 8 else 30 + 30 / 8)


def test_pauses_are_no_longer_than_the_interval() -> None:
    """Also where the table is smaller than a slice: after that one, and after the one that meets nothing more."""
    pauses: list[float] = []
    slices = iter([Slice(16, 0, 0.001), Slice(0, 0, 0.001)])
    sweep.sweep_table(lambda: next(slices), 16, 30, pauses.append)
    assert pauses == [30, 30]


@pytest.fixture
def pins(tmp_path: Path, bpffs: Path) -> Pins:
    """Programs and maps as the settings' defaults make them, the flow table small."""
    settings = Settings(run_dir=tmp_path, bpffs=bpffs, flows_max=CAPACITY)
    node.load_datapath(settings)
    return node.pins(settings)


def _fill(pins: Pins, expires: list[int]) -> None:
    fd = pins.open_map("flows")
    for port, expires_ns in enumerate(expires):
        key = Tuple(packed("192.0.2.1"), packed("192.0.2.2"), port, 80, 6)
        flow = Flow(key, 0, expires_ns, 0, 0, FlowState.NEW, 0, Way(0, 0, bytes(16)))
        syscall.map_update(fd, key.pack(), flow.pack())
    os.close(fd)


@real
def test_round_removes_what_has_expired_and_is_counted(pins: Pins) -> None:
    """In slices. The metrics tell of entries left, removed, and of the longest slice."""
    later = time.monotonic_ns() + 10**12
    _fill(pins, [1, later, later] * SLICE_ENTRIES)
    metrics = Metrics(pins)
    rounds = [sweep._round(pins, 0.01) for _ in range(3)]  # one may pass an entry over
    for done in rounds:
        metrics.swept(done)
    assert [one.seen for one in rounds[0].slices[:2]] == [SLICE_ENTRIES] * 2
    assert all(0 < one.seconds < 1 for done in rounds for one in done.slices)
    assert metrics.map_entries.labels("flows")._value.get() == 2 * SLICE_ENTRIES
    assert metrics.sweep_removed._value.get() == SLICE_ENTRIES
    assert metrics.sweep_longest._value.get() == max(one.seconds for one in rounds[-1].slices)


@real
def test_round_without_programs_says_so(pins: Pins) -> None:
    """As after an uninstall: the thread logs it and tries again later."""
    held = pins.in_force()
    assert held
    held.remove()
    with pytest.raises(loader.NotLoadedError):
        sweep._round(pins, 0.01)
