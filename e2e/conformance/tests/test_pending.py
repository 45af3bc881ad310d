# SPDX-License-Identifier: Apache-2.0
"""The list of what does not pass yet, how it judges a run, and how that is shown."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from e2e.conformance import pending, report
from e2e.conformance.pending import PendingError, Verdict
from e2e.conformance.results import FAILED, PASSED, SKIPPED, Result

A, B, C = (f"[sig-network] Services should {what}" for what in ("hold", "work", "be skipped"))
REASONS = {A: "session affinity"}
BROKEN = Result(A, FAILED, 60.4, "Affinity should hold")


def test_parse_gives_reasons_by_test() -> None:
    """Comments and empty lines say nothing."""
    assert pending.parse("# what does not pass\n\nx should y # because\nz # it # z\n") == {
        "x should y": "because",
        "z": "it # z",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [("x # y\nz\n", "line 2 has no reason"), ("z #  \n", "line 1 has no reason"), ("x # y\nx # z\n", "once more: x")],
)
def test_parse_refuses_what_is_no_list(text: str, said: str) -> None:
    """Each line needs a reason, and each test has one line."""
    with pytest.raises(PendingError, match=said):
        pending.parse(text)


def test_the_list_itself_is_read_and_is_in_order() -> None:
    """e2e/conformance-pending.txt can be read, and its tests are sorted by name."""
    names = list(pending.parse(pending.FILE.read_text()))
    assert names == sorted(names)


def test_unknown_are_names_of_no_test() -> None:
    """A test that upstream has renamed, or that is not ours, has no business in the list."""
    assert pending.unknown([A, "gone"], [A, B]) == ["gone"]


@pytest.mark.parametrize(
    ("results", "verdict", "good"),
    [
        ([BROKEN, Result(B, PASSED)], Verdict(expected=[BROKEN]), True),
        ([Result(B, FAILED)], Verdict(unexpected=[Result(B, FAILED)]), False),
        ([Result(A, PASSED)], Verdict(passing=[Result(A, PASSED)]), False),
        ([Result(A, SKIPPED), Result(B, SKIPPED)], Verdict(), True),
        ([], Verdict(), True),
    ],
    ids=["failure in the list", "failure not in the list", "in the list and passes", "skipped", "not run"],
)
def test_judge_lets_the_list_only_shrink(results: Sequence[Result], verdict: Verdict, good: bool) -> None:
    """A failure must be in the list, and what passes must not."""
    assert pending.judge(results, REASONS) == verdict
    assert verdict.good == good


def test_show_prints_counts_by_group_and_every_reason() -> None:
    """The table has a row for each group; what was skipped or fails stands below it with the reason."""
    results = [
        BROKEN,
        Result(B, FAILED, 1, "oh dear"),
        Result(C, SKIPPED, 0, "no SSH"),
        Result("[sig-network] DNS x", PASSED, 2),
    ]
    file = io.StringIO()
    report.show(Console(file=file, width=120), results, pending.judge(results, REASONS), REASONS, 90)
    shown = file.getvalue()
    assert "\nin 1.5 minutes\n" in shown
    rows = [line.split("│")[1:-1] for line in shown.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["DNS", "1", "0", "0", "2 s"],
        ["Services", "0", "2", "1", "61 s"],
        ["all", "1", "2", "1", "63 s"],
    ]
    for title, name, why in (
        ("skipped", C, "no SSH"),
        ("does not pass yet", A, "session affinity"),
        ("failed", B, "oh dear"),
    ):
        assert f"\n{title}: 1\n  {name}\n      {why}\n" in shown


def test_unsteady_are_tests_that_did_not_end_alike() -> None:
    """One test that passes once and fails once is named."""
    first = [Result(A, PASSED), Result(B, PASSED)]
    assert report.unsteady([first, [Result(A, PASSED), Result(B, FAILED)]]) == [B]
    assert report.unsteady([first, first]) == []
