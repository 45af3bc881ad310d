# SPDX-License-Identifier: Apache-2.0
"""The generated codecs against bytes that a C compiler wrote, and the enums against what the programs return."""

import inspect
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpf import abi

SOURCE = Path(__file__).parent / "golden.c"


def address(last: int) -> bytes:
    return bytes.fromhex("20010db8 01020304 05060708 090a0b") + bytes([last])


def five_tuple(number: int) -> abi.Tuple:
    return abi.Tuple(address(0x10 + number), address(0x20 + number), 0x3130 + number, 0x4140 + number, 0x50 + number)


WAY = abi.Way(0x01020304, 0x05, bytes.fromhex("111213141516") + bytes(10))

# The values in golden.c, each byte of a field another.
VALUES: dict[str, Any] = {
    "tuple": five_tuple(1),
    "frontend_key": abi.FrontendKey(address(1), 0x0203, 0x04),
    "frontend": abi.Frontend(0x01020304, 0x05060708, 0x090A0B0C, 0x0D0E0F10, 0x11121314, 0x15161718),
    "source_key": abi.SourceKey(0x01020304, abi.FrontendKey(address(1), 0x0203, 0x04), address(2)),
    "source": abi.Source(0x01020304),
    "slot_key": abi.SlotKey(0x01020304, 0x05060708),
    "slot": abi.Slot(0x01020304),
    "maglev_key": abi.MaglevKey(0x01020304, 0x05060708),
    "maglev_row": abi.MaglevRow(b"".join((0x01020300 + place).to_bytes(4, "little") for place in range(32))),
    "backend_key": abi.BackendKey(0x01020304),
    "backend": abi.Backend(address(1), 0x0203, 0x04, 0x05),
    "fragment_key": abi.FragmentKey(address(1), address(2), 0x02030405, 0x04),
    "fragment": abi.Fragment(0x1112131415161718, 0x0102, 0x0304, 0x05, 0x06),
    "affinity_key": abi.AffinityKey(address(1), 0x02030405),
    "affinity": abi.Affinity(0x01020304, 0x1112131415161718),
    "pod_key": abi.PodKey(address(1)),
    "pod": abi.Pod(
        0x01020304,
        0x05060708,
        bytes.fromhex("111213141516"),
        bytes.fromhex("212223242526"),
        0x3132333435363738,
    ),
    "remote_key": abi.RemoteKey(0x01020304, address(5)),
    "remote": abi.Remote(address(1), address(2), 0x02030405, 0x06070809, 0x0A0B0C0D),
    "node_key": abi.NodeKey(address(1)),
    "node": abi.Node(0x01020304),
    "peer_key": abi.PeerKey(bytes.fromhex("111213141516")),
    "peer": abi.Peer(address(1)),
    "device_key": abi.DeviceKey(0x01020304),
    "device": abi.Device(address(1), address(2), 0x02030405, 0x06070809, bytes.fromhex("212223242526")),
    "unmasqueraded": abi.Unmasqueraded(0x01020304),
    "denied": abi.Denied(0x01020304),
    "way": WAY,
    "flow": abi.Flow(
        five_tuple(2), 0x6162636465666768, 0x5152535455565758, 0x7172737475767778, 0x81828384, 0x91, 0xA1, WAY
    ),
    "socket_key": abi.SocketKey(0x0102030405060708, address(9), 0x0A0B, 0x0C, 0x0D),
    "socket_peer": abi.SocketPeer(address(1), 0x0203, 0x04050607, address(8), 0x1112131415161718),
    "drop_key": abi.DropKey(0x01020304, 0x05060708),
    "drop_count": abi.DropCount(0x0102030405060708, 0x1112131415161718),
    "config": abi.Config(
        0x0102030405060708,
        0x1112131415161718,
        0x2122232425262728,
        0x3132333435363738,
        0x4142434445464748,
        0x5152535455565758,
        0x6162636465666768,
        0x71727374,
        0x81828384,
        0x91929394,
        0xA1A2A3A4,
        0xB1B2B3B4,
        0xC1C2C3C4,
        0xD1D2D3D4,
        0xE1E2E3E4,
    ),
}


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Each struct's bytes, as the compiler laid them out."""
    program = tmp_path_factory.mktemp("golden") / "golden"
    subprocess.run(["cc", "-Wall", "-Werror", f"-I{SOURCE.parents[1]}", "-o", program, SOURCE], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    return {name: bytes.fromhex(text) for name, text in (line.split() for line in printed.splitlines())}


@pytest.mark.parametrize("name", VALUES)
def test_pack_writes_the_bytes_of_c(name: str, golden: dict[str, bytes]) -> None:
    """A value packs to the bytes that the programs would read."""
    assert VALUES[name].pack() == golden[name]


@pytest.mark.parametrize("name", VALUES)
def test_unpack_reads_the_bytes_of_c(name: str, golden: dict[str, bytes]) -> None:
    """The programs' bytes unpack to the value."""
    assert type(VALUES[name]).unpack(golden[name]) == VALUES[name]


def test_golden_values_name_every_struct() -> None:
    """No codec goes untested."""
    codecs = {found for _, found in inspect.getmembers(abi, inspect.isclass) if issubclass(found, tuple)} - {
        abi.MapSpec
    }
    assert codecs == {type(value) for value in VALUES.values()}


def test_maps_have_the_sizes_of_their_structs(golden: dict[str, bytes]) -> None:
    """What a map's key and value are said to be has as many bytes as the map says."""
    sizes = {type(VALUES[name]).__name__: len(data) for name, data in golden.items()}
    for name, spec in abi.MAPS.items():
        assert sizes.get(spec.key, 4) == spec.key_size, name
        assert sizes.get(spec.value, 8) == spec.value_size, name


def test_enums_lose_their_prefix_and_sentinel() -> None:
    """Names and numbers are those of abi.h; the sentinels that count them are left out."""
    assert abi.DropReason.SPOOFED == 4
    assert abi.Counter.FLOWS_CREATED == 0
    assert abi.FlowState(1) is abi.FlowState.ESTABLISHED
    assert "REASONS" not in abi.DropReason.__members__
    assert "STATES" not in abi.FlowState.__members__
    assert "COUNTERS" not in abi.Counter.__members__
