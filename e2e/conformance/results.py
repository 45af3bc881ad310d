# SPDX-License-Identifier: Apache-2.0
"""What became of each test, out of the JUnit file that upstream's program writes, and into ours.

Upstream's has every test there is, thousands of them skipped; ours has those that were asked for.
"""

import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element

from e2e.conformance import suite

PASSED, FAILED, SKIPPED = "passed", "failed", "skipped"
TEST = "[It] "
SKIP_MARK = "skipped - "


@dataclass(frozen=True)
class Result:
    """What became of a test.

    Attributes:
        state: PASSED, FAILED or SKIPPED; whatever else ends a test is a failure.
        why: the first line of what it says of its failure, or the reason why it was skipped.
    """

    name: str
    state: str
    took_s: float = 0.0
    why: str = ""


def take(source: Path, target: Path, names: Collection[str]) -> list[Result]:
    """Writes the part of a JUnit file that is about these tests; what it says.

    A part of the suite's own that failed, such as its preparation, is taken as a test. So is a test that is missing, as
    failed: its process ended before.
    """
    tree = ElementTree.parse(source)
    results: list[Result] = []
    for cases in tree.iter("testsuite"):
        for case in cases.findall("testcase"):
            result = _result(case)
            if result.name in names or result.state == FAILED:
                _complete(case, result)
                results.append(result)
            else:
                cases.remove(case)
        for name in sorted(set(names) - {result.name for result in results}):
            results.append(Result(name, FAILED, why="there is no result of it"))
            cases.append(_case(results[-1]))
        _count(cases, results)
        _count(tree.getroot(), results)
    tree.write(target, encoding="utf-8", xml_declaration=True)
    return results


def _result(case: Element) -> Result:
    name = case.get("name", "").removeprefix(TEST)
    took_s = float(case.get("time", 0))
    skipped = case.find("skipped")
    if skipped is not None:
        message = skipped.get("message", "").removeprefix(SKIP_MARK)
        return Result(name, SKIPPED, took_s, suite.left_out(name) or message)
    if case.get("status") == PASSED:
        return Result(name, PASSED, took_s)
    fault = next((part for part in case if part.tag in ("failure", "error")), None)
    return Result(name, FAILED, took_s, _first_line(fault) or case.get("status", ""))


def _first_line(fault: Element | None) -> str:
    """What stands first in a fault's text, behind its mark `[FAILED]`."""
    lines = (line.strip() for line in ((fault is not None and fault.text) or "").splitlines())
    return next((line.removeprefix("[FAILED]").strip() for line in lines if line), "")


def _complete(case: Element, result: Result) -> None:
    """Says in the file, too, why a test was skipped."""
    skipped = case.find("skipped")
    if skipped is not None:
        skipped.set("message", SKIP_MARK + result.why)


def _case(result: Result) -> Element:
    case = Element("testcase", name=TEST + result.name, classname="", status=result.state, time="0")
    ElementTree.SubElement(case, "failure", type=result.state).text = result.why
    return case


def _count(element: Element, results: Iterable[Result]) -> None:
    states = [result.state for result in results]
    skips = {"testsuite": "skipped", "testsuites": "disabled"}[element.tag]
    counts = {"tests": len(states), "failures": states.count(FAILED), skips: states.count(SKIPPED), "errors": 0}
    for name, count in counts.items():
        element.set(name, str(count))
