# SPDX-License-Identifier: Apache-2.0
"""The name of a pod link's host end."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from bpf import podlink

HOST_FILE = Path(__file__).parents[2] / "conf/host/systemd/network/00-calico-ebpf.network"


@pytest.mark.parametrize(("name", "ours"), [("ce0123456789a", True), ("ceph-storage0", False), ("ce012345678", False)])
def test_pod_link_is_known_by_its_whole_name(name: str, ours: bool) -> None:
    """Not every device that begins so and is as long."""
    assert podlink.is_name(name) == ours


def test_pod_link_that_is_made_is_known() -> None:
    """By ourselves, and by the node's own network manager."""
    made = podlink.name("0123456789abcdef" * 4)
    assert podlink.is_name(made)
    patterns = HOST_FILE.read_text().partition("Name=")[2].split()
    assert any(fnmatchcase(made, pattern) for pattern in patterns)
