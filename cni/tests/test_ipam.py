# SPDX-License-Identifier: Apache-2.0
"""Addresses are given out once, given back to nobody else's harm, and host-local reads and writes the same files."""

import json
import os
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cni import ranges
from cni.errors import ExhaustedError, NodeError
from cni.ipam import Reservations

HOST_LOCAL = Path("/usr/lib/cni/host-local")
SMALL = {"subnet": "192.0.2.0/29"}  # .2 to .6: five addresses
DUAL = {"ranges": [[{"subnet": "192.0.2.0/29"}], [{"subnet": "2001:db8::/125"}]]}

needs_host_local = pytest.mark.skipif(not HOST_LOCAL.exists(), reason="host-local is not installed")


def allocate(reservations: Reservations, container: str, ipam: dict[str, Any] | None = None) -> list[str]:
    return list(map(str, reservations.allocate(container, "eth0", ranges.range_sets(ipam or SMALL))))


def test_allocate_writes_host_locals_files(tmp_path: Path) -> None:
    """The bytes on disk are host-local's, to the line break."""
    assert allocate(Reservations(tmp_path, "pods"), "c1", DUAL) == ["192.0.2.2", "2001:db8::2"]
    assert (tmp_path / "pods/192.0.2.2").read_bytes() == b"c1\r\neth0"
    assert (tmp_path / "pods/2001:db8::2").read_bytes() == b"c1\r\neth0"
    assert (tmp_path / "pods/last_reserved_ip.0").read_bytes() == b"192.0.2.2"
    assert (tmp_path / "pods/last_reserved_ip.1").read_bytes() == b"2001:db8::2"


def test_allocate_after_release_goes_on_in_turn(tmp_path: Path) -> None:
    """An address is not given out again at once: connections to the pod before may still be under way."""
    reservations = Reservations(tmp_path, "pods")
    reservations.release("c1", "eth0", allocate(reservations, "c1"))
    assert allocate(reservations, "c2") == ["192.0.2.3"]


def test_allocate_from_exhausted_range_keeps_nothing(tmp_path: Path) -> None:
    """When the second family has none left, the first one's address is given back."""
    reservations = Reservations(tmp_path, "pods")
    ipam = {"ranges": [[SMALL], [{"subnet": "2001:db8::/126"}]]}
    for container in ("c1", "c2"):
        allocate(reservations, container, ipam)
    with pytest.raises(ExhaustedError, match="2001:db8::1-2001:db8::3"):
        allocate(reservations, "c3", ipam)
    assert reservations.find("c3", "eth0") == []


def test_release_leaves_the_address_of_a_newer_pod(tmp_path: Path) -> None:
    """A late DEL names an address that is another container's by now."""
    reservations = Reservations(tmp_path, "pods")
    allocate(reservations, "c1")
    reservations.release("c0", "eth0", ["192.0.2.2"])
    assert reservations.find("c1", "eth0") == ["192.0.2.2"]


def test_find_knows_old_reservations_without_interface(tmp_path: Path) -> None:
    """Early versions of host-local wrote the container id alone."""
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/192.0.2.4").write_bytes(b"c1")
    assert Reservations(tmp_path, "pods").find("c1", "eth0") == ["192.0.2.4"]


def test_find_in_network_that_never_was_finds_nothing(tmp_path: Path) -> None:
    """A DEL before any ADD makes no error."""
    assert Reservations(tmp_path, "pods").find("c1", "eth0") == []


def test_allocate_with_damaged_last_address_starts_anew(tmp_path: Path) -> None:
    """A torn write costs the turn, not the pod."""
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods/last_reserved_ip.0").write_text("192.0")
    assert allocate(Reservations(tmp_path, "pods"), "c1") == ["192.0.2.2"]


@pytest.mark.parametrize("call", ["write_bytes", "write_text", "link", "unlink"])
def test_allocate_that_fails_at_any_call_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A full disk at whichever file costs no address, and the next attempt works."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    reservations = Reservations(tmp_path, "pods")
    with monkeypatch.context() as patched:
        patched.setattr(os if call == "link" else Path, call, refuse)
        with pytest.raises(NodeError, match="No space left"):
            allocate(reservations, "c1", DUAL)
    reservations.release("c1", "eth0", reservations.find("c1", "eth0"))
    assert len(allocate(reservations, "c2", DUAL)) == 2
    assert sum(len(reservations.find(container, "eth0")) for container in ("c1", "c2")) == 2


