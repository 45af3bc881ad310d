# SPDX-License-Identifier: Apache-2.0
"""The one-shot process imports little, for its start is most of its time."""

import io
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from cni import oneshot
from cni.plugin import Plugin

HEAVY = {"click", "kubernetes", "msgspec", "prometheus_client", "pyroute2", "rich", "structlog", "yaml"}


def test_imports_of_oneshot_leave_out_the_heavy_ones() -> None:
    """None of the packages that other commands need is imported: not a stopwatch, but a list."""
    program = "import json, sys, cni.oneshot; print(json.dumps(sorted(sys.modules)))"
    process = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert HEAVY.isdisjoint(json.loads(process.stdout))


def test_oneshot_that_meets_a_defect_answers_with_the_specifications_object(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """A runtime that reads standard output finds an error there, not nothing beside a traceback."""

    def refuse(*_: object) -> None:
        raise PermissionError(1, "map lookup: Operation not permitted")

    monkeypatch.setattr(Plugin, "answer", refuse)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b'{"cniVersion": "1.0.0"}')))
    assert oneshot.main() == 1
    answer = json.loads(capfdbinary.readouterr().out)
    assert (answer["code"], answer["cniVersion"]) == (100, "1.0.0")
    assert "Operation not permitted" in answer["msg"]
