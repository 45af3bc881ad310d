# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf deny`, on real maps, with no daemon running; and how its list comes back into maps that are new."""

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from click.testing import Result

from bpf import abi
from bpf.address import packed
from bpf.errors import BatchError
from controller import denied
from controller.commands.deny import conflicts
from controller.commands.tests.conftest import Node
from controller.errors import DenyListError
from controller.maps import Op, PinnedMaps
from controller.source import Problems
from controller.tests.fakes import FakeMaps

Run = Callable[..., Result]

RANGE, RANGE6, ADDRESS = "203.0.113.0/24", "2001:db8:ffff::/48", "198.51.100.9"


def listed(run: Run) -> list[tuple[str, bool]]:
    result = run("deny", "list", "--output", "json")
    assert result.exit_code == 0, result.output
    return [(item["range"], item["in_force"]) for item in json.loads(result.stdout)]


@pytest.mark.root
def test_added_ranges_are_in_force_and_removed_ones_are_not(node: Node, run: Run) -> None:
    """The map holds what the list says after each change; an address alone is a range of one."""
    maps = PinnedMaps(node.pins)
    result = run("deny", "add", RANGE, RANGE6, ADDRESS)
    assert result.output.splitlines() == [
        "RANGE               IN FORCE",
        "203.0.113.0/24      yes",
        "2001:db8:ffff::/48  yes",
        "198.51.100.9/32     yes",
    ]
    assert denied.in_force(maps) == {RANGE, RANGE6, f"{ADDRESS}/32"}
    assert run("deny", "remove", ADDRESS, RANGE6).exit_code == 0
    assert denied.in_force(maps) == {RANGE}
    assert listed(run) == [(RANGE, True)]


@pytest.mark.root
def test_list_comes_back_into_new_maps(bare_node: Node, run: Run) -> None:
    """Ranges that are added while nothing is loaded, or were there before a boot, are in force once they are applied;
    what the map has besides goes."""
    result = run("deny", "add", "--force", RANGE)
    assert result.exit_code == 0
    assert "nothing is loaded" in result.output
    assert listed(run) == [(RANGE, False)]
    bare_node.pin()
    bare_node.put("denied", abi.RemoteKey(128, packed(ADDRESS)), abi.Denied(0))
    assert not denied.enforce(
        denied.DenyList(bare_node.settings.state_dir), PinnedMaps(bare_node.pins)
    ).problems.problems
    assert denied.in_force(PinnedMaps(bare_node.pins)) == {RANGE}


@pytest.mark.root
@pytest.mark.parametrize(
    ("cidr", "why"),
    [
        ("192.0.2.0/24", "192.0.2.0/24 holds 192.0.2.1/32, the address of a node"),
        ("10.244.0.0/15", "10.244.0.0/15 holds 10.244.1.0/24, of another node or its pods"),
        ("10.244.1.64/26", "10.244.1.64/26 holds 10.244.1.0/24, of another node or its pods"),
        ("198.51.100.0/24", "198.51.100.0/24 holds 198.51.100.1/32, the way to another node"),
    ],
)
def test_range_of_the_clusters_is_refused_without_force(node: Node, run: Run, cidr: str, why: str) -> None:
    """Nothing of the call is done; with --force all of it is. Ranges of Services are no senders."""
    router, nobody = packed("198.51.100.1"), bytes(16)
    node.put("nodes", abi.NodeKey(packed("192.0.2.1")), abi.Node(abi.NodeFlag.OWN))
    pods = abi.Remote(router, packed("192.0.2.2"), 1, 0, 0)
    node.put("remotes", abi.RemoteKey(96 + 24, packed("10.244.1.0")), pods)
    services = abi.Remote(nobody, nobody, 0, 0, abi.RemoteFlag.SERVICES)
    node.put("remotes", abi.RemoteKey(96 + 16, packed("203.0.0.0")), services)
    result = run("deny", "add", RANGE, cidr)
    assert (result.exit_code, result.output) == (
        1,
        f"Error: {why}: the cluster would lose it (--force denies it all the same)\n",
    )
    assert listed(run) == []
    assert run("deny", "add", "--force", RANGE, cidr).exit_code == 0
    assert listed(run) == [(RANGE, True), (cidr, True)]


@pytest.mark.root
@pytest.mark.usefixtures("node")
def test_unknown_range_is_not_removed_nor_any_other(run: Run) -> None:
    """A part of a range that was added is another range."""
    run("deny", "add", RANGE)
    result = run("deny", "remove", RANGE, "203.0.113.0/25")
    assert (result.exit_code, result.output) == (1, "Error: not on the list: 203.0.113.0/25\n")
    assert listed(run) == [(RANGE, True)]


@pytest.mark.parametrize("cidr", ["203.0.113.1/24", "::/0", "::ffff:203.0.113.0/120", "example.com"])
def test_what_is_no_range_is_refused(cidr: str) -> None:
    """With host bits; one that would hold all of IPv4 by its place in the maps; a name."""
    with pytest.raises(ValueError, match=cidr.split("/", maxsplit=1)[0][:4]):
        denied.checked(cidr)


def test_families_do_not_conflict() -> None:
    """A range of the one holds nothing of the other."""
    assert conflicts(["0.0.0.0/0"], [("2001:db8::1/128", "the address of a node")]) == []


