# SPDX-License-Identifier: Apache-2.0
"""The deny list as it is kept in force; its file and its command are in commands/tests/test_deny.py."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bpf.settings import Settings
from controller import denied
from controller.denied import FILE_NAME, MAP, SUBJECT, entry
from controller.source import Event, Problem, Problems
from controller.tests.fakes import FakeMaps

LISTED, OTHER = "203.0.113.0/24", "2001:db8::/32"


def test_list_is_repaired_with_each_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one that could not read the map: nobody has to write to the file. What was repaired is counted, and
    where another version has taken over, nothing more is done."""
    maps = FakeMaps()
    maps.hold(MAP)
    (tmp_path / FILE_NAME).write_text(f"{LISTED}\n{OTHER}\n")
    held, told = denied.DenyList(tmp_path), list[Event]()
    repaired: list[int] = []
    paused: list[float] = []
    assert denied.enforce(held, maps).entries == 2

    def pause(seconds: float) -> None:
        paused.append(seconds)
        if len(paused) == 1:
            del maps.maps[MAP][entry(LISTED)]
            maps.maps[MAP][entry("192.0.2.0/24")] = bytes(4)
        maps.fail_reads = len(paused) == 2
        if len(paused) == 3:
            maps.maps[MAP].clear()

    def post(events: Sequence[Event]) -> None:
        told.extend(events)
        assert maps.fail_reads or maps.maps[MAP].keys() == {entry(LISTED), entry(OTHER)}

    monkeypatch.setattr("bpf.node.other_layout_in_force", lambda _: len(paused) == 5)
    denied.keep(Settings(state_dir=tmp_path, audit_interval_s=7), maps, post, repaired.append, pause)
    assert paused == [7] * 5
    assert repaired == [2, 2]
    failed = Problem(SUBJECT, "not in force: bpftool is not installed", str(tmp_path / FILE_NAME))
    assert told == [Problems(SUBJECT, one) for one in ((), (failed,), (), ())]
