# SPDX-License-Identifier: Apache-2.0
"""The seam between where objects come from and what is made of them.

A source posts batches of events from threads of its own; whoever consumes them takes each batch as one change. It says
when each kind has been listed once, and never takes an object away that it has not seen disappear: what cannot be read
for a while stays as it was.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from controller.model import Key, Kind, Object


class Changed(NamedTuple):
    """An object is as it is now; None: it is gone."""

    kind: Kind
    key: Key
    obj: Object | None


class Synced(NamedTuple):
    """Every object of this kind has been posted once."""

    kind: Kind


class Problem(NamedTuple):
    """What is wrong with a part of the input.

    Attributes:
        subject: the object, as Kind namespace/name, or what else it is about.
        file: the file that it stands in, or "".
        line: counted from 1; 0 where there is none.
    """

    subject: str
    message: str
    file: str = ""
    line: int = 0


class Problems(NamedTuple):
    """All that is wrong with one origin (a file, a watch): takes the place of what was said of it before."""

    origin: str
    problems: tuple[Problem, ...]


Event = Changed | Synced | Problems
Post = Callable[[Sequence[Event]], None]


class Source(Protocol):
    def start(self, post: Post) -> None:
        """Starts to post events, from threads that do not keep the process alive; returns at once."""

    def stop(self) -> None:
        """Stops posting; objects stay as they are."""
