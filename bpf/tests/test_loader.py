# SPDX-License-Identifier: Apache-2.0
"""Loading trivial programs onto real maps: what is kept, replaced, and refused."""

import errno
import fcntl
import os
import shutil
import threading
from pathlib import Path

import pytest

from bpf import abi, loader, syscall
from bpf.errors import BpftoolError, KernelError, LayoutError, NotLoadedError
from bpf.pins import Pins
from bpf.syscall import MapInfo
from bpf.tests.trivial import CONFIG, verdict

pytestmark = pytest.mark.root

HASH = 1


def test_load_pins_every_map_and_program(pins: Pins, objects: Path, lock: Path) -> None:
    """Maps of the specified layout and the programs of both objects are pinned, with the constants given."""
    assert loader.load(pins, objects, CONFIG, {"pods": 17}, lock)
    for name, spec in abi.MAPS.items():
        fd = pins.open_map(name)
        info = syscall.map_info(fd)
        os.close(fd)
        assert (info.map_type, info.key_size, info.value_size) == (spec.map_type, spec.key_size, spec.value_size)
        assert info.max_entries == (17 if name == "pods" else spec.max_entries)
    assert (verdict(pins, "tc"), verdict(pins, "cgroup")) == (7, 7)


def test_load_twice_does_nothing(pins: Pins, objects: Path, lock: Path) -> None:
    """Whoever comes second finds the same programs and leaves them."""
    assert loader.load(pins, objects, CONFIG, {}, lock)
    before = os.readlink(pins.programs)
    assert not loader.load(pins, objects, CONFIG, {}, lock)
    assert os.readlink(pins.programs) == before


def test_load_with_other_constants_switches_programs_and_keeps_maps(pins: Pins, objects: Path, lock: Path) -> None:
    """A change of a constant loads anew, onto the same maps; the earlier programs' pins are gone."""
    loader.load(pins, objects, CONFIG, {}, lock)
    before = os.readlink(pins.programs)
    fd = pins.open_map("pods")
    syscall.map_update(fd, bytes(16), bytes(32))
    os.close(fd)
    assert loader.load(pins, objects, CONFIG._replace(mark=8), {}, lock)
    assert os.readlink(pins.programs) != before
    assert not (pins.root / before).exists()
    assert verdict(pins, "tc") == 8
    fd = pins.open_map("pods")
    assert syscall.map_lookup(fd, bytes(16), 32) == bytes(32)
    os.close(fd)


def test_load_without_replacing_loads_only_where_nothing_is_pinned(
    pins: Pins, objects: Path, lock: Path, tmp_path: Path
) -> None:
    """The CNI server, with other constants or without objects, leaves the controller's programs alone."""
    assert loader.load(pins, objects, CONFIG, {}, lock, replace=False)
    before = os.readlink(pins.programs)
    assert not loader.load(pins, tmp_path / "nowhere", CONFIG._replace(mark=8), {"pods": 99}, lock, replace=False)
    assert os.readlink(pins.programs) == before
    assert verdict(pins, "tc") == 7


def test_load_after_a_killed_load_repairs_it(pins: Pins, objects: Path, lock: Path) -> None:
    """Maps without programs, a half-filled directory and a stale link are what a kill can leave."""
    loader.load(pins, objects, CONFIG, {}, lock)
    target = pins.root / os.readlink(pins.programs)
    pins.programs.unlink()
    (target / "tc").unlink()
    (pins.root / "programs-next").symlink_to("nowhere")
    assert loader.load(pins, objects, CONFIG, {}, lock)
    assert verdict(pins, "tc") == 7


def test_load_where_the_link_was_lost_makes_it_again(pins: Pins, objects: Path, lock: Path) -> None:
    """What it led to is there, and is taken as it is."""
    loader.load(pins, objects, CONFIG, {}, lock)
    pins.root.unlink()
    assert not loader.load(pins, objects, CONFIG, {}, lock)
    assert verdict(pins, "tc") == 7


