# SPDX-License-Identifier: Apache-2.0
"""The benchmarks' own tools."""

import os
from pathlib import Path

import pytest

from e2e.bench import tool


@pytest.mark.parametrize("source", sorted(tool.SOURCES.glob("*.c")), ids=lambda source: source.stem)
def test_tools_are_built(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each compiles, without a warning."""
    monkeypatch.setattr(tool, "BUILD", tmp_path)
    assert os.access(tool.build(source.stem), os.X_OK)
