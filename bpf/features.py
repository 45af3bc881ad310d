# SPDX-License-Identifier: Apache-2.0
"""What the programs need of the kernel, and whether it is there, as `bpftool feature probe` finds it.

Pure but for `probe`. A later kernel's extras are not judged here.
"""

import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from bpf import bpftool

KERNEL = (5, 10)

MAP_TYPES = ("hash", "array", "percpu_hash", "percpu_array", "lru_hash", "lpm_trie")

# It is done without where the kernel does not take its program.
XDP = "xdp"

# Program type to the helpers that bpf/*.c and the headers call with it.
HELPERS = {
    "sched_cls": (
        "bpf_csum_diff",
        "bpf_csum_level",
        "bpf_csum_update",
        "bpf_fib_lookup",
        "bpf_get_prandom_u32",
        "bpf_ktime_get_ns",
        "bpf_l4_csum_replace",
        "bpf_map_lookup_elem",
        "bpf_map_update_elem",
        "bpf_redirect",
        "bpf_redirect_neigh",
        "bpf_redirect_peer",
        "bpf_sk_lookup_udp",
        "bpf_sk_release",
        "bpf_skb_adjust_room",
        "bpf_skb_change_head",
        "bpf_skb_change_tail",
        "bpf_skb_get_tunnel_key",
        "bpf_skb_load_bytes",
        "bpf_skb_pull_data",
        "bpf_skb_set_tunnel_key",
        "bpf_skb_store_bytes",
        "bpf_skc_lookup_tcp",
    ),
    XDP: (
        "bpf_fib_lookup",
        "bpf_ktime_get_ns",
        "bpf_map_lookup_elem",
        "bpf_map_update_elem",
    ),
    "cgroup_sock_addr": (
        "bpf_get_netns_cookie",
        "bpf_get_prandom_u32",
        "bpf_get_socket_cookie",
        "bpf_map_lookup_elem",
        "bpf_map_update_elem",
    ),
}

# The sweep's, which is done without where the kernel has no BTF.
SWEEP_HELPERS = {"bpf_map_delete_elem", "bpf_seq_write"}

# What is used where it is there, and done without before: the first kernel that has it.
LATER_HELPERS = {"bpf_ktime_get_coarse_ns": (5, 11)}


# From here on an XDP program may say that it takes frames in several buffers: MTUs of more than a page.
XDP_FRAGS = (5, 18)


class Features(NamedTuple):
    """`missing` names program types, map types and helpers, and `missing_xdp` what XDP alone needs, without which the
    rest works; `configuration` holds the kernel's CONFIG_*, as far as they can be read ("y", "m", or None)."""

    missing: tuple[str, ...]
    missing_xdp: tuple[str, ...]
    configuration: Mapping[str, Any]


def probe() -> Features:
    """Asks the running kernel. Raises BpftoolError."""
    found = bpftool.features()
    return Features(tuple(missing(found)), tuple(missing_xdp(found)), found.get("system_config", {}))


def missing(found: Mapping[str, Any]) -> list[str]:
    """What the programs need, XDP's aside, and a report of `bpftool -j feature probe` does not have."""
    lacking = [name for name in MAP_TYPES if not found["map_types"].get(f"have_{name}_map_type")]
    programs = [program for program in HELPERS if program != XDP]
    return [f"map type {name}" for name in lacking] + [
        one for program in programs for one in _missing_of(program, found)
    ]


def missing_xdp(found: Mapping[str, Any]) -> list[str]:
    """What XDP's program needs, and such a report does not have."""
    return _missing_of(XDP, found)


def kernel() -> tuple[tuple[int, int], str]:
    """The running kernel's version, as two numbers and in full."""
    release = os.uname().release
    major, minor = re.findall(r"\d+", release)[:2]
    return (int(major), int(minor)), release


def _missing_of(program: str, found: Mapping[str, Any]) -> list[str]:
    if not found["program_types"].get(f"have_{program}_prog_type"):
        return [f"program type {program}"]
    available = set(found["helpers"].get(f"{program}_available_helpers", ()))
    return [f"{helper} in {program}" for helper in HELPERS[program] if helper not in available]
