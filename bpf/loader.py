# SPDX-License-Identifier: Apache-2.0
"""Creates the pinned maps and loads the programs onto them, once per node, whichever daemon comes first.

Pins, below `<bpffs>/calico-ebpf/v<ABI_VERSION>`:

    maps/NAME               each map of bpf/maps.h and bpf/table.h
    programs -> programs-D  a link that is switched atomically; D is a digest of the objects and their constants
    links/NAME              attachments to the cgroup

Maps outlive the programs: a newer build of the same layout is loaded onto them, and no flow is lost.
"""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bpf import bpftool, elf, syscall
from bpf.abi import MAPS, AbiVersion, Config, MapSpec
from bpf.errors import KernelError, LayoutError, NotLoadedError
from bpf.syscall import MapInfo

OBJECTS = ("tc.o", "cgroup.o")

# Objects that need a newer kernel than the rest, and are done without before it.
OPTIONAL = {"sweep.o": (5, 13)}
# Of a map in shards. A sweep walks one in a run, which holds a CPU: for 1 to 2 ms when it is full. Not less, since an
# LRU map keeps up to 128 free entries for each CPU that has ever written to it, and a CPU that finds none left evicts
# what it has just entered: kernels without commit d4adf1c9ee77 ("bpf: Adjust free target to avoid global starvation of
# LRU map") do not adapt that number to the map. This is enough for some 100 CPUs.
SHARD_ENTRIES = 16384

ARRAY_OF_MAPS = 12  # BPF_MAP_TYPE_ARRAY_OF_MAPS


class Pins:
    """Where everything of this layout is pinned on a node.

    Args:
        bpffs: the mount point, /sys/fs/bpf.
    """

    def __init__(self, bpffs: Path) -> None:
        self.root = bpffs / "calico-ebpf" / f"v{AbiVersion.VERSION}"
        self.maps = self.root / "maps"
        self.programs = self.root / "programs"
        self.links = self.root / "links"

    def map(self, name: str) -> Path:
        return self.maps / name

    def program(self, name: str) -> Path:
        return self.programs / name

    def open_map(self, name: str) -> int:
        """A descriptor of a pinned map. Raises NotLoadedError."""
        return _open(self.map(name))

    def open_shard(self, name: str, index: int) -> int:
        """A descriptor of one map of those that `open_shards` opens. Raises NotLoadedError."""
        array = self.open_map(name)
        try:
            return _shard(array, index)
        finally:
            os.close(array)

    def open_shards(self, name: str) -> list[int]:
        """Descriptors of all maps of one that stands in shards, in their order. Raises NotLoadedError."""
        array = self.open_map(name)
        try:
            return [syscall.map_by_id(one) for one in _shard_ids(array, MAPS[name])]
        finally:
            os.close(array)

    def count_shards(self, name: str) -> int:
        """How many maps `open_shards` opens; they stand in the first places of the array. Raises NotLoadedError."""
        array = self.open_map(name)
        try:
            return len(_shard_ids(array, MAPS[name]))
        finally:
            os.close(array)

    def open_program(self, name: str) -> int:
        """A descriptor of a pinned program. Raises NotLoadedError."""
        return _open(self.program(name))


def load(pins: Pins, objects: Path, config: Config, sizes: Mapping[str, int], lock: Path, replace: bool = True) -> bool:
    """Makes sure that the maps exist and that the programs of `objects`, with `config`, are the ones pinned.

    Args:
        sizes: map name to max_entries, where it differs from bpf/maps.h; a map that is there already keeps its size.
        lock: a file that the node's daemons lock while they do this.
        replace: without it programs that are pinned stay, whichever they are.

    Returns:
        Whether programs were loaded: what is attached must then be replaced.

    Raises:
        LayoutError: a pinned map has another layout.
        KernelError: bpffs is not mounted, or this kernel takes no BPF.
        BpftoolError: the kernel refused the programs; the message carries the verifier's log.
    """
    with _locked(lock):
        _ensure_maps(pins, sizes)
        if not replace and pins.programs.is_dir():
            return False
        images = {name: _image(objects / name, config) for name in _objects()}
        digest = hashlib.sha256(b"".join(images.values())).hexdigest()[:12]
        target = pins.root / f"programs-{digest}"
        if pins.programs.is_symlink() and os.readlink(pins.programs) == target.name and target.is_dir():
            return False
        _load_programs(pins, target, images)
        _sweep(pins, target)
        return True


def unload(pins: Pins) -> None:
    """Removes every pin of this layout; what is still attached stays until its device or cgroup lets go of it."""
    shutil.rmtree(pins.root, ignore_errors=True)


def netns_cookie() -> int:
    """The cookie of the caller's network namespace, or 0 before kernel 5.14, which stands for the initial one."""
    import socket

    so_netns_cookie = 71
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8), "little")
        except OSError:
            return 0


