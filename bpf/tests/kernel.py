# SPDX-License-Identifier: Apache-2.0
"""What the packet tests ask of a kernel: functions of plain values, which `here` runs on this machine's kernel, and
e2e.kernels on another. They need the standard library and `bpf`.
"""

import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from bpf import loader, syscall
from bpf.abi import MAPS, Config
from bpf.pins import Pins

OBJECTS = Path(__file__).parents[2] / "build" / "bpf"
CLONE_NEWNET = 0x40000000
_IP_TRANSPARENT, _IPV6_TRANSPARENT, _TCP_REPAIR = (socket.IPPROTO_IP, 19), (socket.IPPROTO_IPV6, 75), 19

# Commands of bpf(2), and room for what they read; no key has 64 bytes, and no value 256.
_MAP_LOOKUP_AND_DELETE_BATCH, _MAP_UPDATE_BATCH = 25, 26
_BATCH_ENTRIES = 4096
_position = ctypes.create_string_buffer(64)
_keys = ctypes.create_string_buffer(_BATCH_ENTRIES * 64)
_values = ctypes.create_string_buffer(_BATCH_ENTRIES * 256)

T = TypeVar("T")


class Kernel(Protocol):
    """Runs a function of this module, or of another one that is there, and returns what it returns."""

    def __call__(self, function: Callable[..., T], *arguments: object) -> T: ...


def here(function: Callable[..., T], *arguments: object) -> T:
    """The kernel of this machine."""
    return function(*arguments)


class Programs(NamedTuple):
    """Loaded programs on maps of their own: descriptors by name, and the directory that holds their pins."""

    maps: dict[str, int]
    programs: dict[str, int]
    directory: str


def load(config: Config, sizes: dict[str, int]) -> Programs:
    """Loads every object that this kernel takes, pinned in a BPF file system of its own."""
    directory = tempfile.mkdtemp(prefix="calico-ebpf-")
    mount = Path(directory) / "bpffs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    try:
        pins = Pins(mount)
        loader.load(pins, OBJECTS, config, sizes, Path(directory) / "lock")
        maps = {name: pins.open_map(name) for name in MAPS}
        programs = {path.name: syscall.obj_get(path) for path in pins.programs.iterdir()}
        return Programs(maps, programs, directory)
    except BaseException:
        _remove(directory)
        raise


def unload(loaded: Programs) -> None:
    for descriptor in (*loaded.maps.values(), *loaded.programs.values()):
        os.close(descriptor)
    _remove(loaded.directory)


def empty(maps: list[int]) -> None:
    """Deletes every entry of hash maps, given by their descriptors."""
    for descriptor in maps:
        _drain(descriptor)


def delete_all(descriptor: int, keys: list[bytes]) -> None:
    """Deletes those of the keys that are there."""
    for key in keys:
        syscall.map_delete(descriptor, key)


def lookup_per_cpu(descriptor: int, keys: list[bytes], size: int) -> list[bytes | None]:
    """The values of keys, each of all CPUs, joined."""
    cpus = os.cpu_count() or 1
    return [syscall.map_lookup(descriptor, key, size * cpus) for key in keys]


def takes_run(program: int, flags: int) -> bool:
    """Whether a test run of a program with such flags is known to the kernel."""
    try:
        syscall.program_test_run(program, bytes(64), flags=flags)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def read_iterator(program: int, table: int, size: int) -> list[bytes]:
    """What an iterator over a map's entries writes, read in pieces of so many bytes."""
    with syscall.map_iterator(program, table) as iterator:
        return list(iter(lambda: os.read(iterator, size), b""))


def write_all(descriptor: int, keys: bytes, values: bytes, count: int) -> None:
    """Writes `count` entries of a hash map."""
    key_buffer, value_buffer = ctypes.create_string_buffer(keys), ctypes.create_string_buffer(values)
    places = (0, 0, ctypes.addressof(key_buffer), ctypes.addressof(value_buffer))
    syscall._call(_MAP_UPDATE_BATCH, _batch(places, count, descriptor), "map update")


