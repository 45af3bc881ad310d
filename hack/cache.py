# SPDX-License-Identifier: Apache-2.0
"""The cache that all clones share: downloads and builds, each made once, whole or not at all."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache() -> Path:
    """Where downloads and builds are kept: safe to delete, made again when missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calico-ebpf"


def digest(*recipe: object) -> str:
    """A short name for what is made by a recipe: of its parts, files count by their content."""
    parts = [part.read_bytes() if isinstance(part, Path) else repr(part).encode() for part in recipe]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:12]


def kept(target: Path, make: Callable[[Path], Path]) -> Path:
    """A file or directory of the cache, made first when it is missing.

    Args:
        target: below a directory of the cache, whose name is that of the lock.
        make: is given an empty directory, and returns what it made in it, which is then moved to its place.
    """
    if not target.exists():
        with locked(target.parent.name):
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as scratch:
                    make(Path(scratch)).rename(target)
    return target


@contextmanager
def locked(what: str) -> Iterator[None]:
    """Keeps other processes from making the same thing in the cache meanwhile."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{what}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
