# SPDX-License-Identifier: Apache-2.0
"""What is remembered of other Nodes, and what becomes of it when it cannot be read."""

from pathlib import Path

import pytest

from controller.memory import NodeMemory
from controller.model import Kind, Node
from controller.source import Changed, Synced
from controller.tests.objects import decoded_node, node

RANGE = "10.244.1.0/24"


def told(name: str, *cidrs: str, taints: tuple[str, ...] = ()) -> Changed:
    manifest = node(name, ["192.0.2.2", "2001:db8::2"], list(cidrs))
    manifest["spec"]["taints"] = [{"key": key} for key in taints]
    return Changed(Kind.NODE, ("", name), decoded_node(manifest))


def ranges(nodes: tuple[Node, ...]) -> dict[str, list[str]]:
    return {one.metadata.name: one.spec.pod_cidrs for one in nodes}


def test_next_controller_knows_what_was_told_last(tmp_path: Path) -> None:
    """Of others, with their addresses; not of this node, nor of what is gone."""
    path = tmp_path / "nodes.json"
    memory = NodeMemory(path, "own")
    memory.note([told("far", RANGE), told("own", "10.244.2.0/24"), told("gone"), Synced(Kind.NODE)])
    memory.note([Changed(Kind.NODE, ("", "gone"), None)])
    (found,) = NodeMemory(path, "own").nodes
    assert ranges((found,)) == {"far": [RANGE]}
    assert [item.address for item in found.status.addresses or ()] == ["192.0.2.2", "2001:db8::2"]


def test_file_is_written_only_when_something_differs(tmp_path: Path) -> None:
    """Kubelets report every few minutes, and there may be thousands."""
    path = tmp_path / "nodes.json"
    memory = NodeMemory(path, "own")
    memory.note([told("far", RANGE)])
    before = path.stat().st_ino
    memory.note([told("far", RANGE, taints=("node.kubernetes.io/unreachable",))])
    assert path.stat().st_ino == before
    memory.note([told("far")])
    assert path.stat().st_ino != before


@pytest.mark.parametrize("content", [b"", b"[]", b'{"far": {"metadata": {}}}', b"\xff"])
def test_file_that_cannot_be_read_is_as_none(tmp_path: Path, content: bytes) -> None:
    """What goes while nobody watches is then missed."""
    path = tmp_path / "nodes.json"
    path.write_bytes(content)
    assert NodeMemory(path, "own").nodes == ()


def test_memory_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    """A full disk must not keep Nodes from being followed."""
    memory = NodeMemory(tmp_path, "own")
    memory.note([told("far", RANGE)])
    assert ranges(memory.nodes) == {"far": [RANGE]}