def test_load_on_map_of_another_layout_is_refused(pins: Pins, objects: Path, lock: Path) -> None:
    """A pinned map with other sizes is named, with what removes it, and nothing is loaded."""
    half = pins.sized({})
    half.maps.mkdir(parents=True)
    fd = syscall.map_create(MapInfo(HASH, 0, 8, 8, 4, 0), "pods")
    syscall.obj_pin(fd, half.map("pods"))
    os.close(fd)
    with pytest.raises(LayoutError, match=r"maps/pods has another layout .*calico-ebpf uninstall"):
        loader.load(pins, objects, CONFIG, {}, lock)
    assert not pins.programs.exists()


def test_load_where_a_directory_stands_in_the_way_is_refused(pins: Pins, objects: Path, lock: Path) -> None:
    """It is named, with what removes it, and kept."""
    pins.maps.mkdir(parents=True)
    with pytest.raises(LayoutError, match=r"is no link: .*calico-ebpf uninstall"):
        loader.load(pins, objects, CONFIG, {}, lock)
    assert [path.name for path in pins.root.parent.iterdir()] == [pins.root.name]


def test_load_without_bpffs_says_so(tmp_path: Path, objects: Path, lock: Path) -> None:
    """An ordinary directory takes no pins."""
    with pytest.raises(KernelError, match="is bpffs mounted there"):
        loader.load(Pins(tmp_path), objects, CONFIG, {}, lock)


def test_map_for_which_there_is_no_room_is_named(
    pins: Pins, objects: Path, lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the setting that makes it smaller, and what it would take."""
    real = syscall.map_create

    def full(shape: MapInfo, name: str) -> int:
        if name == "flows":
            raise OSError(errno.ENOMEM, "map create: Cannot allocate memory")
        return real(shape, name)

    monkeypatch.setattr(syscall, "map_create", full)
    with pytest.raises(KernelError, match=r"flows: .* 1000000 entries, some 200 MB: lower flows_max"):
        loader.load(pins, objects, CONFIG, {"flows": 1_000_000}, lock)


def test_load_without_objects_names_the_file(pins: Pins, tmp_path: Path, lock: Path) -> None:
    """Programs that were never built are said to be missing, with what builds them."""
    with pytest.raises(NotLoadedError, match=r"tc\.o is missing: `make build`"):
        loader.load(pins, tmp_path, CONFIG, {}, lock)


def test_load_of_refused_program_keeps_the_one_before(pins: Pins, objects: Path, lock: Path, tmp_path: Path) -> None:
    """When the kernel refuses new programs, those that are pinned stay."""
    loader.load(pins, objects, CONFIG, {}, lock)
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in (*loader.OBJECTS, loader.SWEEP):
        image = (objects / name).read_bytes()
        (broken / name).write_bytes(image.replace(b"classifier", b"unheardof!"))
    with pytest.raises(BpftoolError):
        loader.load(pins, broken, CONFIG, {}, lock)
    assert verdict(pins, "tc") == 7


@pytest.mark.parametrize("name", ["sweep", "xdp"])
def test_load_does_without_what_no_traffic_needs_and_is_refused(
    pins: Pins, objects: Path, lock: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """The kernel may not take it, though it has BTF: the other programs are loaded all the same, and it is said why."""
    some = tmp_path / "objects"
    shutil.copytree(objects, some)
    image = (some / f"{name}.o").read_bytes()
    assert b"classifier" in image
    (some / f"{name}.o").write_bytes(image.replace(b"classifier", b"iter/nobod"))
    assert loader.load(pins, some, CONFIG, {}, lock)
    assert {path.name for path in pins.programs.iterdir()} == {"tc", "cgroup", "xdp", "sweep"} - {name}
    assert f"program-refused object={name}.o" in caplog.text
    assert not loader.load(pins, some, CONFIG, {}, lock)


def test_load_waits_for_whoever_loads(pins: Pins, objects: Path, lock: Path) -> None:
    """Two daemons that start at once do not load side by side."""
    lock.parent.mkdir()
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        other = threading.Thread(target=loader.load, args=(pins, objects, CONFIG, {}, lock))
        other.start()
        other.join(timeout=0.2)
        assert not pins.root.exists()
    other.join(timeout=20)
    assert pins.programs.is_symlink()
