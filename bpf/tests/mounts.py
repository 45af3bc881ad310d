# SPDX-License-Identifier: Apache-2.0
"""A BPF file system of a test's own, for the tests of every package."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def mounted_bpffs(directory: Path) -> Iterator[Path]:
    """Mounts a BPF file system at a new directory below `directory`; all that is pinned there goes with it."""
    point = directory / "bpffs"
    point.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", point], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "--lazy", point], check=True)
