# SPDX-License-Identifier: Apache-2.0
"""The node that the settings describe: mounts, load-time constants, and the way to the loader."""

from pathlib import Path
from typing import Any

import pytest

from bpf import features, loader, node
from bpf.abi import ConnectTime
from bpf.errors import KernelError
from bpf.settings import Settings

HYBRID = """\
/dev/vda / ext4 rw 0 0
tmpfs /sys/fs/cgroup tmpfs rw 0 0
cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0
bpf /sys/fs/bpf bpf rw 0 0
"""
UNIFIED = """\
/dev/vda / ext4 rw 0 0
cgroup2 /run/other cgroup2 rw 0 0
cgroup2 /sys/fs/cgroup cgroup2 rw 0 0
"""


@pytest.fixture
def mounts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file in the place of /proc/self/mounts."""
    table = tmp_path / "mounts"
    monkeypatch.setattr(node, "MOUNTS", table)
    return table


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (HYBRID, "/sys/fs/cgroup/unified"),
        (UNIFIED, "/sys/fs/cgroup"),
        ("none /run/cg\\0402 cgroup2 rw 0 0\n", "/run/cg 2"),
    ],
    ids=["hybrid", "unified", "elsewhere"],
)
def test_cgroup_root_is_the_cgroup2_mount(mounts: Path, table: str, expected: str) -> None:
    """Both layouts of the hierarchy are known, and any other mount does where there is neither."""
    mounts.write_text(table)
    assert node.cgroup_root(Settings()) == Path(expected)


def test_cgroup_root_setting_wins(mounts: Path) -> None:
    """A directory that was set is not looked for."""
    mounts.write_text(HYBRID)
    assert node.cgroup_root(Settings(cgroup=Path("/somewhere"))) == Path("/somewhere")


def test_cgroup_root_without_mount_says_what_to_do(mounts: Path) -> None:
    """Without cgroup2 the message is a command that mounts it."""
    mounts.write_text("tmpfs /sys/fs/cgroup tmpfs rw 0 0\n")
    with pytest.raises(KernelError, match="mount -t cgroup2"):
        node.cgroup_root(Settings())


@pytest.mark.parametrize(
    ("path", "kind"), [("/sys/fs/bpf", "bpf"), ("/sys/fs/bpf/node1", "bpf"), ("/sys/fs/bpfx", "ext4"), ("/", "ext4")]
)
def test_filesystem_is_that_of_the_longest_mount_point(mounts: Path, path: str, kind: str) -> None:
    """A directory below a mount belongs to it; one that only begins with its name does not."""
    mounts.write_text(HYBRID)
    assert node.filesystem(Path(path)) == kind


def test_filesystem_is_the_last_one_mounted(mounts: Path) -> None:
    """What is mounted over another hides it."""
    mounts.write_text(HYBRID + "tmpfs /sys/fs/bpf tmpfs rw 0 0\n")
    assert node.filesystem(Path("/sys/fs/bpf")) == "tmpfs"


def test_load_datapath_without_bpffs_says_what_to_do(mounts: Path) -> None:
    """Nothing is tried where maps cannot be pinned."""
    mounts.write_text(UNIFIED)
    with pytest.raises(KernelError, match="mount -t bpf bpf /sys/fs/bpf"):
        node.load_datapath(Settings())


def test_load_datapath_hands_the_settings_to_the_loader(mounts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Places, sizes and constants are those of the settings."""
    mounts.write_text(HYBRID)
    calls: list[Any] = []
    monkeypatch.setattr(loader, "load", lambda *arguments: calls.append(arguments) or True)
    settings = Settings(flows_max=1000, run_dir=Path("/run/x"), objects_dir=Path("/objects"))
    assert node.load_datapath(settings)
    ((pins, objects, config, sizes, lock, replace),) = calls
    assert replace
    assert (pins.root.parent, objects, lock) == (
        Path("/sys/fs/bpf/calico-ebpf"),
        Path("/objects"),
        Path("/run/x/load.lock"),
    )
    assert config == node.config(settings)
    assert sizes["flows"] == 1000
    assert set(sizes) == {
        "frontends",
        "slots",
        "backends",
        "maglev",
        "affinities",
        "sources",
        "remotes",
        "pods",
        "flows",
    }


@pytest.mark.parametrize(
    ("setting", "expected"), [("host", ConnectTime.HOST), ("off", ConnectTime.HOST), ("all", ConnectTime.ALL)]
)
def test_config_has_seconds_as_nanoseconds(setting: str, expected: ConnectTime) -> None:
    """Time-outs are converted; where nothing is translated at connect time, nothing is attached either."""
    config = node.config(Settings(tcp_new_s=7, udp_established_s=9, connect_time=setting))
    assert (config.tcp_new_ns, config.udp_established_ns) == (7 * 10**9, 9 * 10**9)
    assert config.connect_time == expected


@pytest.mark.parametrize(("masquerade", "count"), [("all", 100), ("ipv4", 100), ("off", 0)])
def test_config_has_no_ports_without_masquerade(masquerade: str, count: int) -> None:
    """The programs then leave what goes out of the cluster to the host's stack."""
    config = node.config(Settings(masquerade=masquerade, masquerade_port_min=50000, masquerade_ports=100))
    assert (config.masquerade_port_min, config.masquerade_port_count) == (50000, count)


@pytest.mark.parametrize(("kernel", "expected"), [((5, 10), 0), ((5, 11), 1)])
def test_config_has_the_coarse_clock_where_the_kernel_has(
    monkeypatch: pytest.MonkeyPatch, kernel: tuple[int, int], expected: int
) -> None:
    """Before, the programs read the exact one."""
    monkeypatch.setattr(features, "kernel", lambda: (kernel, ""))
    assert node.config(Settings()).coarse_clock == expected
