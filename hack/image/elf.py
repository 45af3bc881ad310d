# SPDX-License-Identifier: Apache-2.0
"""Gathers the shared libraries of programs, whatever machine they are for: flat in lib/, with the dynamic loader."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from hack.command import CommandError, run

LOADER = "lib/ld.so"
MAGIC = b"\x7fELF"


def gather(system: Path, target: Path, also: Sequence[str] = ()) -> None:
    """Copies into `target`/lib what the programs and extension modules below `target` need of a system's libraries.

    Args:
        also: libraries that none of them names.

    Raises:
        CommandError: a library is in none of the packages.
    """
    libraries = {path.name: path for path in sorted(system.rglob("*.so*")) if "python3" not in str(path)}
    for name, path in libraries.items():
        if re.match(r"ld-linux.*\.so\.\d$", name):
            shutil.copy(path, target / LOADER)
    wanted = [*also, *(name for path in sorted(target.rglob("*")) if _is_elf(path) for name in _needed(path))]
    while wanted:
        name = wanted.pop()
        copy = target / "lib" / name
        if copy.exists() or name.startswith("ld-linux"):
            continue
        if name not in libraries:
            raise CommandError(f"{name} is needed, and is in no package of the runtime")
        shutil.copy(libraries[name], copy)
        wanted += _needed(copy)


def _needed(program: Path) -> Iterator[str]:
    """The libraries that a program names; private ones, which it finds by a path of its own, are left out."""
    dynamic = run("readelf", "--dynamic", "--wide", str(program))
    private = {path.name for path in program.parent.glob("../*.libs/*")}
    yield from (name for name in re.findall(r"\(NEEDED\).*\[(\S+)\]", dynamic) if name not in private)


def _is_elf(path: Path) -> bool:
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as content:
        return content.read(4) == MAGIC
