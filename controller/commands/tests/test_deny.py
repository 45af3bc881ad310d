# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf deny`, on real maps, with no daemon running; and how its list comes back into maps that are new."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bpf import abi
from bpf.address import packed
from controller import denied
from controller.commands.deny import conflicts
from controller.commands.tests.conftest import Node
from controller.errors import DenyListError
from controller.maps import PinnedMaps

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
    denied.apply(PinnedMaps(bare_node.pins), denied.DenyList(bare_node.settings.state_dir).read())
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
    assert listed(run) == sorted([(RANGE, True), (cidr, True)], key=lambda one: denied.entry(one[0]))


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


def test_file_that_cannot_be_read_says_where(tmp_path: Path) -> None:
    """Somebody has edited it: nothing of it is taken."""
    (tmp_path / denied.FILE_NAME).write_text(f"{RANGE}\n203.0.113.1/24\n")
    with pytest.raises(DenyListError, match=r"denied:2: 203\.0\.113\.1/24 has host bits set"):
        denied.DenyList(tmp_path).read()


def test_list_has_no_more_ranges_than_the_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file stays as it was."""
    monkeypatch.setattr(denied, "RANGES_MAX", 1)
    held = denied.DenyList(tmp_path)
    held.write([RANGE])
    with pytest.raises(DenyListError, match="2 ranges, and there is room for 1"):
        held.write([RANGE, RANGE6])
    assert held.read() == [RANGE]
