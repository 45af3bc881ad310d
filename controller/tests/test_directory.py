# SPDX-License-Identifier: Apache-2.0
"""The directory source: files that come, change, break, contradict each other, and go."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.directory import DirectorySource
from controller.model import OPTIONAL, REQUIRED, Kind, Service
from controller.tests.collector import Collector
from controller.tests.objects import JSON, service

KINDS = (*REQUIRED, *OPTIONAL)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "manifests"
    path.mkdir()
    return path


@pytest.fixture
def started(directory: Path) -> Iterator[Collector]:
    """A source over a directory with one file, listed."""
    (directory / "a.json").write_text(json.dumps(service("a")))
    collector = Collector()
    source = DirectorySource(directory)
    source.start(collector.post)
    try:
        collector.wait(lambda seen: len(seen.synced) == len(KINDS))
        yield collector
    finally:
        source.stop()


def _place(path: Path, *manifests: JSON) -> None:
    """Writes a file as careful writers do: renamed into place."""
    scratch = path.with_name(f".{path.name}.new")
    scratch.write_text("\n".join(map(json.dumps, manifests)))
    scratch.rename(path)


def _port(seen: Collector, name: str) -> int:
    found = seen.objects.get((Kind.SERVICE, name))
    assert isinstance(found, Service)
    return found.spec.ports[0].port


def _at(name: str, port: int) -> JSON:
    return service(name, ports=[{"port": port}])


def test_files_there_at_start_are_listed_before_synced(started: Collector) -> None:
    """Every kind is listed once, also those of which there is none."""
    assert started.names() == {"a"}
    assert sorted(started.synced) == sorted(KINDS)


def test_file_renamed_into_place_is_read_at_once(directory: Path, started: Collector) -> None:
    """Within milliseconds: nothing polls."""
    began = time.monotonic()
    _place(directory / "b.json", service("b"))
    started.wait(lambda seen: "b" in seen.names())
    assert time.monotonic() - began < 0.5


def test_file_written_in_place_is_read_when_closed(directory: Path, started: Collector) -> None:
    """Half a file is never taken for a whole one."""
    with (directory / "b.yaml").open("w") as handle:
        handle.write("kind: Service\napiVersion: v1\n")
        handle.flush()
        time.sleep(0.1)
        assert "b.yaml" not in started.problems
        handle.write("metadata: {name: b}\n")
    started.wait(lambda seen: "b" in seen.names())


def test_file_removed_or_renamed_away_takes_its_objects(directory: Path, started: Collector) -> None:
    """Whichever way it goes."""
    _place(directory / "b.json", service("b"))
    started.wait(lambda seen: "b" in seen.names())
    (directory / "b.json").rename(directory / "b.bak")
    (directory / "a.json").unlink()
    started.wait(lambda seen: not seen.names())


def test_file_momentarily_broken_keeps_its_objects(directory: Path, started: Collector) -> None:
    """It is named with its line until it is mended."""
    (directory / "a.json").write_text('{"kind": "Service",\n')
    started.wait(lambda seen: bool(seen.problems.get("a.json")))
    assert [(problem.file, problem.line) for problem in started.problems["a.json"]] == [("a.json", 1)]
    assert started.names() == {"a"}
    _place(directory / "a.json", _at("a", 81))
    started.wait(lambda seen: not seen.problems["a.json"])
    assert _port(started, "a") == 81


def test_bad_object_keeps_its_last_good_state_beside_changes(directory: Path, started: Collector) -> None:
    """The others of its file change, come and go."""
    _place(directory / "b.json", _at("b", 80), _at("c", 80), _at("d", 80))
    started.wait(lambda seen: seen.names() == {"a", "b", "c", "d"})
    _place(directory / "b.json", service("b", ports=[{"port": "x"}]), _at("c", 81))
    started.wait(lambda seen: "d" not in seen.names())
    assert (_port(started, "b"), _port(started, "c")) == (80, 81)
    assert [problem.subject for problem in started.problems["b.json"]] == ["Service shop/b"]


def test_contradicting_files_first_by_name_wins_until_it_goes(directory: Path, started: Collector) -> None:
    """Whichever came first; the error names the file and line that is not heard."""
    _place(directory / "b.json", _at("x", 2))
    started.wait(lambda seen: "x" in seen.names())
    _place(directory / "aa.json", _at("x", 1))
    started.wait(lambda seen: _port(seen, "x") == 1)
    (problem,) = started.problems["b.json"]
    assert (problem.subject, problem.file, problem.line) == ("Service shop/x", "b.json", 1)
    assert "aa.json" in problem.message
    (directory / "aa.json").unlink()
    started.wait(lambda seen: _port(seen, "x") == 2 and not seen.problems["b.json"])


def test_same_content_again_posts_no_change(directory: Path, started: Collector) -> None:
    """A file that is merely touched makes no work."""
    changes = started.changes
    _place(directory / "a.json", service("a"))
    _place(directory / "b.json", service("b"))
    started.wait(lambda seen: "b" in seen.names())
    assert started.changes == changes + 1


def test_hidden_and_other_files_are_ignored(directory: Path, started: Collector) -> None:
    """Editors leave all sorts of things."""
    for name in (".b.json", "b.json~", "README"):
        (directory / name).write_text("nonsense")
    _place(directory / "c.json", service("c"))
    started.wait(lambda seen: "c" in seen.names())
    assert started.names() == {"a", "c"}
    assert not started.messages()


def test_symbolic_link_made_in_the_directory_is_read(directory: Path, started: Collector, tmp_path: Path) -> None:
    """It is never closed by a writer, but complete when it appears."""
    (tmp_path / "elsewhere.json").write_text(json.dumps(service("b")))
    (directory / "b.json").symlink_to(tmp_path / "elsewhere.json")
    started.wait(lambda seen: "b" in seen.names())


def test_configmap_that_switches_all_files_at_once_is_followed(tmp_path: Path) -> None:
    """kubelet renames ..data; the names that people see are links through it and do not change."""
    directory = tmp_path / "mounted"
    for version, port in (("..1", 1), ("..2", 2)):
        (directory / version).mkdir(parents=True)
        (directory / version / "a.json").write_text(json.dumps(_at("a", port)))
    (directory / "..data").symlink_to("..1")
    (directory / "a.json").symlink_to("..data/a.json")
    collector = Collector()
    source = DirectorySource(directory)
    source.start(collector.post)
    try:
        collector.wait(lambda seen: "a" in seen.names())
        (directory / "..next").symlink_to("..2")
        (directory / "..next").rename(directory / "..data")
        collector.wait(lambda seen: _port(seen, "a") == 2)
    finally:
        source.stop()


def test_directory_gone_keeps_everything_and_is_named_until_it_is_back(directory: Path, started: Collector) -> None:
    """What cannot be read is not gone; back again, it is read afresh."""
    shutil.rmtree(directory)
    started.wait(lambda seen: bool(seen.problems[str(directory)]))
    # Removing the file came first and was seen; what matters is that nothing follows from the directory's end.
    names = started.names()
    directory.mkdir()
    _place(directory / "b.json", service("b"))
    started.wait(lambda seen: "b" in seen.names() and not seen.problems[str(directory)])
    assert names <= {"a"}
    assert started.names() == {"b"}


def test_missing_directory_is_named_and_never_synced(tmp_path: Path) -> None:
    """Nothing is known, so nothing is programmed; once it is there, it is listed."""
    collector = Collector()
    source = DirectorySource(tmp_path / "later")
    source.start(collector.post)
    try:
        collector.wait(lambda seen: bool(seen.messages()))
        assert not collector.synced
        (tmp_path / "later").mkdir()
        collector.wait(lambda seen: len(seen.synced) == len(KINDS))
    finally:
        source.stop()
