# SPDX-License-Identifier: Apache-2.0
"""The file of ip-masq-agent: what it says, what is wrong with it, and when it is read."""

import threading
from pathlib import Path

import pytest

from controller.masqagent import RangesFile, parse, watch

PATIENCE_S = 10
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
LINK_LOCAL = "169.254.0.0/16"


@pytest.mark.parametrize(
    ("content", "ranges"),
    [
        ("", (*PRIVATE, LINK_LOCAL)),
        (
            "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 2001:db8::/32\nresyncInterval: 60s\n",
            ("10.0.0.0/8", "2001:db8::/32", LINK_LOCAL),
        ),
        ('{"nonMasqueradeCIDRs": ["10.0.0.0/8"], "masqLinkLocal": false}', ("10.0.0.0/8", LINK_LOCAL)),
        ("nonMasqueradeCIDRs:\nmasqLinkLocalIPv6: false\n", (LINK_LOCAL,)),
        ("nonMasqueradeCIDRs: []\n", (LINK_LOCAL,)),
        ("masqLinkLocal: false\n", (*PRIVATE, LINK_LOCAL)),
        ("masqLinkLocal: true\n", PRIVATE),
        ("nonMasqueradeCIDRs: []\nmasqLinkLocal: true\n", ()),
        ("later: [1]\n", (*PRIVATE, LINK_LOCAL)),
    ],
)
def test_file_names_ranges(content: str, ranges: tuple[str, ...]) -> None:
    """In YAML or JSON, as its user guide has it; where it does not say which, as in the agent itself, private ones and
    IPv4's link-local ones."""
    assert parse(content, 10) == (ranges, [])


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("nonMasqueradeCIDRs: [10.0.0.1/8]", "nonMasqueradeCIDRs: 10.0.0.1/8 has host bits set"),
        ("nonMasqueradeCIDRs: [ten]", "nonMasqueradeCIDRs: 'ten' does not appear to be an IPv4 or IPv6 network"),
        ("nonMasqueradeCIDRs: 10.0.0.0/8", "nonMasqueradeCIDRs: expected a list of ranges"),
        ("nonMasqueradeCIDRs: [7]", "nonMasqueradeCIDRs: expected a list of ranges"),
        (
            "nonMasqueradeCIDRs: [10.0.0.0/8, 11.0.0.0/8, 12.0.0.0/8]",
            "nonMasqueradeCIDRs: 4 ranges take 4 entries, and there is room for 2",
        ),
        (
            "nonMasqueradeCIDRs: ['::ffff:10.0.0.0/104']",
            "nonMasqueradeCIDRs: ::ffff:10.0.0.0/104 is IPv4 in the form of IPv6: write 10.0.0.0/8",
        ),
        ("nonMasqueradeCIDRs: ['::/0']", "nonMasqueradeCIDRs: 2 ranges take 97 entries, and there is room for 2"),
        ("- 10.0.0.0/8", "expected a mapping"),
        ("{", "while parsing a flow node"),
    ],
)
def test_file_that_cannot_be_is_named_and_what_it_said_stays(tmp_path: Path, content: str, why: str) -> None:
    """A mistake must not masquerade what was not."""
    path = tmp_path / "ip-masq-agent"
    file = RangesFile(path, 2)
    path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]")
    assert file.read() == (("10.0.0.0/8", LINK_LOCAL), [])
    path.write_text(content)
    ranges, (problem,) = file.read()
    assert ranges == ("10.0.0.0/8", LINK_LOCAL)
    assert (problem.subject, problem.file) == ("ip-masq-agent", str(path))
    assert problem.message.startswith(why)
    assert problem.message.endswith("; what it said before stays")


def test_ipv6_link_local_packets_are_never_masqueraded() -> None:
    """Said, where the file asks for it."""
    assert parse("nonMasqueradeCIDRs: []\nmasqLinkLocal: true\nmasqLinkLocalIPv6: true", 2) == (
        (),
        ["masqLinkLocalIPv6: packets to IPv6 link-local addresses stay on a pod's link"],
    )


def test_file_that_is_not_there_names_nothing(tmp_path: Path) -> None:
    """Nor does one that has gone, or that nobody has set."""
    path = tmp_path / "ip-masq-agent"
    file = RangesFile(path, 2)
    assert file.read() == ((), [])
    path.write_text("nonMasqueradeCIDRs: [10.0.0.0/8]")
    assert file.read()[0] == ("10.0.0.0/8", LINK_LOCAL)
    path.unlink()
    assert file.read() == ((), [])
    assert RangesFile(None, 2).read() == ((), [])


def test_file_is_read_when_it_changes(tmp_path: Path) -> None:
    """Written, renamed into place as by a mounted ConfigMap, removed."""
    directory, changed = tmp_path / "config", threading.Event()
    directory.mkdir()
    watch(directory / "ip-masq-agent", changed.set)
    assert changed.wait(PATIENCE_S)
    steps = (
        lambda: (directory / "ip-masq-agent").write_text(""),
        lambda: (directory / "..data_tmp").write_text(""),
        lambda: (directory / "..data_tmp").rename(directory / "..data"),
        lambda: (directory / "ip-masq-agent").unlink(),
    )
    for step in steps:
        changed.clear()
        step()
        assert changed.wait(PATIENCE_S)


def test_directory_that_comes_later_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that comes again."""
    monkeypatch.setattr("controller.inotify.RETRY_S", 0.01)
    directory, changed = tmp_path / "config", threading.Event()
    watch(directory / "ip-masq-agent", changed.set)
    for _ in range(2):
        changed.clear()
        directory.mkdir()
        assert changed.wait(PATIENCE_S)
        changed.clear()
        directory.rmdir()
        assert changed.wait(PATIENCE_S)


def test_nobody_waits_for_no_file() -> None:
    """There is nothing to watch."""
    before = threading.active_count()
    watch(None, lambda: None)
    assert threading.active_count() == before
