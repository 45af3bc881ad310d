# SPDX-License-Identifier: Apache-2.0
"""Runs bpftool: dumps, batches, loads. The only module of the project that starts it, or imports subprocess for it."""

import json
import os
import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from bpf import bundle
from bpf.errors import BatchError, BpftoolError

BPFTOOL = "bpftool"

# What strerror(3) says of the errors that mean something of their own.
FULL = re.compile(r"Argument list too long|No space left on device|Cannot allocate memory")
GONE = "No such file or directory"
MISSING = f"delete failed: {GONE}"

# A batch is run in pieces of this size, the next of which is made meanwhile; in JSON, bpftool echoes every line.
BATCH_LINES = 10_000


def run(*arguments: str, timeout_s: float = 120) -> str:
    """Runs bpftool and returns its standard output.

    Raises:
        BpftoolError: it is missing, hung or failed; the message carries what it said.
    """
    process = _execute(arguments, timeout_s)
    if process.returncode:
        raise BpftoolError(f"bpftool {' '.join(arguments)}: {_complaint(process)}")
    return process.stdout


def version() -> str:
    """bpftool's own version, "v7.1.0" say."""
    return run("version").split()[1]


def features() -> dict[str, Any]:
    """What the kernel offers: `program_types`, `map_types`, `helpers` by program type, `system_config`."""
    found: dict[str, Any] = json.loads(run("-j", "feature", "probe", "kernel"))
    return found


def filters() -> list[dict[str, Any]]:
    """The TC programs of the caller's network namespace: `devname`, `ifindex`, `kind` (clsact/ingress, ...), `name`."""
    found: list[dict[str, Any]] = json.loads(run("-j", "net", "show"))[0]["tc"]
    return found


def xdp_programs() -> list[dict[str, Any]]:
    """The XDP programs of the caller's network namespace: `devname`, `ifindex`, `mode` (driver, generic, offload),
    `id`, and `name`, which is the program's, or "". A device has one in its driver and one offloaded, at most."""
    found: list[dict[str, Any]] = json.loads(run("-j", "net", "show"))[0]["xdp"]
    single = [item | one for item in found for one in item.get("multi_attachments", [item])]
    named = [item | {"name": _program_name(item["id"])} for item in single]
    return [item for item in named if item["name"] is not None]


def btf_types(path: str) -> list[dict[str, Any]]:
    """The BTF types of an object file."""
    types: list[dict[str, Any]] = json.loads(run("-j", "btf", "dump", "file", path))["types"]
    return types


def dump(pin: Path) -> Iterator[tuple[bytes, bytes]]:
    """Every entry of a pinned map as (key, value).

    A per-CPU value is that of all CPUs joined, in their order. Entries that come or go meanwhile may be missed.
    """
    for item in json.loads(run("-j", "map", "dump", "pinned", str(pin))):
        if "key" not in item:
            continue
        if "values" in item:
            yield _bytes(item["key"]), b"".join(_bytes(cpu["value"]) for cpu in item["values"])
        elif isinstance(item.get("value"), list):
            yield _bytes(item["key"]), _bytes(item["value"])


def update(pin: Path, key: bytes, value: bytes) -> str:
    """The batch line that writes an entry."""
    return f"map update pinned {pin} key hex {key.hex(' ')} value hex {value.hex(' ')}"


def delete(pin: Path, key: bytes) -> str:
    """The batch line that deletes an entry; that it is gone already is no error when it runs."""
    return f"map delete pinned {pin} key hex {key.hex(' ')}"


