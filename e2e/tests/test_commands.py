# SPDX-License-Identifier: Apache-2.0
"""The commands that people run: the demo, and the lab by hand."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from e2e.lab import cluster, runtime

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]


def _python(*arguments: str, check: bool = True) -> str:
    process = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, check=False)
    assert process.returncode == 0 or not check, process.stdout + process.stderr
    return process.stdout + process.stderr


def test_demo_succeeds_and_leaves_a_page(tmp_path: Path) -> None:
    """Every step of the demo succeeds, the page holds them with a picture, and nothing of the lab stays."""
    name, page = f"test-{os.getpid()}-demo", tmp_path / "report.html"
    shown = _python("-m", "e2e.demo", "--name", name, "--page", str(page))
    assert "All 15 steps shown" in shown
    html = page.read_text()
    assert html.count("<section>") == 15
    assert "<svg" in html
    assert "http" not in html.replace("http-equiv", "")
    assert not (cluster.HOME / name).exists()


def test_lab_by_hand_goes_up_takes_pods_and_goes_down() -> None:
    """Each command of `python -m e2e.lab` works from a process of its own, on a lab that outlives them."""
    name = f"test-{os.getpid()}-hand"
    lab = ("-m", "e2e.lab", "--name", name)
    try:
        assert "node2" in _python(*lab, "up", "--nodes", "2")
        assert "10.244.1." in _python(*lab, "pod", "add", "node1", "web")
        assert "has a pod web already" in _python(*lab, "pod", "add", "node1", "web", check=False)
        assert "node1/web" in _python(*lab, "pod", "list")
        assert "--source kubernetes" in _python(*lab, "kubectl", "get", "nodes", check=False)
        assert f"`{cluster.command(name)} down` ends it" in _python(*lab, "up", check=False)
        asked = _python(*lab, "in", "node1", "--", *runtime.tool("ask", "tcp", "10.244.1.2", "8080"))
        assert '"name": "web"' in asked
        assert "eth0" in _python(*lab, "in", "node1/web", "--", "ip", "link")
        assert "no pod db" in _python(*lab, "in", "node1/db", "--", "true", check=False)
        _python(*lab, "pod", "remove", "node1", "web")
        assert "pods       none" in _python(*lab, "status")
    finally:
        _python(*lab, "down")
    assert not (cluster.HOME / name).exists()
    assert not cluster.group(name).exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--name", "a b/c", "up"), "letters, digits and dashes"),
        (("up", "--nodes", "0"), "not in the range"),
        (("up", "--set", "bogus"), "NAME=VALUE"),
    ],
)
def test_lab_by_hand_refuses_what_it_cannot_make(arguments: tuple[str, ...], said: str) -> None:
    """Nothing is begun with arguments that lead nowhere."""
    assert said in _python("-m", "e2e.lab", *arguments, check=False)
