# SPDX-License-Identifier: Apache-2.0
"""The reserved ports: added to what others have reserved, and taken back without them. The overlay's sources."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.sysctl import RESERVED, Sysctls, format_ports, parse_ports


@pytest.fixture
def reserved(tmp_path: Path) -> Path:
    """A file in the place of the kernel's."""
    path = tmp_path / RESERVED
    path.parent.mkdir(parents=True)
    path.write_text("8080,45000-45001\n")
    return path


@given(st.sets(st.integers(1, 300)))
def test_format_then_parse_is_the_same_ports(ports: set[int]) -> None:
    """In the fewest ranges."""
    text = format_ports(ports)
    assert parse_ports(text) == ports
    assert text.count(",") + bool(text) == sum(port - 1 not in ports for port in ports)


def test_reserve_keeps_others_and_release_leaves_theirs(reserved: Path, tmp_path: Path) -> None:
    """Also those that came later, and those that lie in our range but were there before."""
    state = tmp_path / "state"
    Sysctls(tmp_path, state).reserve_ports(range(40000, 60000))
    assert reserved.read_text() == "8080,40000-59999\n"
    reserved.write_text("8080,9090,40000-59999\n")
    Sysctls(tmp_path, state).reserve_ports(range(40000, 60000))
    assert Sysctls(tmp_path, state).release_ports() == "8080,9090,45000-45001"
    assert reserved.read_text() == "8080,9090,45000-45001\n"


def test_reserve_of_another_range_lets_go_of_the_one_before(reserved: Path, tmp_path: Path) -> None:
    """A setting that changed, or masquerade switched off."""
    Sysctls(tmp_path, tmp_path).reserve_ports(range(40000, 60000))
    Sysctls(tmp_path, tmp_path).reserve_ports(range(50000, 50010))
    assert reserved.read_text() == "8080,45000-45001,50000-50009\n"
    Sysctls(tmp_path, tmp_path).reserve_ports(range(40000, 40000))
    assert reserved.read_text() == "8080,45000-45001\n"


def test_reserve_without_change_writes_nothing(reserved: Path, tmp_path: Path) -> None:
    """It runs with every sync of the network."""
    Sysctls(tmp_path, tmp_path).reserve_ports(range(40000, 60000))
    reserved.chmod(0o400)
    before = reserved.stat().st_mtime_ns
    Sysctls(tmp_path, tmp_path).reserve_ports(range(40000, 60000))
    assert reserved.stat().st_mtime_ns == before


def test_release_of_nothing_is_none(reserved: Path, tmp_path: Path) -> None:
    """Where no controller ever ran."""
    assert Sysctls(tmp_path, tmp_path).release_ports() is None
    assert reserved.read_text() == "8080,45000-45001\n"


def test_value_that_cannot_be_put_back_leaves_no_other_undone(tmp_path: Path) -> None:
    """It is named once the others have been."""
    proc, state = tmp_path / "proc", tmp_path / "state"
    names = [f"net/ipv6/conf/{device}/accept_ra" for device in ("one", "two", "three")]
    forwarding = "net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"
    for name in (*names, *forwarding):
        (proc / name).parent.mkdir(parents=True)
        (proc / name).write_text("1\n" if name in names else "0\n")
    Sysctls(proc, state).enable_forwarding(["one", "two", "three"])
    (proc / names[1]).unlink()
    (proc / names[1]).mkdir()  # nobody can write to it
    restored = []
    with pytest.raises(OSError, match=f"could not be put back: {names[1]} to 1: .*Is a directory"):
        restored += Sysctls(proc, state).restore()
    shown = {name: (proc / name).read_text() for name in (names[0], names[2], *forwarding)}
    assert shown == {names[0]: "1\n", names[2]: "1\n", **dict.fromkeys(forwarding, "0\n")}


def _proc(root: Path, **values: str) -> Path:
    """/proc/sys of a node whose devices have accept_ra and forwarding as said: "1/0", say."""
    for name, value in ({"all": "1/0"} | values).items():
        directory = root / "net/ipv6/conf" / name
        directory.mkdir(parents=True)
        for setting, one in zip(("accept_ra", "forwarding"), value.split("/"), strict=True):
            (directory / setting).write_text(f"{one}\n")
    (root / "net/ipv4").mkdir()
    (root / "net/ipv4/ip_forward").write_text("0\n")
    return root


def test_who_listens_to_routers_goes_on_when_the_node_forwards(tmp_path: Path) -> None:
    """The underlay in any case. A device that forwards already, or was told not to listen, stays deaf."""
    proc = _proc(tmp_path / "proc", up0="1/1", up1="1/0", up2="1/1", up3="0/0", up4="2/0")
    sysctls = Sysctls(proc, tmp_path)
    sysctls.enable_forwarding(["up0"], ["up1", "up2", "up3", "up4", "gone"])
    heard = {path.parent.name: path.read_text().strip() for path in proc.glob("net/ipv6/conf/*/accept_ra")}
    assert heard == {"all": "1", "up0": "2", "up1": "2", "up2": "1", "up3": "0", "up4": "2"}
    assert (proc / "net/ipv6/conf/all/forwarding").read_text() == "1"
    put_back = dict(sysctls.restore())
    assert put_back == {
        "net/ipv4/ip_forward": "0",
        "net/ipv6/conf/up0/accept_ra": "1",
        "net/ipv6/conf/up1/accept_ra": "1",
        "net/ipv6/conf/all/forwarding": "0",
    }


def test_loosen_is_greater_than_strict(tmp_path: Path) -> None:
    """The kernel takes the greater of the device's value and that of all: 2 is loose whatever the other is."""
    path = tmp_path / "net/ipv4/conf/calico-vxlan/rp_filter"
    path.parent.mkdir(parents=True)
    for before in ("0", "1", "2"):
        path.write_text(f"{before}\n")
        Sysctls(tmp_path, tmp_path).loosen("calico-vxlan")
        assert path.read_text().strip() == "2"


def test_loosen_of_a_device_that_is_gone_is_no_error(tmp_path: Path) -> None:
    """Somebody removed it meanwhile."""
    Sysctls(tmp_path, tmp_path).loosen("calico-vxlan")
    assert not list(tmp_path.iterdir())
