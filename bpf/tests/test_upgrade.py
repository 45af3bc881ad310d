# SPDX-License-Identifier: Apache-2.0
"""One layout takes over from another: trivial programs, real maps, of which the other version has some otherwise."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

from bpf import abi, attach, loader, syscall, upgrade
from bpf.abi import MAPS, Flow, FlowState, Pod, PodKey, Remote, RemoteKey, StateIndex, Tuple, Way
from bpf.pins import Pins
from bpf.tests import trivial
from bpf.tests.test_cgroup import cgroup
from bpf.tests.trivial import CONFIG, verdict

pytestmark = pytest.mark.root

PERCPU_ARRAY = 6

# In the other version a pod has a field more, before those that it had, and no flags; a flow and a remote are larger;
# there is one more thing to remember, and counters are fewer.
OTHER_POD = {"novelty": (0, 8), "ifindex": (8, 4), "pod_mac": (12, 6), "host_mac": (18, 6), "container_hash": (24, 16)}
OTHER_POD_BYTES = 40
FIELDS = abi.FIELDS | {"Pod": OTHER_POD}
OTHER_MAPS = MAPS | {
    "pods": MAPS["pods"]._replace(value_size=OTHER_POD_BYTES),
    "flows": MAPS["flows"]._replace(value_size=104),
    "remotes": MAPS["remotes"]._replace(value_size=56),
    "state": MAPS["state"]._replace(max_entries=len(StateIndex) + 1),
    "counters": MAPS["counters"]._replace(max_entries=3),
}
OTHERWISE = [name for name in MAPS if MAPS[name] != OTHER_MAPS[name]]
KEY = PodKey(bytes(15) + b"\x01").pack()
POD = Pod(7, 3, b"podmac", b"hosmac", 99)


class Versions:
    """This version of the project, and one whose layout is another, on the same node."""

    def __init__(self, bpffs: Path, objects: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.this, self.other = Pins(bpffs), Pins(bpffs, "v1000")
        self._objects, self._lock, self._monkeypatch = objects, lock, monkeypatch

    def load_this(self, sizes: Mapping[str, int] = MappingProxyType({}), replace: bool = True) -> bool:
        return loader.load(self.this, self._objects, CONFIG, sizes, self._lock, replace)

    def load_other(self, replace: bool = True) -> bool:
        with self._monkeypatch.context() as patched:
            for module in (loader, upgrade):
                patched.setattr(module, "MAPS", OTHER_MAPS)
            patched.setattr(upgrade, "FIELDS", FIELDS)
            return loader.load(self.other, self._objects, CONFIG, {}, self._lock, replace)


@pytest.fixture
def versions(bpffs: Path, objects: Path, lock: Path, monkeypatch: pytest.MonkeyPatch) -> Versions:
    return Versions(bpffs, objects, lock, monkeypatch)


def write(pins: Pins, name: str, key: bytes, value: bytes) -> None:
    with pins.opened_map(name) as fd:
        syscall.map_update(fd, key, value)


def read(pins: Pins, name: str, key: bytes) -> bytes | None:
    with pins.opened_map(name) as fd:
        return syscall.map_lookup(fd, key, syscall.map_info(fd).value_size)


def delete(pins: Pins, name: str, key: bytes) -> None:
    with pins.opened_map(name) as fd:
        assert syscall.map_delete(fd, key)


def number(index: int) -> bytes:
    return index.to_bytes(4, "little")


def flow_key(port: int) -> bytes:
    return Tuple(bytes(16), bytes(16), port, 80, 6).pack()


def flow(state: FlowState) -> Flow:
    return Flow(Tuple(bytes(16), bytes(16), 80, 1, 6), 1, 2, 3, 4, state, 0, Way(0, 0, bytes(16)))


def layouts(versions: Versions) -> set[str]:
    """Whatever is pinned, of any layout, with the link to that which is in force."""
    return {path.name for path in versions.this.root.parent.iterdir()}


def map_id(pins: Pins, name: str) -> int:
    with pins.opened_map(name) as fd:
        return syscall.map_info(fd).map_id


def test_maps_of_the_same_fields_are_shared(versions: Versions) -> None:
    """They are the same maps, flows among them; what counts per CPU in another shape begins at 0."""
    assert versions.load_this()
    before = {name: map_id(versions.this, name) for name in MAPS}
    assert versions.load_other()
    assert {name for name in MAPS if map_id(versions.other, name) != before[name]} == set(OTHERWISE)
    with versions.other.opened_map("counters") as fd:
        assert syscall.map_info(fd)[0] == PERCPU_ARRAY
        assert syscall.map_info(fd).max_entries == 3


def test_entries_are_copied_by_the_names_of_fields(versions: Versions) -> None:
    """A new field is 0, and so is one of another size; to and fro, what neither version lacks is as it was."""
    versions.load_this()
    write(versions.this, "pods", KEY, POD.pack())
    versions.load_other()
    assert read(versions.other, "pods", KEY) == bytes(8) + POD.pack()[:4] + b"podmac" + b"hosmac" + bytes(16)
    versions.load_this()
    assert Pod.unpack(read(versions.this, "pods", KEY) or b"") == POD._replace(flags=0, container_hash=0)


def test_no_pin_of_the_layout_before_is_left(versions: Versions) -> None:
    """Nor of one that was never finished."""
    versions.load_this()
    (versions.this.root.parent / "v9-0" / "maps").mkdir(parents=True)
    versions.load_other()
    assert layouts(versions) == {"v1000", os.readlink(versions.other.root)}
    assert verdict(versions.other, "tc") == CONFIG.mark


def test_both_daemons_find_one_takeover(versions: Versions) -> None:
    """Who comes second finds nothing to do; and the CNI server takes over, if it comes first, as well."""
    versions.load_this()
    assert versions.load_other(replace=False)
    assert not versions.load_other()


def test_ids_go_on_where_they_were(versions: Versions) -> None:
    """An id that a flow may still carry is not given out again; arrays hold something from the beginning."""
    versions.load_this()
    for index in (StateIndex.NEXT_BACKEND_ID, StateIndex.NEXT_SERVICE_ID):
        write(versions.this, "state", number(index), (1000 + index).to_bytes(8, "little"))
    versions.load_other()
    assert [read(versions.other, "state", number(index)) for index in (0, 1, 3)] == [
        value.to_bytes(8, "little") for value in (1000, 1001, 0)
    ]


def test_prefixes_are_copied(versions: Versions) -> None:
    """The map of remotes is a trie, which is read otherwise."""
    versions.load_this()
    key = RemoteKey(120, bytes(10) + b"\xff\xff\x0a\xf4\x01\x00").pack()
    write(versions.this, "remotes", key, Remote(b"\x01" * 16, b"\x02" * 16, 3, 4, 5).pack())
    versions.load_other()
    assert read(versions.other, "remotes", key) == Remote(b"\x01" * 16, b"\x02" * 16, 3, 4, 5).pack() + bytes(8)


def test_flow_that_changes_meanwhile_is_as_it_was_last(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that was established, or closed, after it was copied; and what the new programs made of another stays."""
    versions.load_this()
    for port in (1, 2):
        write(versions.this, "flows", flow_key(port), flow(FlowState.NEW).pack())

    def sent(*_: object) -> None:
        write(versions.this, "flows", flow_key(1), flow(FlowState.ESTABLISHED).pack())
        write(versions.this, "flows", flow_key(3), flow(FlowState.NEW).pack())
        for port in (2, 4):
            write(versions.other, "flows", flow_key(port), flow(FlowState.CLOSED).pack() + bytes(8))

    monkeypatch.setattr(upgrade, "_send", sent)
    versions.load_other()
    found = [Flow.unpack((read(versions.other, "flows", flow_key(port)) or b"")[:96]).state for port in (1, 2, 3, 4)]
    assert found == [FlowState.ESTABLISHED, FlowState.CLOSED, FlowState.NEW, FlowState.CLOSED]


