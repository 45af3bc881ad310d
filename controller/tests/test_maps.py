# SPDX-License-Identifier: Apache-2.0
"""The seam to the kernel, and a data plane over it, on real maps."""

import os
from pathlib import Path

import pytest

from bpf import bpftool, syscall
from bpf.abi import MAPS
from bpf.errors import BatchError, BpftoolError, NotLoadedError
from bpf.pins import Pins
from bpf.syscall import MapInfo
from controller import maps as maps_module
from controller.dataplane import Dataplane
from controller.maps import Op, PinnedMaps
from controller.services import Rules, compile_service
from controller.tests.fakes import NAMES
from controller.tests.objects import decoded_service, decoded_slice, endpoint, endpoint_slice, served, service

pytestmark = pytest.mark.root


def _made(bpffs: Path, **sizes: int) -> PinnedMaps:
    """Maps without programs."""
    pins = Pins(bpffs)
    pins.maps.mkdir(parents=True)
    for name in NAMES:
        spec = MAPS[name]
        entries = sizes.get(name, spec.max_entries)
        shape = MapInfo(spec.map_type, 0, spec.key_size, spec.value_size, entries, spec.map_flags)
        fd = syscall.map_create(shape, name)
        syscall.obj_pin(fd, pins.map(name))
        os.close(fd)
    return PinnedMaps(pins)


def _key(number: int) -> bytes:
    return number.to_bytes(4, "little")


def _value(number: int) -> bytes:
    return number.to_bytes(20, "big")


def _backends(first: int, last: int) -> list[Op]:
    return [Op("backends", _key(number), _value(number)) for number in range(first, last + 1)]


def _content(maps: PinnedMaps) -> dict[str, dict[bytes, bytes]]:
    return {name: maps.read(name) for name in NAMES}


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is written as many entries are, by bpftool."""
    monkeypatch.setattr(maps_module, "FEW_OPS", 0)


@pytest.mark.parametrize("count", [0, 1, 4095, 4096, 20_000])
def test_read_returns_every_entry(bpffs: Path, count: int) -> None:
    """Whatever the number of system calls that it takes; bpftool sees the same."""
    maps = _made(bpffs)
    maps.write(_backends(1, count))
    found = maps.read("backends")
    assert found == {_key(number): _value(number) for number in range(1, count + 1)}
    assert found == dict(bpftool.dump(Pins(bpffs).map("backends")))


def test_read_of_a_small_map_and_of_a_trie(bpffs: Path) -> None:
    """A map of few buckets, and longest prefixes."""
    maps = _made(bpffs, backends=16)
    maps.write(_backends(1, 16))
    assert len(maps.read("backends")) == 16
    remote = Op("remotes", (96).to_bytes(4, "little") + bytes(16), bytes(MAPS["remotes"].value_size))
    maps.write([remote])
    assert maps.read("remotes") == {remote.key: remote.value}


@pytest.mark.parametrize("few", [maps_module.FEW_OPS, 0])
def test_write_deletes_and_replaces_in_order(bpffs: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Deleting what is gone already is no error. By either way of writing."""
    monkeypatch.setattr(maps_module, "FEW_OPS", few)
    maps = _made(bpffs)
    maps.write([*_backends(1, 2), Op("backends", _key(9), None), Op("backends", _key(1), None), *_backends(3, 3)])
    assert set(maps.read("backends")) == {_key(2), _key(3)}


@pytest.mark.parametrize("few", [maps_module.FEW_OPS, 0])
def test_full_map_is_told_apart_and_named(bpffs: Path, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """What came before the entry that failed is written."""
    monkeypatch.setattr(maps_module, "FEW_OPS", few)
    maps = _made(bpffs, backends=4)
    with pytest.raises(BatchError, match="map backends") as caught:
        maps.write(_backends(1, 6))
    assert caught.value.full
    assert len(maps.read("backends")) == 4


def test_maps_that_are_not_there_are_named(bpffs: Path) -> None:
    """Somebody has unloaded everything."""
    with pytest.raises(NotLoadedError, match="backends"):
        PinnedMaps(Pins(bpffs)).read("backends")


def _dataplane(maps: PinnedMaps, addresses: list[str]) -> Dataplane:
    dataplane = Dataplane(maps)
    _set(dataplane, addresses)
    return dataplane


def _set(dataplane: Dataplane, addresses: list[str]) -> None:
    compiled = compile_service(
        decoded_service(service()),
        [decoded_slice(endpoint_slice("s1", [endpoint(address) for address in addresses]))],
        Rules("own"),
    )
    dataplane.set_service(("shop", "web"), compiled.pools)


def test_service_ends_in_the_kernel_and_is_taken_over(bpffs: Path) -> None:
    """A second controller with the same input writes nothing."""
    maps = _made(bpffs)
    dataplane = _dataplane(maps, ["203.0.113.1", "203.0.113.2"])
    dataplane.sync()
    wanted = {"198.51.100.1:80/6": ["203.0.113.1:8080", "203.0.113.2:8080"]}
    assert served(_content(maps)) == wanted
    assert _dataplane(maps, ["203.0.113.1", "203.0.113.2"]).sync().ops == 0


def test_full_map_of_the_kernel_serves_what_fits(bpffs: Path) -> None:
    """Its real size counts, not that of the settings."""
    maps = _made(bpffs, backends=2)
    dataplane = _dataplane(maps, [f"203.0.113.{number}" for number in range(1, 5)])
    dataplane.sync()
    ((_, found),) = served(_content(maps)).items()
    assert len(found) == 2
    assert list(dataplane.short.values()) == ["backends"]
    _set(dataplane, [found[0].partition(":")[0], "203.0.113.9"])
    dataplane.sync()
    dataplane.retry_short()
    dataplane.sync()
    assert served(_content(maps)) == {"198.51.100.1:80/6": sorted([found[0], "203.0.113.9:8080"])}
    assert not dataplane.short


@pytest.mark.usefixtures("many")
def test_bpftool_missing_midway_leaves_the_change_pending(bpffs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bpftool back, everything is compared and the change written."""
    maps = _made(bpffs)
    dataplane = _dataplane(maps, ["203.0.113.1"])
    dataplane.sync()
    monkeypatch.setattr(bpftool, "BPFTOOL", "/nonexistent/bpftool")
    _set(dataplane, ["203.0.113.2"])
    with pytest.raises(BpftoolError, match="not installed"):
        dataplane.sync()
    assert dataplane.dirty
    assert served(_content(maps)) == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
    monkeypatch.undo()
    dataplane.sync()
    assert served(_content(maps)) == {"198.51.100.1:80/6": ["203.0.113.2:8080"]}


@pytest.mark.usefixtures("many")
def test_bpftool_dying_midway_is_made_good(bpffs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It writes a part of the batch and dies without an answer; nothing is assumed of what it did."""
    maps = _made(bpffs)
    dying = tmp_path / "bpftool"
    dying.write_text("#!/bin/sh\nhead -n 1 | bpftool batch file - >/dev/null\nkill -9 $$\n")
    dying.chmod(0o755)
    dataplane = _dataplane(maps, ["203.0.113.1"])
    monkeypatch.setattr(bpftool, "BPFTOOL", str(dying))
    with pytest.raises(BpftoolError):
        dataplane.sync()
    monkeypatch.undo()
    dataplane.sync()
    assert served(_content(maps)) == {"198.51.100.1:80/6": ["203.0.113.1:8080"]}
