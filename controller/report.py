# SPDX-License-Identifier: Apache-2.0
"""controller.json: what the controller says of itself to `calico-ebpf status`, and which problems stand."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog

from bpf import files
from controller.source import Problem

log = structlog.get_logger()

FILE_NAME = "controller.json"
# While changes keep coming, the file is written no more often.
INTERVAL_S = 1.0
# More problems than anybody reads are counted, not listed.
LISTED = 100


class Standing:
    """The problems that stand, by origin; new ones are logged, once."""

    def __init__(self) -> None:
        self._problems: dict[str, tuple[Problem, ...]] = {}

    def replace(self, origin: str, problems: tuple[Problem, ...]) -> None:
        """Makes `problems` all that there are of an origin."""
        before = self._problems.get(origin, ())
        if problems == before:
            return
        known = set(before)
        for problem in problems:
            if problem not in known:
                log.warning("problem", origin=origin, **_shown(problem))
        if problems:
            self._problems[origin] = problems
        else:
            del self._problems[origin]
            log.info("problem-solved", origin=origin)

    def counts(self) -> dict[str, int]:
        """How many there are, by origin."""
        return {origin: len(problems) for origin, problems in self._problems.items()}

    def lines(self) -> list[str]:
        """Each as FILE:LINE: subject: what is wrong."""
        return [_line(problem) for origin in sorted(self._problems) for problem in self._problems[origin]]


class Report:
    """Writes the file when what it says has changed."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._written: dict[str, Any] = {}
        self._earliest = 0.0

    def write(self, facts: Mapping[str, Any], problems: list[str], now: float) -> float | None:
        """Writes, unless it did so a moment ago; returns when to come again, or None where there is no need to."""
        if now < self._earliest:
            return self._earliest
        listed = problems[:LISTED]
        if len(problems) > LISTED:
            listed.append(f"and {len(problems) - LISTED} more")
        told = {**facts, "errors": listed}
        if told == self._written:
            return None
        content = {"pid": os.getpid(), "written": time.time(), **told}
        try:
            files.write(self._path, json.dumps(content).encode())
        except OSError as error:
            log.error("report-not-written", path=str(self._path), error=str(error))
        self._written, self._earliest = told, now + INTERVAL_S
        return None


def _shown(problem: Problem) -> dict[str, object]:
    shown: dict[str, object] = {"subject": problem.subject, "message": problem.message}
    if problem.file:
        shown |= {"file": problem.file, "line": problem.line}
    return shown


def _line(problem: Problem) -> str:
    place = f"{problem.file}:{problem.line}: " if problem.line else f"{problem.file}: " if problem.file else ""
    subject = "" if problem.subject == problem.file else f"{problem.subject}: "
    return f"{place}{subject}{problem.message}"