def batch(lines: Iterable[str], held: Sequence[int] = ()) -> None:
    """Runs `lines` in order, the first of them while the next are still made.

    bpftool stops at the first line that fails. A delete of a missing key is skipped and the rest goes on.

    Args:
        held: descriptors that bpftool keeps open until it ends, even if the caller is killed: that of a lock, say.

    Raises:
        BatchError: another line failed; those before it are done, those after it are not.
        BpftoolError: bpftool is missing, hung or died.
    """
    rest = iter(lines)
    chunk = list(islice(rest, BATCH_LINES))
    with ThreadPoolExecutor(1) as runner:
        while chunk:
            running = runner.submit(_batch_chunk, chunk, held)
            chunk = list(islice(rest, BATCH_LINES))
            running.result()


def load(obj: Path, programs: Path, maps: Iterable[tuple[str, Path]]) -> None:
    """Loads every program of `obj` and pins them under `programs`, on maps that are pinned already.

    Raises:
        BpftoolError: the verifier or the kernel refused; the message carries its log.
    """
    reused = [word for name, pin in maps for word in ("map", "name", name, "pinned", str(pin))]
    run("prog", "loadall", str(obj), str(programs), *reused)


def _program_name(number: int) -> str | None:
    """What its maker calls it, if anything ("" else); None: it has gone since its id was told."""
    try:
        return str(json.loads(run("-j", "prog", "show", "id", str(number))).get("name", ""))
    except BpftoolError as error:
        if GONE in str(error):
            return None
        raise


def _batch_chunk(lines: Sequence[str], held: Sequence[int]) -> None:
    """Raises BatchError, BpftoolError."""
    done = 0
    while done < len(lines):
        ran, complaint = _batch_once(lines[done:], held)
        done += ran
        if complaint:
            line = lines[done - 1]
            if not (line.startswith("map delete ") and MISSING in complaint):
                raise BatchError(f"{complaint} (at: {line})", line, bool(FULL.search(complaint)))


def _batch_once(lines: Sequence[str], held: Sequence[int]) -> tuple[int, str]:
    """Runs lines up to the first that fails; returns how many were run, that one included, and the complaint or ""."""
    # In memory: a file would be left behind by a caller that is killed, and a pipe would end the batch early.
    with open(os.memfd_create("calico-ebpf-batch"), "w") as script:
        script.write("\n".join(lines) + "\n")
        script.flush()
        os.lseek(script.fileno(), 0, os.SEEK_SET)
        process = _execute(("batch", "file", "-"), 300, script.fileno(), held)
        if not process.returncode:
            return len(lines), ""
        if process.returncode > 0:
            # JSON takes half as long again, and alone tells the line that failed. Running lines twice does no harm.
            os.lseek(script.fileno(), 0, os.SEEK_SET)
            process = _execute(("-j", "batch", "file", "-"), 300, script.fileno(), held)
    if not process.returncode:
        return len(lines), ""
    try:
        results = json.loads(process.stdout)
        complaint = results[-1]["output"]["error"]
    except (ValueError, LookupError, TypeError):
        raise BpftoolError(f"bpftool batch of {len(lines)} lines: {_complaint(process)}") from None
    return len(results), complaint


def _execute(
    arguments: Sequence[str], timeout_s: float, stdin: int = subprocess.DEVNULL, held: Sequence[int] = ()
) -> "subprocess.CompletedProcess[str]":
    command = [*bundle.command(BPFTOOL), *arguments]
    try:
        return subprocess.run(
            command, stdin=stdin, capture_output=True, text=True, timeout=timeout_s, check=False, pass_fds=held
        )
    except FileNotFoundError as error:
        raise BpftoolError(f"{BPFTOOL} is not installed (Debian package bpftool)") from error
    except subprocess.TimeoutExpired as error:
        raise BpftoolError(f"{' '.join([BPFTOOL, *arguments[:3]])}: no answer after {timeout_s:.0f} s") from error


def _complaint(process: "subprocess.CompletedProcess[str]") -> str:
    said = (process.stderr.strip() or process.stdout.strip())[-4000:]
    return said or f"exit status {process.returncode}"


def _bytes(values: list[str]) -> bytes:
    return bytes.fromhex("".join(values).replace("0x", ""))
