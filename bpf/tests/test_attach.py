# SPDX-License-Identifier: Apache-2.0
"""What attaching leaves behind where the kernel refuses; that it attaches is asked of the kernel in test_cgroup.py."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bpf import attach, syscall
from bpf.pins import Pins


def _refuse(*_: object) -> None:
    raise PermissionError("not permitted")


def _open(*_: object) -> int:
    return os.open("/dev/null", os.O_RDONLY)


def _no_link(_: Path) -> int:
    raise FileNotFoundError


@pytest.mark.parametrize(
    ("moves", "step"),
    [(False, "link_cgroup"), (False, "link_update"), (False, "obj_pin"), (True, "link_update"), (True, "obj_pin")],
    ids=["attach, ask", "attach, update", "attach, pin", "move, update", "move, pin"],
)
def test_link_that_the_kernel_refuses_leaves_no_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: bool, step: str
) -> None:
    """It is tried again with each audit: what each try leaves open would gather until nothing can be opened."""
    pins, before = Pins(tmp_path), Pins(tmp_path, "before")
    for directory in (pins.links, before.links):
        directory.mkdir(parents=True)
    fakes: dict[str, Callable[..., object]] = {
        "obj_get": _no_link if (moves, step) == (False, "obj_pin") else _open,
        "link_cgroup": lambda _: tmp_path.stat().st_ino,
        "link_create": _open,
        "link_update": lambda *_: None,
        step: _refuse,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(syscall, name, fake)
    monkeypatch.setattr(Pins, "open_program", _open)
    act = partial(attach.move_cgroup, before, pins) if moves else partial(attach.attach_cgroup, pins, tmp_path)
    opened = os.listdir("/proc/self/fd")
    with pytest.raises(PermissionError):
        act()
    assert os.listdir("/proc/self/fd") == opened
