# SPDX-License-Identifier: Apache-2.0
"""The list of tests that do not pass yet, e2e/conformance-pending.txt, and how a run is judged by it: pure.

A line is a test's full name, ` # `, and the reason, or what will bring it. Lines that begin with # are comments. The
list only shrinks: a failure that it does not have fails a run, and so does a line whose test passes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from e2e.conformance.results import FAILED, PASSED, Result

FILE = Path(__file__).parent.parent / "conformance-pending.txt"
MARK = " # "


class PendingError(Exception):
    """The list cannot be read; the message says which line, and why."""


@dataclass(frozen=True)
class Verdict:
    """How a run is judged.

    Attributes:
        expected: failures that the list has.
        unexpected: failures that it does not have.
        passing: tests of the list that pass: their lines must go.
    """

    expected: list[Result] = field(default_factory=list)
    unexpected: list[Result] = field(default_factory=list)
    passing: list[Result] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.unexpected and not self.passing


def parse(text: str) -> dict[str, str]:
    """Reasons by test.

    Raises:
        PendingError: a line has no reason, or a test has two lines.
    """
    reasons: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, reason = (part.strip() for part in line.partition(MARK))
        if not reason:
            raise PendingError(f"line {number} has no reason; a line is NAME{MARK}REASON")
        if name in reasons:
            raise PendingError(f"line {number} has a test once more: {name}")
        reasons[name] = reason
    return reasons


def unknown(pending: Iterable[str], names: Iterable[str]) -> list[str]:
    """Of the list what is the name of no test."""
    return sorted(set(pending) - set(names))


def judge(results: Iterable[Result], pending: Mapping[str, str]) -> Verdict:
    """Compares a run with the list. What was skipped says nothing."""
    verdict = Verdict()
    for result in results:
        if result.state == FAILED:
            (verdict.expected if result.name in pending else verdict.unexpected).append(result)
        elif result.state == PASSED and result.name in pending:
            verdict.passing.append(result)
    return verdict
