# SPDX-License-Identifier: Apache-2.0
"""The sweep as the controller runs it: a real program on real shards."""

import os
import time
from pathlib import Path

import pytest

from bpf import loader, node, syscall
from bpf.abi import Flow, FlowState, Tuple, Way
from bpf.address import packed
from bpf.loader import Pins
from bpf.settings import Settings
from controller import sweep
from controller.metrics import Metrics

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not sweep.available(), reason="skipped: kernel lacks bpf_for_each_map_elem"),
]


@pytest.fixture
def pins(tmp_path: Path, bpffs: Path) -> Pins:
    """Programs and maps as the settings' defaults make them, the flow table small."""
    settings = Settings(run_dir=tmp_path, bpffs=bpffs, flows_max=64 * 1024)
    node.load_datapath(settings)
    return node.pins(settings)


def _fill(pins: Pins, shard: int, expires: list[int]) -> None:
    fd = pins.open_shard("flows", shard)
    for port, expires_ns in enumerate(expires):
        key = Tuple(packed("192.0.2.1"), packed("192.0.2.2"), 1000 + port, 80, 6)
        flow = Flow(key, 0, expires_ns, 0, 0, FlowState.NEW, 0, Way(0, 0, bytes(16)))
        syscall.map_update(fd, key.pack(), flow.pack())
    os.close(fd)


def test_shard_is_swept_of_what_has_expired(pins: Pins) -> None:
    """Counts and times are told; what lives stays."""
    later = time.monotonic_ns() + 10**12
    _fill(pins, 7, [1, later, 1, later, later])
    program = pins.open_program(sweep.PROGRAM)
    first, second, other = (sweep.sweep_shard(program, shard) for shard in (7, 7, 8))
    os.close(program)
    assert [(one.seen, one.removed) for one in (first, second, other)] == [(5, 2), (3, 0), (0, 0)]
    assert 0 < first.seconds < 1


def test_round_sweeps_every_shard_and_is_counted(pins: Pins) -> None:
    """In the metrics: entries left, removed, and the longest slice."""
    for shard in range(64):
        _fill(pins, shard, [1, time.monotonic_ns() + 10**12])
    metrics = Metrics(pins)
    slices = sweep._round(pins, 0.01)
    metrics.swept(slices)
    assert len(slices) == 64
    assert metrics.map_entries.labels("flows")._value.get() == 64
    assert metrics.sweep_removed._value.get() == 64
    assert metrics.sweep_longest._value.get() == max(one.seconds for one in slices)


def test_round_without_programs_says_so(pins: Pins) -> None:
    """As after an uninstall: the thread logs it and tries again later."""
    loader.unload(pins)
    with pytest.raises(loader.NotLoadedError):
        sweep._round(pins, 0.01)
