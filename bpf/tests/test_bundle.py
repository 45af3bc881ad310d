# SPDX-License-Identifier: Apache-2.0
"""What runs from a bundle finds its tools and its programs there; what does not, as ever."""

import sys
from pathlib import Path

import pytest

from bpf import bundle, settings


@pytest.fixture
def prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle as far as it counts here, and this process run from it."""
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "ld.so").touch()
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    return tmp_path


def test_command_in_a_bundle_goes_by_its_own_loader(prefix: Path) -> None:
    """The node's loader may be an older one, and has other libraries; bpftool knows itself by its name."""
    begin = [f"{prefix}/lib/ld.so", "--library-path", f"{prefix}/lib", "--argv0", "bpftool"]
    assert bundle.command("bpftool") == [*begin, f"{prefix}/bin/bpftool"]


def test_command_elsewhere_is_found_on_path() -> None:
    """A checkout has Debian's bpftool."""
    assert bundle.root() is None
    assert bundle.command("bpftool") == ["bpftool"]


def test_objects_of_a_bundle_are_its_own(prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs come with the code that knows their layout."""
    monkeypatch.setattr(settings, "__file__", str(prefix / "lib/python3.11/bpf/settings.py"))
    assert settings.Settings().objects_dir == prefix / "bpf"
