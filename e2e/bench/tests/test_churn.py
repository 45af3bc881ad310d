# SPDX-License-Identifier: Apache-2.0
"""Which endpoints change, and what is made of the runs."""

from collections import Counter
from itertools import pairwise

import pytest

from e2e.bench import churn
from e2e.bench.churn import DISCARDED_MAX, ENDPOINTS, FIRST_PORT, LOAD_S, RATE, RUNS, WRITES, WRITES_S, Run
from e2e.bench.misses import Connection, Found, Write
from e2e.bench.outcome import Outcome
from e2e.bench.tool import BenchError

SECOND = 1_000_000_000
FAST = Found(judged=1000, ages_ms=[5.0, 40.0])


def made(overslept_ms: float = 1.0, found: Found = FAST, writes_s: float = WRITES_S) -> Run:
    """A run of the right size, with the writes in the midst of the load."""
    step, gap = writes_s * SECOND / WRITES, SECOND / RATE
    writes = [Write(SECOND + int(i * step), SECOND + int((i + 0.5) * step), 0, 0, 2) for i in range(WRITES)]
    connections = [Connection(int(i * gap), int(i * gap) + 1, 0, 0, 1) for i in range(LOAD_S * RATE)]
    return Run(overslept_ms, writes, connections, found)


class Stage:
    """Makes runs that are known."""

    def __init__(self, runs: list[Run]) -> None:
        self._runs = runs
        self.played = 0

    def run(self, number: int) -> Run:
        self.played += 1
        return self._runs[number]


def play(runs: list[Run]) -> Outcome:
    outcome = Outcome("case")
    churn.play(Stage(runs), outcome)
    return outcome


def test_change_marks_one_endpoint_not_ready_and_another_ready() -> None:
    """What a change does to a slice is what it is said to mark, and half of the endpoints are ready after each."""
    endpoints = [(f"10.244.1.{number}", "node1") for number in range(ENDPOINTS)]
    slices = [churn.slice_of(7, turn, endpoints) for turn in range(-1, 2 * ENDPOINTS)]
    ready = [[one["conditions"]["ready"] for one in manifest["endpoints"]] for manifest in slices]
    for turn, (before, after) in enumerate(pairwise(ready)):
        unready, again = churn.marked(turn)
        changed = {place: after[place] for place in range(ENDPOINTS) if before[place] != after[place]}
        assert changed == {unready: False, again: True}
    assert {sum(one) for one in ready} == {ENDPOINTS - churn.OUT}
    assert {manifest["ports"][0]["port"] for manifest in slices} == {FIRST_PORT + 7}


def test_runs_that_are_quick_enough_hold_every_bar() -> None:
    """Connections in time and none that failed: held, with a note on each run."""
    outcome = play([made()] * RUNS)
    assert not outcome.missed
    assert len(outcome.notes) == RUNS


@pytest.mark.parametrize(
    "found",
    [
        Found(judged=1000, ages_ms=[101.0, 102.0]),
        Found(judged=10_000, ages_ms=[1001.0]),
        Found(judged=1000, failed=Counter(ECONNREFUSED=1)),
    ],
    ids=["two in a thousand after 100 ms", "one after a second", "one refused"],
)
def test_one_bad_run_misses_a_bar(found: Found) -> None:
    """The worst run counts, whatever the others are like."""
    assert play([made()] * (RUNS - 1) + [made(found=found)]).missed


def test_runs_of_a_machine_that_overslept_are_discarded_and_counted() -> None:
    """What happened in them is not held against us; how many they were is told."""
    bad = made(overslept_ms=50.0, found=Found(judged=1000, ages_ms=[1001.0] * 9), writes_s=15)
    outcome = play([bad] * DISCARDED_MAX + [made()] * (RUNS - DISCARDED_MAX))
    assert not outcome.missed
    assert outcome.figures[-1].value == DISCARDED_MAX


def test_more_discarded_runs_than_may_be_end_the_case() -> None:
    """Nothing was measured, and no more runs are made."""
    stage = Stage([made(overslept_ms=60.0)] * RUNS)
    with pytest.raises(BenchError, match="4 of 4 runs discarded"):
        churn.play(stage, Outcome("case"))
    assert stage.played == DISCARDED_MAX + 1


def test_run_with_slower_writes_than_told_shows_nothing() -> None:
    """On a machine that did not oversleep, too little load is no measurement, whatever came of it."""
    with pytest.raises(BenchError, match="less load"):
        play([made()] * (RUNS - 1) + [made(writes_s=11)])