def test_address_file_without_owner_is_nobodys(tmp_path: Path) -> None:
    """host-local, killed between creating a file and writing it, leaves an empty one, which no DEL can name."""
    (tmp_path / "pods").mkdir()
    for last in range(2, 7):
        (tmp_path / f"pods/192.0.2.{last}").touch()
    assert allocate(Reservations(tmp_path, "pods"), "c1") == ["192.0.2.2"]
    assert Reservations(tmp_path, "pods").find("c1", "eth0") == ["192.0.2.2"]


def test_allocate_where_no_directory_can_be_says_so(tmp_path: Path) -> None:
    """The file system's complaint reaches the runtime."""
    (tmp_path / "file").write_text("")
    with pytest.raises(NodeError, match="Not a directory"):
        allocate(Reservations(tmp_path / "file", "pods"), "c1")


def test_allocate_by_many_at_once_gives_each_its_own(tmp_path: Path) -> None:
    """The lock holds between threads, each with a descriptor of its own, as between processes."""
    ipam = {"subnet": "192.0.2.0/24"}
    with ThreadPoolExecutor(16) as pool:
        given = list(pool.map(lambda i: allocate(Reservations(tmp_path, "pods"), f"c{i}", ipam)[0], range(100)))
    assert len(set(given)) == 100


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7)), max_size=40))
@settings(deadline=None, max_examples=60)
def test_reservations_under_any_history_stay_consistent(history: list[tuple[bool, int]]) -> None:
    """No address is held twice, none is lost, and a range is exhausted only when all of it is held."""
    held: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as directory:
        reservations = Reservations(Path(directory), "pods")
        for adds, number in history:
            container = f"c{number}"
            if not adds:
                reservations.release(container, "eth0", reservations.find(container, "eth0"))
                held = {address: owner for address, owner in held.items() if owner != container}
                continue
            try:
                (address,) = allocate(reservations, container)
            except ExhaustedError:
                assert len(held) == 5
                continue
            assert address not in held
            assert address in {f"192.0.2.{last}" for last in range(2, 7)}
            held[address] = container
        for container in set(held.values()):
            expected = {address for address, owner in held.items() if owner == container}
            assert set(reservations.find(container, "eth0")) == expected


def host_local(verb: str, container: str, directory: Path) -> subprocess.CompletedProcess[str]:
    ipam = {"type": "host-local", "dataDir": str(directory), "ranges": [[SMALL]]}
    environment = {
        **os.environ,
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": "/none",
        "CNI_PATH": "/usr/lib/cni",
    }
    text = json.dumps({"cniVersion": "0.4.0", "name": "pods", "type": "ptp", "ipam": ipam})
    return subprocess.run([HOST_LOCAL], input=text, env=environment, capture_output=True, text=True, check=False)


def host_local_add(container: str, directory: Path) -> str:
    process = host_local("ADD", container, directory)
    assert process.returncode == 0, process.stdout
    address: str = json.loads(process.stdout)["ips"][0]["address"]
    return address.removesuffix("/29")


@needs_host_local
def test_host_local_and_we_take_turns_in_one_directory(tmp_path: Path) -> None:
    """Each sees what the other has given out, and goes on behind it."""
    reservations = Reservations(tmp_path, "pods")
    given = [host_local_add("c1", tmp_path), *allocate(reservations, "c2"), host_local_add("c3", tmp_path)]
    given += allocate(reservations, "c4")
    assert given == ["192.0.2.2", "192.0.2.3", "192.0.2.4", "192.0.2.5"]


@needs_host_local
def test_host_local_and_we_release_each_others_addresses(tmp_path: Path) -> None:
    """A node can go from one to the other with its pods running."""
    reservations = Reservations(tmp_path, "pods")
    host_local_add("c1", tmp_path)
    allocate(reservations, "c2")
    reservations.release("c1", "eth0", reservations.find("c1", "eth0"))
    assert host_local("DEL", "c2", tmp_path).returncode == 0
    assert sorted(path.name for path in (tmp_path / "pods").iterdir()) == ["last_reserved_ip.0", "lock"]


@needs_host_local
def test_host_local_and_we_agree_on_exhaustion(tmp_path: Path) -> None:
    """Both call the same range exhausted."""
    reservations = Reservations(tmp_path, "pods")
    for number in range(5):
        allocate(reservations, f"c{number}")
    assert host_local("ADD", "c5", tmp_path).returncode != 0
    with pytest.raises(ExhaustedError):
        allocate(reservations, "c5")
