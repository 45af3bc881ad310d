# SPDX-License-Identifier: Apache-2.0
"""A kernel's modules, with those that they need, in the order of their insertion."""

import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path


def insertion(directory: Path, names: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """(name, content) of modules, unpacked, each after those that it needs; what is built in is left out.

    Args:
        directory: that which holds modules.builtin.

    Raises:
        FileNotFoundError: there is no such module.
    """
    builtin = {_name(Path(line)) for line in (directory / "modules.builtin").read_text().splitlines()}
    paths = {_name(path): path for path in directory.rglob("*.ko*")}
    done = set(builtin)

    def visit(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done:
            return
        done.add(name)
        if name not in paths:
            raise FileNotFoundError(f"{directory}: no module {name}")
        content = _unpacked(paths[name])
        for needed in dependencies(content):
            yield from visit(needed)
        yield name, content

    for name in names:
        yield from visit(name)


def dependencies(module: bytes) -> list[str]:
    """The modules that one names in its section .modinfo."""
    found = re.search(rb"\0depends=([^\0]*)\0", module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
