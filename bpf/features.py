# SPDX-License-Identifier: Apache-2.0
"""What the programs need of the kernel, and whether it is there, as `bpftool feature probe` finds it.

Pure but for `probe`. A later kernel's extras are not judged here.
"""

import errno
import os
import re
from collections.abc import Mapping
from struct import Struct
from typing import Any, NamedTuple

from bpf import bpftool

KERNEL = (5, 10)

MAP_TYPES = ("hash", "array", "percpu_hash", "percpu_array", "lru_hash", "lpm_trie")

# Program type to the helpers that bpf/*.c and the headers call with it.
HELPERS = {
    "sched_cls": (
        "bpf_csum_diff",
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
        "bpf_skb_change_tail",
        "bpf_skb_get_tunnel_key",
        "bpf_skb_load_bytes",
        "bpf_skb_pull_data",
        "bpf_skb_set_tunnel_key",
        "bpf_skb_store_bytes",
        "bpf_skc_lookup_tcp",
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

# struct nlmsghdr, and flags of it.
_HEADER = Struct("=IHHII")
_REQUEST, _ACK = 1, 4


class Features(NamedTuple):
    """`missing` names program types, map types and helpers; `configuration` holds the kernel's CONFIG_*, as far as they
    can be read ("y", "m", or None)."""

    missing: tuple[str, ...]
    configuration: Mapping[str, Any]


def probe() -> Features:
    """Asks the running kernel. Raises BpftoolError."""
    found = bpftool.features()
    return Features(tuple(missing(found)), found.get("system_config", {}))


def missing(found: Mapping[str, Any]) -> list[str]:
    """What the programs need and a report of `bpftool -j feature probe` does not have."""
    lacking = [name for name in MAP_TYPES if not found["map_types"].get(f"have_{name}_map_type")]
    lacking = [f"map type {name}" for name in lacking]
    for program, helpers in HELPERS.items():
        if not found["program_types"].get(f"have_{program}_prog_type"):
            lacking.append(f"program type {program}")
            continue
        available = set(found["helpers"].get(f"{program}_available_helpers", ()))
        lacking += [f"{helper} in {program}" for helper in helpers if helper not in available]
    return lacking


def closes_sockets() -> bool:
    """Whether the kernel closes UDP sockets when it is asked to (CONFIG_INET_DIAG_DESTROY), found with one of our own.

    Source: include/uapi/linux/inet_diag.h, struct inet_diag_req_v2; sock_diag(7).

    Raises:
        PermissionError: that takes CAP_NET_ADMIN.
    """
    import socket

    netlink_sock_diag, sock_destroy, so_cookie, every_state = 4, 21, 57, 0xFFFFFFFF
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_sock_diag) as diag,
    ):
        own.bind(("", 0))
        cookie = own.getsockopt(socket.SOL_SOCKET, so_cookie, 8)
        asked = Struct("=BBxxI").pack(socket.AF_INET, socket.IPPROTO_UDP, every_state)
        asked += Struct("!HH32x").pack(own.getsockname()[1], 0) + bytes(4) + cookie
        diag.send(_HEADER.pack(_HEADER.size + len(asked), sock_destroy, _REQUEST | _ACK, 0, 0) + asked)
        (error,) = Struct("=i").unpack_from(diag.recv(4096), _HEADER.size)
    if error == -errno.EPERM:
        raise PermissionError(errno.EPERM, "closing sockets takes CAP_NET_ADMIN")
    return bool(error == 0)


def kernel() -> tuple[tuple[int, int], str]:
    """The running kernel's version, as two numbers and in full."""
    release = os.uname().release
    major, minor = re.findall(r"\d+", release)[:2]
    return (int(major), int(minor)), release
