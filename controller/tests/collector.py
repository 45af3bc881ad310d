# SPDX-License-Identifier: Apache-2.0
"""Takes in what a source posts, and waits for what it should come to."""

import threading
import time
from collections.abc import Callable, Sequence

from controller.model import Kind, Object
from controller.source import Changed, Event, Problem, Problems, Synced


class Collector:
    """Attributes: objects as they are now, by (kind, name); kinds synced; problems by origin; events in all."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Kind, str], Object] = {}
        self.synced: list[Kind] = []
        self.problems: dict[str, tuple[Problem, ...]] = {}
        self.changes = 0
        self._condition = threading.Condition()

    def post(self, events: Sequence[Event]) -> None:
        with self._condition:
            for event in events:
                self._take(event)
            self._condition.notify_all()

    def wait(self, reached: Callable[["Collector"], bool], timeout_s: float = 10) -> None:
        """Until `reached` says so; fails after the time-out."""
        deadline = time.monotonic() + timeout_s
        with self._condition:
            while not reached(self):
                assert time.monotonic() < deadline, (self.objects, self.problems)
                self._condition.wait(0.02)

    def names(self, kind: Kind = Kind.SERVICE) -> set[str]:
        return {name for found, name in self.objects if found == kind}

    def messages(self) -> list[str]:
        return [problem.message for problems in self.problems.values() for problem in problems]

    def _take(self, event: Event) -> None:
        if isinstance(event, Synced):
            self.synced.append(event.kind)
        elif isinstance(event, Problems):
            self.problems[event.origin] = event.problems
        else:
            self._change(event)

    def _change(self, event: Changed) -> None:
        self.changes += 1
        if event.obj is None:
            del self.objects[event.kind, event.key[1]]
        else:
            self.objects[event.kind, event.key[1]] = event.obj
