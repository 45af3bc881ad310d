# SPDX-License-Identifier: Apache-2.0
"""Creates the pinned maps and loads the programs onto them, once per node, whichever daemon comes first.

Maps outlive the programs: a newer build of the same layout is loaded onto them, and no flow is lost. Another
layout takes over what it can of them: see bpf/upgrade.py.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bpf import bpftool, elf, features, mapmemory, syscall, upgrade
from bpf.abi import MAPS, Config, MapSpec
from bpf.errors import BpftoolError, KernelError, LayoutError, NotLoadedError
from bpf.pins import Pins, replace_link
from bpf.syscall import MapInfo

# In the standard library alone, as other kernels' guests have it: without a handler it prints to standard error.
log = logging.getLogger(__name__)

# XDP's is loaded whether or not it is set, so that the setting makes no other layout.
XDP = "xdp.o"
OBJECTS = ("tc.o", "cgroup.o", XDP)

# The sweep's; without BTF no kernel takes iterators.
SWEEP = "sweep.o"
# What is done without where the kernel does not take it.
OPTIONAL = (SWEEP, XDP)
KERNEL_BTF = Path("/sys/kernel/btf/vmlinux")


def load(pins: Pins, objects: Path, config: Config, sizes: Mapping[str, int], lock: Path, replace: bool = True) -> bool:
    """Makes sure that the maps exist and that the programs of `objects`, with `config`, are the ones pinned.

    Args:
        sizes: map name to max_entries, where it differs from bpf/maps.h. Maps that have another size are taken over
            from as those of another layout; one that holds more than it should keeps its size.
        lock: a file that the node's daemons lock while they do this.
        replace: without it maps and programs that are pinned stay, whichever they are.

    Returns:
        Whether programs were loaded: what is attached must then be replaced.

    Raises:
        LayoutError: a pinned map has another layout.
        KernelError: bpffs is not mounted, or this kernel takes no BPF.
        BpftoolError: the kernel refused the programs, those of OPTIONAL aside; the message carries the verifier's log.
    """
    with _locked(lock):
        _require_link(pins)
        held = pins.in_force()
        if held and not replace:
            pins = held
        else:
            there = held or upgrade.predecessor(pins)
            if there:
                sizes = {**sizes, **upgrade.overfull(there, sizes)}
            pins = pins.sized(sizes)
        before = upgrade.predecessor(pins)
        if before and not pins.entered() and pins.root.exists():
            pins.remove()  # the half copy of who was killed: entries may have changed since, or gone
        _ensure_maps(pins, sizes, before)
        current = _programs(pins)
        target = current if current and not replace else _ensure_programs(pins, objects, config)
        if before:
            _take_over(before, pins, target)
        elif target != current or not held:
            _link(pins, target)
        _sweep(pins, target)
        return target != current


def _take_over(before: Pins, pins: Pins, target: Path) -> None:
    """Goes over from another layout; done again from the beginning when it was killed. Raises BpfError."""
    copying = upgrade.Copying(before, pins)
    try:
        with upgrade.switching(before, target) as switch:
            copying.round()
            copying.round()  # what has changed meanwhile: the next takes the shorter
            with upgrade.holding(before, pins):
                _link(pins, target)
                switch(pins)
                copying.round()
    except OSError as error:
        raise KernelError(f"taking over from {before.root}: {error}") from error


def netns_cookie() -> int:
    """The cookie of the caller's network namespace, or 0 before kernel 5.14, which stands for the initial one."""
    import socket

    so_netns_cookie = 71
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8), "little")
        except OSError:
            return 0


def _require_link(pins: Pins) -> None:
    if pins.root.is_dir() and not pins.root.is_symlink():
        raise LayoutError(
            f"{pins.root} is no link: it was not made by this version. `calico-ebpf uninstall` removes it, with every "
            f"flow in it"
        )