def _ensure_maps(pins: Pins, sizes: Mapping[str, int]) -> None:
    try:
        pins.maps.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise KernelError(f"{pins.maps}: {error.strerror}; is bpffs mounted there?") from error
    for name, spec in MAPS.items():
        pin = pins.map(name)
        try:
            fd = syscall.obj_get(pin)
        except FileNotFoundError:
            fd = _create(name, spec, sizes.get(name, spec.max_entries))
            try:
                syscall.obj_pin(fd, pin)
            except PermissionError as error:
                os.close(fd)
                raise KernelError(f"{pin}: cannot pin a map; is bpffs mounted there?") from error
        try:
            _check_layout(pin, fd, spec)
        finally:
            os.close(fd)


def _create(name: str, spec: MapSpec, entries: int) -> int:
    """A new map; one of shards is an array of maps, each with its share of the entries, in turn at every place."""
    count = shard_count(spec, entries)
    entries //= count
    shape = MapInfo(spec.map_type, 0, spec.key_size, spec.value_size, entries, spec.map_flags)
    if not spec.shards:
        return syscall.map_create(shape, name)
    shards = [syscall.map_create(shape, name) for _ in range(count)]
    array = syscall.map_create(MapInfo(ARRAY_OF_MAPS, 0, 4, 4, spec.shards, 0), name, inner_fd=shards[0])
    for index in range(spec.shards):
        syscall.map_update(array, index.to_bytes(4, "little"), shards[index % count].to_bytes(4, "little"))
    for shard in shards:
        os.close(shard)
    return array


def shard_count(spec: MapSpec, entries: int) -> int:
    """How many maps a map of so many entries is made of: 1 where it does not stand in shards."""
    count = 1
    while count < spec.shards and entries > count * SHARD_ENTRIES:
        count *= 2
    return count


def _check_layout(pin: Path, fd: int, spec: MapSpec) -> None:
    info = syscall.map_info(fd)
    if spec.shards and info.map_type == ARRAY_OF_MAPS:
        shard = _shard(fd, 0)
        info = syscall.map_info(shard)
        os.close(shard)
    if (info.map_type, info.key_size, info.value_size) != (spec.map_type, spec.key_size, spec.value_size):
        raise LayoutError(
            f"{pin} has another layout (type {info.map_type}, key {info.key_size}, value {info.value_size} bytes; "
            f"expected {spec.map_type}, {spec.key_size}, {spec.value_size}): it was not made by this version. "
            f"`calico-ebpf uninstall` removes it, with every flow in it"
        )


def _shard_ids(array_fd: int, spec: MapSpec) -> list[int]:
    """The ids of the maps in an array, each once, in their order."""
    return list(dict.fromkeys(_shard_id(array_fd, index) for index in range(spec.shards)))


def _shard(array_fd: int, index: int) -> int:
    return syscall.map_by_id(_shard_id(array_fd, index))


def _shard_id(array_fd: int, index: int) -> int:
    found = syscall.map_lookup(array_fd, index.to_bytes(4, "little"), 4)
    if found is None:
        raise LayoutError(f"shard {index} is missing")
    return int.from_bytes(found, "little")


def _objects() -> list[str]:
    version, _, _ = os.uname().release.partition("-")
    kernel = tuple(int(part) for part in version.split(".")[:2])
    return [*OBJECTS, *(name for name, least in OPTIONAL.items() if kernel >= least)]


def _image(path: Path, config: Config) -> bytes:
    try:
        image = path.read_bytes()
    except FileNotFoundError as error:
        raise NotLoadedError(f"{path} is missing: `make build` makes it") from error
    return elf.patch(image, "config", config.pack()) if "config" in elf.symbols(image) else image


def _load_programs(pins: Pins, target: Path, images: Mapping[str, bytes]) -> None:
    """Loads into a directory of its own, then switches the link to it."""
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="calico-ebpf-") as scratch:
        for name, image in images.items():
            obj = Path(scratch) / name
            obj.write_bytes(image)
            bpftool.load(obj, target, [(used, pins.map(used)) for used in elf.map_names(obj) if used in MAPS])
    link = pins.root / "programs-next"
    link.unlink(missing_ok=True)
    link.symlink_to(target.name)
    link.rename(pins.programs)


def _sweep(pins: Pins, current: Path) -> None:
    """Removes the pins of earlier programs: what is attached holds them until it is replaced."""
    for stale in pins.root.glob("programs-*"):
        if stale != current:
            shutil.rmtree(stale, ignore_errors=True)


def _open(pin: Path) -> int:
    try:
        return syscall.obj_get(pin)
    except FileNotFoundError as error:
        raise NotLoadedError(f"{pin}: not there; has a calico-ebpf daemon run on this node?") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
