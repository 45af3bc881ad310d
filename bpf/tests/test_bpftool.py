# SPDX-License-Identifier: Apache-2.0
"""The runner of bpftool: batches on real maps, and a bpftool that is missing, hangs or talks nonsense."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import bpftool, syscall
from bpf.errors import BatchError, BpftoolError
from bpf.syscall import MapInfo

HASH, PERCPU_ARRAY = 1, 6
SIZE = 4


def number(value: int) -> bytes:
    return value.to_bytes(4, "little")


@pytest.fixture
def pin(bpffs: Path) -> Iterator[Path]:
    """A pinned hash map of four-byte keys and values that takes SIZE entries."""
    fd = syscall.map_create(MapInfo(HASH, 0, 4, 4, SIZE, 0), "test")
    syscall.obj_pin(fd, bpffs / "test")
    yield bpffs / "test"
    os.close(fd)


def fake(monkeypatch: pytest.MonkeyPatch, directory: Path, script: str) -> None:
    """Puts a shell script in bpftool's place."""
    program = directory / "fake-bpftool"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(bpftool, "BPFTOOL", str(program))


@pytest.mark.root
def test_batch_runs_lines_in_order(pin: Path) -> None:
    """Writes and deletes take effect in the order given; a dump shows what is left."""
    lines = [bpftool.update(pin, number(key), number(key + 250)) for key in (1, 2, 3)]
    bpftool.batch([*lines, bpftool.delete(pin, number(2)), bpftool.update(pin, number(3), number(9))])
    assert dict(bpftool.dump(pin)) == {number(1): number(251), number(3): number(9)}


@pytest.mark.root
def test_batch_delete_of_missing_key_is_skipped(pin: Path) -> None:
    """Deletes of what is gone stop nothing, however many they are."""
    lines = [bpftool.delete(pin, number(key)) for key in (7, 8)]
    bpftool.batch([*lines, bpftool.update(pin, number(1), number(1)), *lines])
    assert dict(bpftool.dump(pin)) == {number(1): number(1)}


@pytest.mark.root
def test_batch_on_full_map_names_the_line(pin: Path) -> None:
    """The line for which there is no room is named, as full; those before it are done."""
    lines = [bpftool.update(pin, number(key), number(key)) for key in range(SIZE + 2)]
    with pytest.raises(BatchError) as caught:
        bpftool.batch(lines)
    assert caught.value.line == lines[SIZE]
    assert caught.value.full
    assert len(dict(bpftool.dump(pin))) == SIZE


@pytest.mark.root
def test_batch_failing_line_is_named_and_rest_not_run(pin: Path) -> None:
    """A line that fails otherwise is no full map; those after it are not run."""
    bad = bpftool.update(pin.with_name("absent"), number(1), number(1))
    with pytest.raises(BatchError) as caught:
        bpftool.batch([bpftool.update(pin, number(1), number(1)), bad, bpftool.update(pin, number(2), number(2))])
    assert caught.value.line == bad
    assert not caught.value.full
    assert list(dict(bpftool.dump(pin))) == [number(1)]


@pytest.mark.root
def test_batch_delete_in_missing_map_is_an_error(pin: Path) -> None:
    """That the map itself is gone is not taken for a missing key."""
    with pytest.raises(BatchError):
        bpftool.batch([bpftool.delete(pin.with_name("absent"), number(1))])


