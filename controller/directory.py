# SPDX-License-Identifier: Apache-2.0
"""A directory of manifests as the source: the embedded default, and the double of the API server in tests.

Watched with inotify, so that a file is read as soon as it was renamed into place or closed by its writer; never polled
while it is there. Files that begin with a dot or end otherwise than in .json, .yaml, .yml are not ours.
"""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

import structlog

from controller import inotify
from controller.manifests import EMPTY, SUFFIXES, Entry, Manifest, Ref, label, parse
from controller.model import OPTIONAL, REQUIRED, Object
from controller.source import Changed, Event, Post, Problem, Problems, Synced

log = structlog.get_logger()

# How often a directory that is not there, or went away, is looked for again.
RETRY_S = 1.0


class DirectorySource:
    """Follows the manifests in `directory`; implements Source."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._wake_read, self._wake_write = os.pipe()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._files = Files()

    def start(self, post: Post) -> None:
        self._thread = threading.Thread(target=self._run, args=(post,), name="directory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        os.write(self._wake_write, b"x")
        if self._thread:
            self._thread.join()

    def _run(self, post: Post) -> None:
        listed = False
        while not self._stopping.is_set():
            try:
                # The watch comes first: what changes while the files are read is read again.
                watch = inotify.DirectoryWatch(self._directory)
            except OSError as error:
                post([_trouble(self._directory, error.strerror or str(error))])
                self._stopping.wait(RETRY_S)
                continue
            try:
                events = self._scan()
                if not listed:
                    events += [Synced(kind) for kind in (*REQUIRED, *OPTIONAL)]
                    listed = True
                post([*events, Problems(str(self._directory), ())])
                self._follow(watch, post)
            finally:
                watch.close()

    def _follow(self, watch: inotify.DirectoryWatch, post: Post) -> None:
        """Returns when the directory is gone, or on stop."""
        while not self._stopping.is_set():
            happened = watch.wait(self._wake_read)
            if any(one.mask & (inotify.DELETE_SELF | inotify.MOVE_SELF | inotify.IGNORED) for one in happened):
                log.warning("directory-gone", directory=str(self._directory))
                return
            if any(one.mask & inotify.OVERFLOW or one.name.startswith("..") for one in happened):
                # ".." names are how a mounted ConfigMap switches all its files at once.
                events = self._scan()
            else:
                names = dict.fromkeys(one.name for one in happened if self._matters(one))
                events = self._read(names)
            if events:
                post(events)

    def _matters(self, one: inotify.Happened) -> bool:
        if not _is_manifest(one.name):
            return False
        if not one.mask & inotify.CREATE:
            return True
        # A new file is read when its writer closes it; a new link was complete before.
        path = self._directory / one.name
        try:
            return path.is_symlink() or path.stat().st_nlink > 1
        except OSError:
            return False

    def _scan(self) -> list[Event]:
        try:
            found = sorted(name for name in os.listdir(self._directory) if _is_manifest(name))
        except OSError as error:
            return [_trouble(self._directory, error.strerror or str(error))]
        return self._read([*found, *(name for name in self._files.names() if name not in set(found))])

    def _read(self, names: Iterable[str]) -> list[Event]:
        events: list[Event] = []
        for name in names:
            try:
                data = (self._directory / name).read_bytes()
            except FileNotFoundError:
                events += self._files.remove(name)
            except OSError as error:
                events.append(Problems(name, (Problem(name, error.strerror or str(error), name),)))
            else:
                events += self._files.read(name, data)
        return events


class Files:
    """What each file defines, and which of several files that define the same object is heard: the first by name."""

    def __init__(self) -> None:
        self._manifests: dict[str, Manifest] = {}
        self._claims: dict[Ref, list[str]] = {}
        self._contested: set[Ref] = set()

    def names(self) -> list[str]:
        return list(self._manifests)

    def read(self, name: str, data: bytes) -> list[Event]:
        """The events that a file's new content makes."""
        before = self._manifests.get(name, EMPTY)
        now = parse(name, data, before)
        entries = now.entries
        for ref, entry in before.entries.items():
            if ref not in entries:
                if now.keeps(ref):
                    entries[ref] = entry
            elif entries[ref].obj == entry.obj:
                entries[ref] = entries[ref]._replace(obj=entry.obj)
        return self._replace(name, before, now)

    def remove(self, name: str) -> list[Event]:
        """The events that a file's end makes."""
        return self._replace(name, self._manifests.get(name, EMPTY), EMPTY)

    def _replace(self, name: str, before: Manifest, now: Manifest) -> list[Event]:
        refs = [ref for ref, entry in now.entries.items() if _differs(before.entries.get(ref), entry)]
        refs += [ref for ref in before.entries if ref not in now.entries]
        heard = {ref: self._heard(ref) for ref in refs}
        if now is EMPTY:
            self._manifests.pop(name, None)
        else:
            self._manifests[name] = now
        for ref in refs:
            self._claim(ref, name, ref in now.entries)
        events: list[Event] = []
        for ref in refs:
            obj = self._heard(ref)
            if obj is not heard[ref]:
                events.append(Changed(*ref, obj))
        return [*events, *self._problems(name, before, refs)]

    def _claim(self, ref: Ref, name: str, defines: bool) -> None:
        names = self._claims.get(ref, [])
        names = sorted({*names, name} if defines else {*names} - {name})
        if names:
            self._claims[ref] = names
        else:
            self._claims.pop(ref, None)

    def _heard(self, ref: Ref) -> Object | None:
        names = self._claims.get(ref)
        return self._manifests[names[0]].entries[ref].obj if names else None

    def _problems(self, name: str, before: Manifest, refs: list[Ref]) -> list[Event]:
        """The problems of this file, and those of others that contradict it, where they may have changed."""
        affected = {name} if name in self._manifests or before is not EMPTY else set()
        for ref in refs:
            names = self._claims.get(ref, [])
            if len(names) > 1:
                self._contested.add(ref)
            if ref in self._contested:
                affected.update(names)
            if len(names) < 2:
                self._contested.discard(ref)
        contradicted = [(ref, self._claims[ref]) for ref in self._contested]
        return [self._problems_of(one, contradicted) for one in sorted(affected)]

    def _problems_of(self, name: str, contradicted: list[tuple[Ref, list[str]]]) -> Problems:
        manifest = self._manifests.get(name, EMPTY)
        problems = [problem for _, problem in manifest.problems]
        for ref, names in contradicted:
            if name in names[1:]:
                line = manifest.entries[ref].line
                problems.append(Problem(label(ref), f"defined in {names[0]} too, which is used", name, line))
        return Problems(name, tuple(problems))


def _differs(before: Entry | None, now: Entry) -> bool:
    return before is None or before.obj is not now.obj


def _is_manifest(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _trouble(directory: Path, message: str) -> Problems:
    return Problems(str(directory), (Problem(str(directory), message),))
