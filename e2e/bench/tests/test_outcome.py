# SPDX-License-Identifier: Apache-2.0
"""Verdicts, turns and the report."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from e2e.bench import report, rounds
from e2e.bench.outcome import OURS, Figure, Outcome, Series


@pytest.mark.parametrize(
    ("figure", "missed", "verdict"),
    [
        (Figure("x", "ms", 8, 7, 9, bar=10), False, "held"),
        (Figure("x", "ms", 9, 8, 10, bar=10), False, "held"),
        (Figure("x", "ms", 9, 8, 11, bar=10), True, "missed"),
        (Figure("x", "", 0.6, 0.5, 0.7, bar=1, aim=0.7), False, "aim reached"),
        (Figure("x", "", 0.69, 0.5, 0.71, bar=1, aim=0.7), False, "held"),
        (Figure("x", "ms", 9, 8, 11, bar=10, by_value=True), False, "held"),
        (Figure("x", "ms", 11, 9, 12, bar=10, by_value=True), True, "missed"),
        (Figure("x", "ms", 99, 99, 99), False, ""),
        (Figure("x", "ms", float("nan"), float("nan"), float("nan"), bar=10), True, "missed"),
    ],
    ids=[
        "below",
        "at the bar",
        "interval over the bar",
        "aim reached",
        "interval over the aim",
        "value below",
        "value over the bar",
        "no bar",
        "no number",
    ],
)
def test_figure_is_judged_by_the_upper_end_of_its_interval(figure: Figure, missed: bool, verdict: str) -> None:
    """A bar holds when the whole interval is on its side; a figure without a bar is never missed."""
    assert figure.missed == missed
    assert report.verdict(figure) == verdict


def test_order_of_two_contenders_is_abba_then_baab() -> None:
    """Neither contender always comes first, nor last."""
    assert ["".join(rounds.order("AB", number)) for number in range(3)] == ["ABBA", "BAAB", "ABBA"]


def test_play_throws_warm_up_away_and_keeps_both_turns_of_a_round() -> None:
    """Every round has two turns of each contender; those of the warm-up leave no sample."""
    turns = {"a": lambda: {"ADD": [1.0], "DEL": [3.0]}, "b": lambda: {"ADD": [2.0], "DEL": [4.0]}}
    series = {name: Series(name, "ms") for name in ("ADD", "DEL")}
    rounds.play(turns, series, count=3, warm_up=2)
    assert series["ADD"].samples == {"a": [[1.0, 1.0]] * 3, "b": [[2.0, 2.0]] * 3}
    assert series["DEL"].samples == {"a": [[3.0, 3.0]] * 3, "b": [[4.0, 4.0]] * 3}


def test_compare_with_a_slower_peer_states_the_ratio_and_no_doubt() -> None:
    """Steady samples give the ratio of the medians, held and trusted."""
    outcome = Outcome("case")
    series = Series("ADD", "ms", samples={OURS: [[5.0]] * 30, "peer": [[10.0]] * 30})
    outcome.compare(series, "peer", bar=1.0, aim=0.7)
    assert outcome.figures == [Figure("ADD, ratio to peer", "", 0.5, 0.5, 0.5, 1.0, 0.7)]
    assert not outcome.missed
    assert not outcome.warnings


def test_compare_with_a_faster_peer_misses_the_bar() -> None:
    """What is slower than its peer misses a bar of 1."""
    outcome = Outcome("case")
    outcome.compare(Series("ADD", "ms", samples={OURS: [[11.0]] * 30, "peer": [[10.0]] * 30}), "peer", bar=1.0)
    assert outcome.missed


def test_report_file_holds_every_sample(tmp_path: Path) -> None:
    """The report has the samples of each contender by round, and what became of the figures."""
    outcome = Outcome("case", [Series("ADD", "ms", samples={OURS: [[1.0, 2.0]]})])
    outcome.state("memory", "MB", 200.0, bar=100)
    path = tmp_path / "made" / "report.json"
    report.write(path, {"cni": outcome}, {"cores": "2"})
    found = json.loads(path.read_text())
    assert found["machine"] == {"cores": "2"}
    case = found["cases"]["cni"]
    assert case["series"] == [{"name": "ADD", "unit": "ms", "rounds": {OURS: [[1.0, 2.0]]}}]
    assert [(figure["name"], figure["missed"]) for figure in case["figures"]] == [("memory", True)]
    assert "| memory | 200 MB |  | 100 |  | missed |" in path.with_suffix(".md").read_text()


def test_show_prints_samples_figures_notes_and_warnings() -> None:
    """Nothing that a case hands back is kept from the reader."""
    outcome = Outcome(
        "A case", [Series("ADD", "ms", samples={OURS: [[1.0, 2.0]]})], warnings=["[restless]"], notes=["a note"]
    )
    outcome.state("memory", "MB", 1234.0)
    console = Console(width=140, record=True, file=io.StringIO())
    report.show(console, outcome)
    shown = console.export_text()
    assert all(text in shown for text in ("A case", OURS, "1.5 ms", "1,234 MB", "[restless]", "a note"))
