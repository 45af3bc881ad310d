# SPDX-License-Identifier: Apache-2.0
"""What a map is said to take, against what the kernel says that it takes."""

import os
from pathlib import Path

import pytest

from bpf import mapmemory, syscall
from bpf.abi import MAPS
from bpf.syscall import MapInfo

ENTRIES = 16384


@pytest.mark.root
@pytest.mark.parametrize("name", ["flows", "affinities", "sockets"])
def test_map_that_is_whole_from_the_start_takes_what_is_said(name: str) -> None:
    """A fifth less or more: free lists for each CPU are not counted, and each kernel has its own padding."""
    spec = MAPS[name]
    assert mapmemory.taken_at_once(spec)
    fd = syscall.map_create(MapInfo(spec.map_type, 0, spec.key_size, spec.value_size, ENTRIES, spec.map_flags), name)
    try:
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    finally:
        os.close(fd)
    (taken,) = (int(line.split()[1]) for line in lines if line.startswith("memlock"))
    assert mapmemory.full_bytes({name: ENTRIES}) == pytest.approx(taken, rel=0.2)
