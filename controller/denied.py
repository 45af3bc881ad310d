# SPDX-License-Identifier: Apache-2.0
"""The deny list: ranges from which nothing comes in from outside. A file in the state directory, one range a line, and
the map, which is made to say the same: by `calico-ebpf deny` at once, by the controller when it starts, when somebody
else has written to the file, and with each audit. Lines that are empty or begin with # are their writer's, and stay.
"""

import fcntl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import structlog

from bpf import files, node
from bpf.abi import MAPS, Denied, RemoteKey
from bpf.address import V4_PREFIX, text
from bpf.errors import BpfError
from bpf.prefixes import parse_range, prefixes
from bpf.settings import Settings
from controller.errors import DenyListError
from controller.maps import Maps, Op
from controller.source import Post, Problem, Problems

log = structlog.get_logger()

FILE_NAME = "denied"
LOCK_NAME = "denied.lock"
MAP = "denied"
RANGES_MAX = MAPS[MAP].max_entries
SUBJECT = "deny list"
# Lines that are named by themselves.
NAMED_MAX = 20


class Line(NamedTuple):
    """A line of the file.

    Attributes:
        text: as it stands there.
        cidr: the range that it names; "" where it is empty, a comment, or no range.
        wrong: why it is no range, or "".
    """

    text: str
    cidr: str = ""
    wrong: str = ""


class Listed(NamedTuple):
    """What the file says.

    Attributes:
        ranges: each once, as many as there is room for.
        problems: lines that deny nothing, though they should.
    """

    ranges: tuple[str, ...]
    problems: tuple[Problem, ...]


class Enforced(NamedTuple):
    """What came of making the map say what the file does.

    Attributes:
        problems: what is wrong by now.
        entries: how many were other than they should be.
    """

    problems: Problems
    entries: int


class DenyList:
    """The file of a node, which one process at a time changes: within `locked`. Methods raise DenyListError where it
    cannot be read."""

    def __init__(self, state_dir: Path) -> None:
        self.path = state_dir / FILE_NAME
        self._lock = state_dir / LOCK_NAME

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds off others who change the list or apply it. Raises OSError."""
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with self._lock.open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def read(self) -> Listed:
        """Nothing where there is no file."""
        found: dict[str, None] = {}
        problems = []
        for number, line in enumerate(self._lines(), 1):
            wrong = line.wrong
            if line.cidr and line.cidr not in found and len(found) == RANGES_MAX:
                wrong = f"there is room for {RANGES_MAX} ranges"
            if wrong:
                problems.append(Problem(SUBJECT, f"denies nothing: {wrong}", str(self.path), number))
            elif line.cidr:
                found[line.cidr] = None
        more = len(problems) - NAMED_MAX
        if more > 0:
            problems[NAMED_MAX:] = [Problem(SUBJECT, f"{more} more lines that deny nothing", str(self.path))]
        return Listed(tuple(found), tuple(problems))

    def add(self, ranges: Iterable[str]) -> None:
        """Adds lines at the end, and leaves all others. Raises DenyListError: there is no room for so many."""
        lines = self._lines()
        held = {line.cidr for line in lines} - {""}
        new = [cidr for cidr in dict.fromkeys(ranges) if cidr not in held]
        if len(held) + len(new) > RANGES_MAX:
            raise DenyListError(f"{len(held) + len(new)} ranges, and there is room for {RANGES_MAX}")
        self._write([*lines, *map(Line, new)])

    def remove(self, ranges: Iterable[str]) -> None:
        """Takes out the lines of these ranges, and leaves all others. Raises DenyListError: one is not there."""
        lines, gone = self._lines(), set(ranges)
        unknown = gone - {line.cidr for line in lines}
        if unknown:
            raise DenyListError(f"not on the list: {', '.join(sorted(unknown))}")
        self._write([line for line in lines if line.cidr not in gone])

    def _lines(self) -> list[Line]:
        try:
            content = self.path.read_text(encoding="utf-8", errors="surrogateescape")  # somebody's comment
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DenyListError(f"{self.path}: {error}") from error
        return [_line(text) for text in content.removesuffix("\n").split("\n")] if content else []

    def _write(self, lines: Iterable[Line]) -> None:
        content = "".join(f"{line.text}\n" for line in lines)
        files.write(self.path, content.encode("utf-8", errors="surrogateescape"))


def _line(text: str) -> Line:
    said = text.strip()
    if not said or said.startswith("#"):
        return Line(text)
    try:
        return Line(text, checked(said))
    except ValueError as error:
        return Line(text, wrong=str(error))


def checked(cidr: str) -> str:
    """A range in its shortest form; an address is the range that holds it alone.

    Raises:
        ValueError: it is none, or an IPv6 range that would take more than one entry.
    """
    found = str(parse_range(cidr))
    if len(prefixes([found])) > 1:
        raise ValueError(f"{cidr} holds ::ffff:0:0/96, which stands for IPv4: 2000::/3 is all that is routed")
    return found


def entry(cidr: str) -> bytes:
    """The key of a range in the map."""
    (prefix,) = prefixes([cidr])
    return RemoteKey(*prefix).pack()


def in_force(maps: Maps) -> set[str]:
    """The ranges that the map has. Raises BpfError."""
    return {shown(RemoteKey.unpack(key)) for key in maps.read(MAP)}


def apply(maps: Maps, ranges: Iterable[str]) -> int:
    """Makes the map hold these ranges and no others; returns how many entries that took. Raises BpfError."""
    held, wanted = maps.read(MAP).keys(), {entry(cidr) for cidr in ranges}
    value = Denied(0).pack()
    maps.write([Op(MAP, key, None) for key in held - wanted])  # first: they may need the room
    maps.write([Op(MAP, key, value) for key in wanted - held])
    return len(held ^ wanted)


def enforce(held: DenyList, maps: Maps) -> Enforced:
    """Makes the map say what the file does, as far as that makes sense."""
    try:
        with held.locked():
            listed = held.read()
            entries = apply(maps, listed.ranges)
    except (DenyListError, BpfError, OSError) as error:
        return Enforced(Problems(SUBJECT, (Problem(SUBJECT, f"not in force: {error}", str(held.path)),)), 0)
    return Enforced(Problems(SUBJECT, listed.problems), entries)


def keep(
    settings: Settings,
    maps: Maps,
    post: Post,
    repaired: Callable[[int], None],
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Enforces the list as often as the controller audits, for an entry may have been taken away, and an earlier try
    may have failed; posts what is wrong, and says how many entries were. For a thread of its own."""
    held = DenyList(settings.state_dir)
    while True:
        pause(settings.audit_interval_s)
        if node.other_layout_in_force(settings):
            return  # whose controller has the list now
        enforced = enforce(held, maps)
        if enforced.entries:
            repaired(enforced.entries)
            log.warning("drift-found", map=MAP, entries=enforced.entries)
        post([enforced.problems])


def shown(key: RemoteKey) -> str:
    """A range as text."""
    return f"{text(key.address)}/{key.prefix_bits - (96 if key.address.startswith(V4_PREFIX) else 0)}"