# Somebody's own: with what is no range, in two places.
BY_HAND = f"# of our own\n\n  {RANGE}\n203.0.113.1/24\n{RANGE6}\n{ADDRESS} # a comment\n{RANGE}\n"


def test_lines_that_make_sense_are_taken_and_others_named(tmp_path: Path) -> None:
    """With their numbers; an empty line, or a comment, is nothing."""
    (tmp_path / denied.FILE_NAME).write_text(BY_HAND)
    found = denied.DenyList(tmp_path).read()
    assert found.ranges == (RANGE, RANGE6)
    path = str(tmp_path / denied.FILE_NAME)
    assert [(one.file, one.line) for one in found.problems] == [(path, 4), (path, 6)]
    assert found.problems[0].message == "denies nothing: 203.0.113.1/24 has host bits set"


def test_more_ranges_than_the_map_has_room_for_are_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first ones are taken, the others a few by their lines, and then by their number."""
    monkeypatch.setattr(denied, "RANGES_MAX", 3)
    lines = [f"203.0.113.{number}/32" for number in range(40)]
    (tmp_path / denied.FILE_NAME).write_text("\n".join(lines))
    found = denied.DenyList(tmp_path).read()
    assert found.ranges == tuple(lines[:3])
    assert [one.line for one in found.problems] == [*range(4, 24), 0]
    assert found.problems[0].message == "denies nothing: there is room for 3 ranges"
    assert found.problems[-1].message == "17 more lines that deny nothing"


def test_file_that_cannot_be_read_is_no_empty_list(tmp_path: Path) -> None:
    """A directory in its place."""
    (tmp_path / denied.FILE_NAME).mkdir()
    with pytest.raises(DenyListError, match="denied: "):
        denied.DenyList(tmp_path).read()


def test_change_of_the_list_leaves_other_lines_as_they_are(tmp_path: Path) -> None:
    """Those that make no sense, comments, and text in no encoding of ours: what somebody meant is not ours to lose."""
    path = tmp_path / denied.FILE_NAME
    path.write_bytes(BY_HAND.encode() + b"# caf\xe9\n")
    held = denied.DenyList(tmp_path)
    held.add([RANGE, "192.0.2.0/24", "192.0.2.0/24"])
    assert path.read_bytes() == BY_HAND.encode() + b"# caf\xe9\n192.0.2.0/24\n"
    held.remove([RANGE, "192.0.2.0/24"])
    assert (
        path.read_bytes()
        == f"# of our own\n\n203.0.113.1/24\n{RANGE6}\n{ADDRESS} # a comment\n# caf".encode() + b"\xe9\n"
    )


def test_list_has_no_more_ranges_than_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays as it was."""
    monkeypatch.setattr(denied, "RANGES_MAX", 1)
    held = denied.DenyList(tmp_path)
    held.add([RANGE])
    with pytest.raises(DenyListError, match="2 ranges, and there is room for 1"):
        held.add([RANGE6])
    assert held.read().ranges == (RANGE,)


class NoRoom(FakeMaps):
    """Maps of a kernel that is out of memory."""

    def write(self, ops: Iterable[Op]) -> None:
        if list(ops):
            raise BatchError("map denied: Cannot allocate memory", "", full=True)


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.write_text(f"{RANGE}\nx\n"), "denies nothing: 'x' does not appear"),
        (lambda path: path.mkdir(), "not in force: .*Is a directory"),
    ],
)
def test_what_keeps_the_list_from_being_applied_is_a_problem(
    tmp_path: Path, spoil: Callable[[Path], None], problem: str
) -> None:
    """And no end of who applies it; once it is mended there is none."""
    maps, path = FakeMaps(), tmp_path / denied.FILE_NAME
    maps.hold("denied")
    spoil(path)
    (found,) = denied.enforce(denied.DenyList(tmp_path), maps).problems.problems
    assert re.match(problem, found.message)
    assert found.file == str(path)
    path.rmdir() if path.is_dir() else path.unlink()
    path.write_text(f"{RANGE}\n")
    assert denied.enforce(denied.DenyList(tmp_path), maps).problems == Problems("deny list", ())
    assert denied.in_force(maps) == {RANGE}


def test_list_that_the_kernel_refuses_is_a_problem(tmp_path: Path) -> None:
    """As where it has no memory."""
    maps = NoRoom()
    maps.hold("denied")
    (tmp_path / denied.FILE_NAME).write_text(f"{RANGE}\n")
    (found,) = denied.enforce(denied.DenyList(tmp_path), maps).problems.problems
    assert found.message == "not in force: map denied: Cannot allocate memory"


@pytest.mark.root
@pytest.mark.usefixtures("node")
def test_line_that_makes_no_sense_is_told_of_and_stays(bare_node: Node, run: Run) -> None:
    """At each command; what is in force is what it can be."""
    path = bare_node.settings.state_dir / denied.FILE_NAME
    path.write_text("example.com\n")
    told = f"{path}:1: denies nothing: 'example.com' does not appear to be an IPv4 or IPv6 network\n"
    result = run("deny", "add", RANGE)
    assert (result.exit_code, result.stderr) == (0, told)
    assert denied.in_force(PinnedMaps(bare_node.pins)) == {RANGE}
    assert run("deny", "list").stderr == told
    assert run("deny", "remove", RANGE).exit_code == 0
    assert path.read_text() == "example.com\n"