def test_takeover_that_was_killed_is_done_again(versions: Versions) -> None:
    """With SIGKILL, where the new programs are linked, nothing is replaced, and connections are held."""
    versions.load_this()
    write(versions.this, "pods", KEY, POD.pack())
    assert killed(versions.load_other, "_send")
    assert versions.other.programs.is_symlink()
    held = number(StateIndex.TAKING_OVER_UNTIL_NS)
    assert read(versions.other, "state", held) != bytes(8)
    # Written by the new programs since.
    write(versions.other, "pods", KEY, b"\x01" * OTHER_POD_BYTES)
    write(versions.this, "pods", PodKey(bytes(15) + b"\x02").pack(), POD.pack())
    versions.load_other(replace=False)
    assert read(versions.other, "pods", KEY) == b"\x01" * OTHER_POD_BYTES
    assert read(versions.other, "pods", PodKey(bytes(15) + b"\x02").pack())
    assert not versions.this.root.exists()
    assert read(versions.other, "state", held) == bytes(8)


def test_half_copy_of_a_takeover_that_was_killed_is_made_anew(versions: Versions) -> None:
    """Before the new maps were in force: what has gone since does not come back, and what has changed is new."""
    versions.load_this()
    second = PodKey(bytes(15) + b"\x02").pack()
    for key in (KEY, second):
        write(versions.this, "pods", key, POD.pack())
    assert killed(versions.load_other, "holding")
    delete(versions.this, "pods", KEY)
    write(versions.this, "pods", second, POD._replace(ifindex=8).pack())
    versions.load_other()
    assert read(versions.other, "pods", KEY) is None
    assert (read(versions.other, "pods", second) or b"")[8:12] == number(8)


