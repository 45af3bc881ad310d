# SPDX-License-Identifier: Apache-2.0
"""Attaches the pinned programs: to devices as direct-action filters of clsact, to the cgroup by pinned links.

A hook is named after its program: `from_*` stands at ingress, `to_*` at egress. Attaching again replaces the program
atomically. `netlink` is a pyroute2.IPRoute, or anything with its `tc` method, such as an IPBatch, which only encodes.
"""

import errno
import os
from pathlib import Path
from typing import Any

from bpf import syscall
from bpf.pins import Pins, closed_after

# First of the priorities, with a handle of our own: filters of others stand behind it, and see what it lets pass.
PRIORITY = 1
HANDLE = 0xCE
# What comes before a hook in a filter's name.
FILTER_PREFIX = "calico-ebpf/"
ETH_P_ALL = 3

CLSACT = 0xFFFFFFF1
INGRESS = 0xFFFFFFF2
EGRESS = 0xFFFFFFF3

# The XDP program, by whose name it is known again.
XDP_PROGRAM = "calico_ebpf_xdp"
# What the kernel says where there is another one, or none, or no such device.
XDP_GONE = (errno.ENOENT, errno.EEXIST, errno.EINVAL, errno.ENODEV)
_XDP_UPDATE_IF_NOEXIST, _XDP_DRIVER, _XDP_REPLACE = 1, 4, 16

# enum bpf_attach_type of the programs in bpf/cgroup.c
CGROUP_HOOKS = {
    "connect4": 10,
    "connect6": 11,
    "sendmsg4": 14,
    "sendmsg6": 15,
    "recvmsg4": 19,
    "recvmsg6": 20,
    "getpeername4": 29,
    "getpeername6": 30,
}


def add_clsact(netlink: Any, ifindex: int) -> None:
    """Adds the clsact queueing discipline; pyroute2's NetlinkError 17 (EEXIST) says that it is there."""
    netlink.tc("add", "clsact", ifindex)


def attach_device(netlink: Any, ifindex: int, hook: str, program_fd: int) -> None:
    """Attaches a program to a device with clsact, or replaces the one that stands there."""
    netlink.tc(
        "replace-filter",
        "bpf",
        ifindex,
        handle=HANDLE,
        fd=program_fd,
        name=FILTER_PREFIX + hook,
        parent=INGRESS if hook.startswith("from_") else EGRESS,
        prio=PRIORITY,
        protocol=ETH_P_ALL,
        direct_action=True,
    )


def detach_device(netlink: Any, ifindex: int, hook: str) -> None:
    """Takes our filter off a device; pyroute2's NetlinkError 2 or 22 says that there was none."""
    parent = INGRESS if hook.startswith("from_") else EGRESS
    netlink.tc("del-filter", "bpf", ifindex, handle=HANDLE, parent=parent, prio=PRIORITY, protocol=ETH_P_ALL)


def attach_xdp(netlink: Any, ifindex: int, program_fd: int, replaced_fd: int | None = None) -> None:
    """Attaches the XDP program in the device's driver, never in generic mode, where no other stands; or replaces that
    one. pyroute2's NetlinkError says why not: see XDP_REFUSALS of controller.routes."""
    flags = _XDP_DRIVER | (_XDP_UPDATE_IF_NOEXIST if replaced_fd is None else _XDP_REPLACE)
    _set_xdp(netlink, ifindex, program_fd, flags, replaced_fd)


def detach_xdp(netlink: Any, ifindex: int, replaced_fd: int) -> None:
    """Takes this XDP program off a device; pyroute2's NetlinkError with one of XDP_GONE says that it is not there."""
    _set_xdp(netlink, ifindex, -1, _XDP_DRIVER | _XDP_REPLACE, replaced_fd)


def _set_xdp(netlink: Any, ifindex: int, program_fd: int, flags: int, replaced_fd: int | None) -> None:
    attributes = [("IFLA_XDP_FD", program_fd), ("IFLA_XDP_FLAGS", {"value": flags})]
    if replaced_fd is not None:
        attributes.append(("IFLA_XDP_EXPECTED_FD", replaced_fd))
    netlink.link("set", index=ifindex, xdp={"attrs": attributes})


def attach_cgroup(pins: Pins, cgroup: Path) -> None:
    """Attaches every cgroup program at `cgroup`, or replaces it there; what was attached to another cgroup moves."""
    pins.links.mkdir(exist_ok=True)
    directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for name, attach_type in CGROUP_HOOKS.items():
            _attach_link(pins, name, directory, attach_type)
    finally:
        os.close(directory)


def move_cgroup(before: Pins, pins: Pins) -> None:
    """Replaces the programs that another layout has attached to the cgroup, and takes over their links."""
    for name in CGROUP_HOOKS:
        try:
            found = syscall.obj_get(before.links / name)
        except FileNotFoundError:
            continue
        pins.links.mkdir(exist_ok=True)
        with closed_after(found) as link, pins.opened_program(name) as program:
            syscall.link_update(link, program)
            # One that stands here is of an earlier time, or this very one.
            (pins.links / name).unlink(missing_ok=True)
            syscall.obj_pin(link, pins.links / name)
        (before.links / name).unlink()


def detach_cgroup(pins: Pins) -> None:
    for name in CGROUP_HOOKS:
        (pins.links / name).unlink(missing_ok=True)


def _attach_link(pins: Pins, name: str, target_fd: int, attach_type: int) -> None:
    pin = pins.links / name
    with pins.opened_program(name) as program:
        if not _updated(pin, program, os.fstat(target_fd).st_ino):
            with closed_after(syscall.link_create(program, target_fd, attach_type)) as link:
                pin.unlink(missing_ok=True)
                syscall.obj_pin(link, pin)


def _updated(pin: Path, program: int, cgroup: int) -> bool:
    """Replaces the program of a pinned link; False: there is none, or it leads to another cgroup."""
    try:
        found = syscall.obj_get(pin)
    except FileNotFoundError:
        return False
    with closed_after(found) as link:
        if syscall.link_cgroup(link) != cgroup:
            return False
        syscall.link_update(link, program)
    return True
