# SPDX-License-Identifier: Apache-2.0
"""What the programs need, against what they call and what bpftool reports."""

import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bpf import features

SOURCES = Path(features.__file__).parent


def report() -> dict[str, Any]:
    """A kernel that has exactly what is needed."""
    return {
        "program_types": {f"have_{program}_prog_type": True for program in features.HELPERS},
        "map_types": {f"have_{name}_map_type": True for name in features.MAP_TYPES},
        "helpers": {f"{program}_available_helpers": list(names) for program, names in features.HELPERS.items()},
    }


def test_missing_of_a_whole_kernel_is_nothing() -> None:
    """A kernel with everything lacks nothing."""
    assert features.missing(report()) == []


def test_missing_names_program_map_and_helper() -> None:
    """Each thing that is not there is named; the helpers of an absent program type are not listed on top."""
    found = report()
    found["program_types"]["have_cgroup_sock_addr_prog_type"] = False
    found["map_types"]["have_lru_hash_map_type"] = False
    found["helpers"]["sched_cls_available_helpers"].remove("bpf_redirect_peer")
    assert features.missing(found) == [
        "map type lru_hash",
        "bpf_redirect_peer in sched_cls",
        "program type cgroup_sock_addr",
    ]


def test_missing_of_xdp_is_told_apart() -> None:
    """The rest works without."""
    found = report()
    found["helpers"]["xdp_available_helpers"].remove("bpf_fib_lookup")
    assert features.missing(found) == []
    assert features.missing_xdp(found) == ["bpf_fib_lookup in xdp"]
    found["program_types"]["have_xdp_prog_type"] = False
    assert features.missing_xdp(found) == ["program type xdp"]


def test_helpers_are_those_that_the_programs_call() -> None:
    """The list follows the C sources: no helper is asked for that nobody calls, and none forgotten."""
    conversions = {"bpf_htons", "bpf_ntohs", "bpf_htonl", "bpf_ntohl"}
    called = set()
    for path in [*SOURCES.glob("*.c"), *SOURCES.glob("*.h")]:
        called |= set(re.findall(r"\b(bpf_[a-z0-9_]+)\(", path.read_text()))
    assert called - conversions - features.SWEEP_HELPERS - features.LATER_HELPERS.keys() == {
        name for names in features.HELPERS.values() for name in names
    }


@pytest.mark.parametrize(
    ("release", "version"), [("5.10.0-28-amd64", (5, 10)), ("6.18.44-fc-v669", (6, 18)), ("7.2-rc1", (7, 2))]
)
def test_kernel_version_is_two_numbers(monkeypatch: pytest.MonkeyPatch, release: str, version: tuple[int, int]) -> None:
    """Distributions write what they like behind the first two numbers."""
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
    assert features.kernel() == (version, release)
