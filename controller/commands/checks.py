# SPDX-License-Identifier: Apache-2.0
"""What a check of `calico-ebpf doctor` is, and the checks of the kernel and its mounts."""

import os
import socket
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from bpf import bpftool, features, mapmemory, node, sockdiag
from bpf.errors import BpfError
from bpf.features import Features
from bpf.settings import Settings

PROC_SYS = Path("/proc/sys")


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Check(NamedTuple):
    """What was looked at, what was seen, and what to do about it, "" where it is well."""

    name: str
    verdict: Verdict
    seen: str
    advice: str = ""


def check(name: str, good: bool, seen: str, advice: str, otherwise: Verdict = Verdict.FAIL) -> Check:
    return Check(name, Verdict.OK, seen) if good else Check(name, otherwise, seen, advice)


def kernel_checks(settings: Settings) -> Iterator[Check]:
    version, release = features.kernel()
    wanted = ".".join(map(str, features.KERNEL))
    yield check("kernel", version >= features.KERNEL, release, f"boot a kernel of {wanted} or newer")
    yield _bpftool()
    found = _probe()
    if isinstance(found, Features):
        yield from _features(found)
        if settings.xdp == "on":
            yield _xdp(found)
    else:
        yield found
    yield _sctp()
    yield _jit()
    yield _memory(settings)
    mounted = node.filesystem(settings.bpffs) == "bpf"
    yield check("bpffs", mounted, str(settings.bpffs), f"mount -t bpf bpf {settings.bpffs}")
    if settings.connect_time == "off":
        yield Check("cgroup2", Verdict.OK, "not needed: connect_time is off")
    else:
        yield _cgroup(settings)
        yield _sockets()


def sysctl(name: str) -> str:
    """The value of a file below /proc/sys; "" where it is absent."""
    try:
        return (PROC_SYS / name).read_text().strip()
    except OSError:
        return ""


def _bpftool() -> Check:
    try:
        return Check("bpftool", Verdict.OK, bpftool.version())
    except BpfError as error:
        return Check("bpftool", Verdict.FAIL, str(error), "install bpftool")


def _probe() -> Features | Check:
    try:
        return features.probe()
    except BpfError as error:
        return Check(
            "features", Verdict.FAIL, str(error), "see whether this process may use BPF (CAP_BPF, CAP_NET_ADMIN)"
        )


def _features(found: Features) -> Iterator[Check]:
    lacking = ", ".join(found.missing) or "every program type, map type and helper is there"
    yield check("features", not found.missing, lacking, "boot a kernel that has them")
    for option, what in (("CONFIG_NET_SCH_INGRESS", "clsact"), ("CONFIG_NET_CLS_BPF", "TC programs")):
        value = found.configuration.get(option)
        seen = f"{option}={value}" if value else f"{option} is not set, or the kernel's configuration cannot be read"
        yield check(what, bool(value), seen, f"needs {option}, if programs cannot be attached", Verdict.WARN)


def _xdp(found: Features) -> Check:
    lacking = ", ".join(found.missing_xdp) or "every helper is there"
    return check("xdp features", not found.missing_xdp, lacking, "all works without; or set xdp to off", Verdict.WARN)


def _jit() -> Check:
    value = sysctl("net/core/bpf_jit_enable")
    seen = f"net.core.bpf_jit_enable={value}" if value else "not known: not visible from this network namespace"
    return check("jit", value != "0", seen, "sysctl -w net.core.bpf_jit_enable=1: programs run slowly", Verdict.WARN)


def _sctp() -> Check:
    """Translating it needs nothing; whether pods can speak it is up to the kernel, which may load a module for it."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP).close()
    except OSError:
        return Check("sctp", Verdict.OK, "this kernel has no sockets of it: nobody here can use it")
    return Check("sctp", Verdict.OK, "there")


def _memory(settings: Settings) -> Check:
    """What the maps take when they are full, against all that there is."""
    wanted = mapmemory.full_bytes(node.map_sizes(settings)) / 1e6
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    seen = f"{wanted:.0f} MB for full maps, of {there:.0f} MB"
    return check("memory", wanted < there / 4, seen, "lower the sizes of maps (*_max)", Verdict.WARN)


def _cgroup(settings: Settings) -> Check:
    try:
        root = node.cgroup_root(settings)
    except BpfError as error:
        return Check("cgroup2", Verdict.FAIL, str(error), "mount it, or set connect_time to off")
    good = node.filesystem(root) == "cgroup2" and root.is_dir()
    seen = str(root) if good else f"{root} is not a directory of a cgroup2 mount"
    return check("cgroup2", good, seen, f"mount -t cgroup2 none {root}, or set cgroup to where it is mounted")


def _sockets() -> Check:
    try:
        good = sockdiag.closes()
    except PermissionError:
        return Check("udp sockets", Verdict.WARN, "not known: needs CAP_NET_ADMIN", "run it as root")
    if good:
        return Check("udp sockets", Verdict.OK, "those of backends that are gone are closed")
    seen = "the kernel closes none (CONFIG_INET_DIAG_DESTROY): those of host processes are translated packet by packet"
    return Check("udp sockets", Verdict.OK, seen)