def _ensure_maps(pins: Pins, sizes: Mapping[str, int], before: Pins | None = None) -> None:
    try:
        pins.maps.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(f"{pins.maps}: {error.strerror}; is bpffs mounted there?") from error
    if before:
        upgrade.share(before, pins, sizes)
    for name, spec in MAPS.items():
        pin = pins.map(name)
        try:
            fd = syscall.obj_get(pin)
        except FileNotFoundError:
            entries = sizes.get(name, spec.max_entries)
            fd = _create(name, spec, entries)
            try:
                syscall.obj_pin(fd, pin)
            except PermissionError as error:
                os.close(fd)
                raise KernelError(f"{pin}: cannot pin a map; is bpffs mounted there?") from error
        try:
            _check_layout(pin, fd, spec)
        finally:
            os.close(fd)
    upgrade.describe(pins)


def _create(name: str, spec: MapSpec, entries: int) -> int:
    """A descriptor of a new map. Raises KernelError: there is no room for it."""
    try:
        return syscall.map_create(
            MapInfo(spec.map_type, 0, spec.key_size, spec.value_size, entries, spec.map_flags), name
        )
    except OSError as error:
        if error.errno not in (errno.ENOMEM, errno.E2BIG):
            raise
        wanted = mapmemory.full_bytes({name: entries}) / 1e6
        raise KernelError(
            f"map {name}: the kernel has no room for {entries} entries, some {wanted:.0f} MB: lower {name}_max"
        ) from error


def _check_layout(pin: Path, fd: int, spec: MapSpec) -> None:
    info = syscall.map_info(fd)
    if (info.map_type, info.key_size, info.value_size) != (spec.map_type, spec.key_size, spec.value_size):
        raise LayoutError(
            f"{pin} has another layout (type {info.map_type}, key {info.key_size}, value {info.value_size} bytes; "
            f"expected {spec.map_type}, {spec.key_size}, {spec.value_size}): it was not made by this version. "
            f"`calico-ebpf uninstall` removes it, with every flow in it"
        )


def _objects() -> list[str]:
    return [*OBJECTS, *([SWEEP] if KERNEL_BTF.exists() else [])]


def _image(path: Path, config: Config) -> bytes:
    try:
        image = path.read_bytes()
    except FileNotFoundError as error:
        raise NotLoadedError(f"{path} is missing: `make build` makes it") from error
    if features.kernel()[0] < features.XDP_FRAGS:
        image = image.replace(b"xdp.frags\0", b"xdp\0".ljust(10, b"\0"))  # the section's name says what it can
    return elf.patch(image, "config", config.pack()) if "config" in elf.symbols(image) else image


def _programs(pins: Pins) -> Path | None:
    """Where the programs are that `pins.programs` leads to."""
    return pins.root / os.readlink(pins.programs) if pins.programs.is_dir() else None


def _ensure_programs(pins: Pins, objects: Path, config: Config) -> Path:
    """Loads the programs, unless they are those that are pinned; returns where they are."""
    images = {name: _image(objects / name, config) for name in _objects()}
    digest = hashlib.sha256(b"".join(images.values())).hexdigest()[:12]
    target = pins.root / f"programs-{digest}"
    if target != _programs(pins):
        _load_programs(pins, target, images)
    return target


def _link(pins: Pins, target: Path) -> None:
    """Has `pins.programs` lead to these, and this version's link to `pins`, each from one moment to the next."""
    replace_link(pins.programs, target.name)
    pins.enter()


def _load_programs(pins: Pins, target: Path, images: Mapping[str, bytes]) -> None:
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="calico-ebpf-") as scratch:
        for name, image in images.items():
            obj = Path(scratch) / name
            obj.write_bytes(image)
            try:
                bpftool.load(obj, target, [(used, pins.map(used)) for used in elf.map_names(obj) if used in MAPS])
            except BpftoolError as error:
                if name not in OPTIONAL:
                    raise
                log.warning("program-refused object=%s why=%s", name, error)


def _sweep(pins: Pins, current: Path) -> None:
    """Removes the pins of earlier programs, which what is attached holds until it is replaced, and of other layouts."""
    for stale in pins.root.glob("programs-*"):
        if stale != current:
            shutil.rmtree(stale, ignore_errors=True)
    for other in pins.others():
        other.remove()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