def enter_routed_namespace() -> int:
    """Enters a new network namespace that forwards, and where everything is routed out of lo; returns the old one."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    assert not ctypes.CDLL(None).unshare(CLONE_NEWNET)
    for command in ("link set lo up", "route add default dev lo", "-6 route add default dev lo"):
        subprocess.run(["ip", *command.split()], check=True)
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        Path("/proc/sys/net", name).write_text("1")
    return home


def leave_namespace(home: int) -> None:
    assert not ctypes.CDLL(None).setns(home, CLONE_NEWNET)
    os.close(home)


def route_out(name: str, addresses: list[str]) -> int:
    """Makes a device by which addresses are reached, and returns its index."""
    for command in (f"link add {name} type veth peer name {name}-far", f"link set {name} up"):
        subprocess.run(["ip", *command.split()], check=True)
    for address in addresses:
        subprocess.run(["ip", "route", "add", address, "dev", name], check=True)
    return socket.if_nametoindex(name)


def local_route(change: str, address: str) -> None:
    subprocess.run(["ip", "route", change, "local", address, "dev", "lo"], check=True)


def remove_device(name: str) -> None:
    subprocess.run(["ip", "link", "del", name], check=True)


# A program that passes every frame.
XDP_PASS = '__attribute__((section("xdp"))) int passes(void *frame) { return 2; }'


def compiled(source: str, directory: Path) -> Path:
    """The object of a program that a test writes itself, in C."""
    written, made = directory / "program.c", directory / "program.o"
    written.write_text(source)
    system = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(["clang", "-target", "bpf", "-O2", system, "-c", written, "-o", made], check=True)
    return made


def route_by(address: str, router: str) -> None:
    subprocess.run(["ip", "route", "add", address, "via", router, "dev", "lo", "onlink"], check=True)


def know_neighbours(addresses: list[str], device: str = "lo") -> None:
    """Has lo's MAC be that of each address; of IPv4 the kernel has it for all at lo once something was sent."""
    for address in addresses:
        if ":" in address or device != "lo":
            command = f"ip neigh replace {address} lladdr 00:00:00:00:00:00 dev {device} nud permanent"
            subprocess.run(command.split(), check=True)
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"", (address, 9))


def bind_udp(port: int) -> int:
    """A UDP socket of the host on every IPv4 address, whose port others may share."""
    host = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    host.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    host.bind(("0.0.0.0", port))
    return host.detach()


def listen_tcp(port: int) -> int:
    """A TCP socket of the host that waits for connections at every address of both families."""
    return socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True).detach()


def connect_tcp(own: tuple[str, int], other: tuple[str, int]) -> int:
    """A TCP socket of the host that is connected, by its own account: neither does it send, nor has it the address."""
    host = socket.socket(socket.AF_INET6 if ":" in own[0] else socket.AF_INET)
    host.setsockopt(*(_IPV6_TRANSPARENT if ":" in own[0] else _IP_TRANSPARENT), 1)
    host.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    host.bind(own)
    host.connect(other)
    return host.detach()


def _remove(directory: str) -> None:
    subprocess.run(["umount", f"{directory}/bpffs"], check=True)
    shutil.rmtree(directory)


def _drain(descriptor: int) -> None:
    position = 0
    while True:
        places = (position, ctypes.addressof(_position), ctypes.addressof(_keys), ctypes.addressof(_values))
        try:
            syscall._call(_MAP_LOOKUP_AND_DELETE_BATCH, _batch(places, _BATCH_ENTRIES, descriptor), "map delete")
        except FileNotFoundError:
            return  # that was the last bucket
        position = ctypes.addressof(_position)


def _batch(places: tuple[int, int, int, int], count: int, descriptor: int) -> "ctypes.Array[ctypes.c_char]":
    return ctypes.create_string_buffer(struct.pack("=QQQQIIQQ", *places, count, descriptor, 0, 0), 64)