@pytest.mark.root
def test_batch_in_pieces_runs_every_line(pin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines beyond one piece are run, also where the last of a piece is a skipped delete."""
    monkeypatch.setattr(bpftool, "BATCH_LINES", 2)
    lines = [
        bpftool.update(pin, number(1), number(1)),
        bpftool.delete(pin, number(9)),
        bpftool.delete(pin, number(8)),
        bpftool.update(pin, number(2), number(2)),
        bpftool.update(pin, number(3), number(3)),
    ]
    bpftool.batch(lines)
    assert len(dict(bpftool.dump(pin))) == 3


def test_batch_outlives_its_caller_with_the_lock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What bpftool was given stays locked until bpftool itself ends, and its script is no file."""
    fake(monkeypatch, tmp_path, f"cat > {tmp_path}/script; ls -l /proc/$$/fd > {tmp_path}/open; echo '[]'")
    with (tmp_path / "lock").open("w") as lock:
        bpftool.batch(["map update"], (lock.fileno(),))
    assert (tmp_path / "script").read_text() == "map update\n"
    assert str(tmp_path / "lock") in (tmp_path / "open").read_text()


def test_batch_runs_while_later_lines_are_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first piece has begun when the second one is asked for."""
    monkeypatch.setattr(bpftool, "BATCH_LINES", 1)
    fake(monkeypatch, tmp_path, f"cat >> {tmp_path}/script")

    def lines() -> Iterator[str]:
        yield "first"
        deadline = time.monotonic() + 10
        while not (tmp_path / "script").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        yield "second"
        assert (tmp_path / "script").exists()

    bpftool.batch(lines())
    assert (tmp_path / "script").read_text() == "first\nsecond\n"


@pytest.mark.root
def test_dump_per_cpu_joins_the_cpus(bpffs: Path) -> None:
    """A per-CPU value has one part for each CPU, in their order."""
    fd = syscall.map_create(MapInfo(PERCPU_ARRAY, 0, 4, 8, 1, 0), "percpu")
    syscall.obj_pin(fd, bpffs / "percpu")
    os.close(fd)
    ((key, value),) = bpftool.dump(bpffs / "percpu")
    assert key == number(0)
    assert len(value) % 8 == 0
    assert len(value) >= 8 * (os.cpu_count() or 1)


@pytest.mark.root
def test_dump_of_missing_pin_says_so(bpffs: Path) -> None:
    """bpftool's own message is carried on."""
    with pytest.raises(BpftoolError, match=r"absent.*No such file"):
        list(bpftool.dump(bpffs / "absent"))


def test_batch_of_nothing_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No lines need no bpftool."""
    monkeypatch.setattr(bpftool, "BPFTOOL", "/nonexistent/bpftool")
    bpftool.batch([])


def test_batch_without_bpftool_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing bpftool is said to be missing, with what to install."""
    monkeypatch.setattr(bpftool, "BPFTOOL", "/nonexistent/bpftool")
    with pytest.raises(BpftoolError, match="not installed"):
        bpftool.batch(["map update"])


def test_run_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A bpftool that gives no answer is killed at the time-out."""
    fake(monkeypatch, tmp_path, "exec sleep 60")
    with pytest.raises(BpftoolError, match="no answer"):
        bpftool.run("version", timeout_s=0.2)


@pytest.mark.parametrize("script", ["echo nonsense; exit 1", "echo '[]'; exit 1", "kill -9 $$"])
def test_batch_with_unreadable_answer_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    """A bpftool that dies, or fails without naming a line, is no BatchError: nobody knows what was done."""
    fake(monkeypatch, tmp_path, script)
    with pytest.raises(BpftoolError) as caught:
        bpftool.batch(["map update"])
    assert not isinstance(caught.value, BatchError)


@pytest.mark.root
def test_version_features_and_filters_are_read() -> None:
    """What doctor asks of bpftool has the shape that it reads."""
    assert bpftool.version().startswith("v")
    assert {"program_types", "map_types", "helpers"} <= bpftool.features().keys()
    assert isinstance(bpftool.filters(), list)


def test_xdp_programs_have_names_and_modes_whatever_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One without a name, two on one device, and one that goes between the two questions; other failures are told."""
    attached = [
        {"devname": "u0", "ifindex": 2, "mode": "driver", "id": 1},
        {
            "devname": "u1",
            "ifindex": 3,
            "multi_attachments": [{"mode": "driver", "id": 2}, {"mode": "offload", "id": 1}],
        },
        {"devname": "u2", "ifindex": 4, "mode": "driver", "id": 3},
    ]
    script = f"""case "$*" in
*"net show") echo '{json.dumps([{"xdp": attached, "tc": []}])}';;
*"id 1") echo '{{"id": 1, "type": "xdp"}}';;
*"id 2") echo '{{"id": 2, "type": "xdp", "name": "ours"}}';;
*) echo '{{"error": "get by id (3): %s"}}'; exit 255;;
esac"""
    fake(monkeypatch, tmp_path, script % "No such file or directory")
    found = [(item["ifindex"], item["mode"], item["name"]) for item in bpftool.xdp_programs()]
    assert found == [(2, "driver", ""), (3, "driver", "ours"), (3, "offload", "")]
    fake(monkeypatch, tmp_path, script % "Operation not permitted")
    with pytest.raises(BpftoolError, match="not permitted"):
        bpftool.xdp_programs()