def test_half_copy_is_no_predecessor(versions: Versions) -> None:
    """Where it was killed between its two links, and another layout is what comes next."""
    versions.load_this({"pods": 8})
    assert killed(lambda: versions.load_this({"pods": 16}), "enter", Pins)
    write(versions.this, "pods", KEY, POD.pack())
    versions.load_this({"pods": 32})
    assert read(versions.this, "pods", KEY) == POD.pack()


@pytest.mark.parametrize("replace", [True, False])
def test_half_copy_is_not_taken_over_from(versions: Versions, replace: bool) -> None:
    """Where it was killed between its two links, and the layout in force stays: what has gone since does not come
    back."""
    versions.load_this({"pods": 8})
    write(versions.this, "pods", KEY, POD.pack())
    assert killed(lambda: versions.load_this({"pods": 16}), "enter", Pins)
    delete(versions.this, "pods", KEY)
    versions.load_this({"pods": 8}, replace)
    assert read(versions.this, "pods", KEY) is None
    assert layouts(versions) == {versions.this.root.name, os.readlink(versions.this.root)}


def test_entry_that_goes_meanwhile_stays_away(versions: Versions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's that is deleted between two rounds; but not one that the new maps have been given since."""
    versions.load_this()
    second = PodKey(bytes(15) + b"\x02").pack()
    for key in (KEY, second):
        write(versions.this, "pods", key, POD.pack())

    def sent(*_: object) -> None:
        for key in (KEY, second):
            delete(versions.this, "pods", key)
        write(versions.other, "pods", second, b"\x01" * OTHER_POD_BYTES)

    monkeypatch.setattr(upgrade, "_send", sent)
    versions.load_other()
    assert read(versions.other, "pods", KEY) is None
    assert read(versions.other, "pods", second) == b"\x01" * OTHER_POD_BYTES


def killed(load: Callable[[], object], step: str, of: object = upgrade) -> bool:
    """Loads in a process that is killed when it comes to a step of the takeover; whether it was."""
    child = os.fork()
    if not child:
        setattr(of, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        load()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def test_maps_of_another_size_take_over_from_those_before(versions: Versions) -> None:
    """Larger or smaller: what they held is in them, all others are the same maps, and nothing else is left."""
    versions.load_this({"pods": 8, "flows": 1024})
    write(versions.this, "pods", KEY, POD.pack())
    write(versions.this, "flows", flow_key(1), flow(FlowState.NEW).pack())
    for sizes in ({"pods": 64, "flows": 4096}, {"pods": 8, "flows": 1024}):
        before = {name: map_id(versions.this, name) for name in MAPS}
        assert versions.load_this(sizes)
        assert not versions.load_this(sizes)
        assert {name for name in MAPS if map_id(versions.this, name) != before[name]} == {"pods", "flows"}
        assert {name: entries(versions.this, name) for name in sizes} == sizes
        assert read(versions.this, "pods", KEY) == POD.pack()
        assert read(versions.this, "flows", flow_key(1)) == flow(FlowState.NEW).pack()
        assert verdict(versions.this, "tc") == CONFIG.mark
        assert layouts(versions) == {versions.this.root.name, os.readlink(versions.this.root)}


def test_only_who_replaces_programs_changes_sizes(versions: Versions) -> None:
    """Not the CNI server, whose settings may be others."""
    versions.load_this({"pods": 8})
    assert not versions.load_this({"pods": 16}, replace=False)
    assert entries(versions.this, "pods") == 8


def test_map_that_holds_more_than_it_should_keeps_its_size(versions: Versions) -> None:
    """No pod's entry is lost to a setting; the other maps follow theirs, and so does this one when it has room."""
    versions.load_this({"pods": 64, "flows": 4096})
    keys = [PodKey(bytes(15) + bytes([index])).pack() for index in range(9)]
    for key in keys:
        write(versions.this, "pods", key, POD.pack())
    assert versions.load_this({"pods": 8, "flows": 1024})
    assert (entries(versions.this, "pods"), entries(versions.this, "flows")) == (64, 1024)
    assert all(read(versions.this, "pods", key) == POD.pack() for key in keys)
    delete(versions.this, "pods", keys[0])
    assert versions.load_this({"pods": 8, "flows": 1024})
    assert entries(versions.this, "pods") == 8


@pytest.mark.parametrize("replace", [True, False])
def test_change_of_sizes_that_was_killed_is_done_again(versions: Versions, replace: bool) -> None:
    """Where the new programs and maps are in force, and nothing is replaced."""
    versions.load_this({"pods": 8})
    write(versions.this, "pods", KEY, POD.pack())
    assert killed(lambda: versions.load_this({"pods": 16}), "_send")
    assert entries(versions.this, "pods") == 16
    versions.load_this({"pods": 16}, replace)
    assert read(versions.this, "pods", KEY) == POD.pack()
    assert read(versions.this, "state", number(StateIndex.TAKING_OVER_UNTIL_NS)) == bytes(8)
    assert layouts(versions) == {versions.this.root.name, os.readlink(versions.this.root)}


def entries(pins: Pins, name: str) -> int:
    with pins.opened_map(name) as fd:
        return syscall.map_info(fd).max_entries


def test_layout_that_does_not_describe_itself_is_swept(versions: Versions) -> None:
    """As one that was made before layouts did: this one begins empty."""
    versions.load_this()
    write(versions.this, "pods", KEY, POD.pack())
    versions.this.map(upgrade.DESCRIPTION).unlink()
    versions.load_other()
    assert read(versions.other, "pods", KEY) is None
    assert not versions.this.root.exists()


def test_description_names_every_map(versions: Versions) -> None:
    """Its JSON has type, sizes and fields of each; a layout that lacks it is given it."""
    versions.load_this()
    versions.this.map(upgrade.DESCRIPTION).unlink()
    versions.load_this()
    found = json.loads(read(versions.this, upgrade.DESCRIPTION, bytes(4)) or b"")
    assert found.keys() == MAPS.keys()
    assert found["slots"] == {
        "type": 1,
        "entries": MAPS["slots"].max_entries,
        "key_size": 8,
        "value_size": 4,
        "key": {"service_id": [0, 4], "slot": [4, 4]},
        "value": {"backend_id": [0, 4]},
    }


def test_links_to_the_cgroup_are_taken_over(
    bpffs: Path, objects: Path, lock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One link, with the new program: at no moment there are none or two."""
    some = tmp_path / "objects"
    shutil.copytree(objects, some)
    trivial.build(some, "cgroup.o", "connect4", "cgroup/connect4")
    versions = Versions(bpffs, some, lock, monkeypatch)
    monkeypatch.setattr(attach, "CGROUP_HOOKS", {"connect4": attach.CGROUP_HOOKS["connect4"]})
    versions.load_this()
    with cgroup() as group:
        attach.attach_cgroup(versions.this, group)
        before = link_info(versions.this)
        # As after a kill between the two pins of one link.
        half = versions.other.sized({})
        half.links.mkdir(parents=True)
        link = syscall.obj_get(versions.this.links / "connect4")
        syscall.obj_pin(link, half.links / "connect4")
        os.close(link)
        versions.load_other()
        after = link_info(versions.other)
        with versions.other.opened_program("connect4") as program:
            assert after == (before[0], syscall.program_id(program))
        assert after[1] != before[1]
        attach.detach_cgroup(versions.other)


def link_info(pins: Pins) -> tuple[int, int]:
    """(id of the link to the cgroup, id of its program)."""
    fd = syscall.obj_get(pins.links / "connect4")
    try:
        lines = dict(line.split(":\t", 1) for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines())
    finally:
        os.close(fd)
    return int(lines["link_id"]), int(lines["prog_id"])
