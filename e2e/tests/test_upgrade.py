# SPDX-License-Identifier: Apache-2.0
"""Under load, a node's daemons give way to those of a release whose maps have another layout, and come back; and
maps give way to larger ones."""

import json
import os
import time
from pathlib import Path

import pytest

from bpf.abi import AbiVersion
from bpf.node import map_sizes
from bpf.settings import Settings
from e2e.lab import release
from e2e.lab.node import CNI_SERVER, CONTROLLER, ROOT, Node
from e2e.tests.load import load
from e2e.tests.stage import PORT, WEB, Stage, ask, names

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SECONDS = 12
PINS = "/sys/fs/bpf/calico-ebpf"
SIZED = map_sizes(Settings())
LARGER = {"frontends": 262144, "slots": 1048576, "backends": 1048576, "flows": 1048576, "pods": 8192, "remotes": 65536}


@pytest.fixture(scope="module")
def other_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return release.make(tmp_path_factory.mktemp("release") / "tree")


def exchange(node: Node, tree: Path) -> None:
    """Stops a node's daemons, and starts those of a tree."""
    for daemon in (CONTROLLER, CNI_SERVER):
        node.stop(daemon)
    node.run_from(tree)
    for daemon in (CONTROLLER, CNI_SERVER):
        node.start(daemon)
    node.wait_ready()


def test_layouts_give_way_to_each_other_under_load(directory_stage: Stage, other_release: Path) -> None:
    """To the other release and back, on both nodes: lasting connections last, new ones are answered, pods are made by
    it, and no pin of the layout before is left."""
    stage = directory_stage
    try:
        with load(stage.pod("ask-1").space, WEB.v4, PORT, SECONDS) as answered:
            for tree in (other_release, ROOT):
                time.sleep(1)
                for node in stage.lab.nodes:
                    exchange(node, tree)
                    version = release.VERSION if tree != ROOT else AbiVersion.VERSION
                    assert _layouts(node) == {f"v{version}"}
                if tree == other_release:
                    pod = stage.node(1).add_pod("newcomer")
                    assert names(ask(stage.place("ask-2"), "tcp", pod.address.v4, 8080)) == {"newcomer"}
        assert answered == {"web-1", "web-2"}
        assert names(ask(stage.place("ask-2"), "tcp", stage.pod("newcomer").address.v4, 8080)) == {"newcomer"}
        assert names(ask(stage.node(1).space, "tcp", WEB.v6, count=20)) == {"web-1", "web-2"}
    finally:
        if "newcomer" in stage.node(1).pods:
            stage.node(1).remove_pod("newcomer")


def test_larger_maps_are_switched_in_under_load(directory_stage: Stage) -> None:
    """On both nodes, with what they hold, and back: lasting connections last, new ones are answered, and a pod that the
    CNI server has made meanwhile is there."""
    stage = directory_stage
    smaller = _sizes(stage.node(1))
    try:
        with load(stage.pod("ask-1").space, WEB.v4, PORT, SECONDS) as answered:
            for sizes in (LARGER, {name: smaller[name] for name in LARGER}):
                for node in stage.lab.nodes:
                    node.configure(**{f"{name}_max": entries for name, entries in sizes.items()})
                    node.stop(CONTROLLER)
                    node.start(CONTROLLER)
                    node.wait_ready()
                    assert _sizes(node) == smaller | sizes
                    assert len(_layouts(node)) == 1
                if sizes == LARGER:
                    pod = stage.node(1).add_pod("newcomer")
                assert names(ask(stage.place("ask-2"), "tcp", pod.address.v4, 8080)) == {"newcomer"}
        assert answered == {"web-1", "web-2"}
    finally:
        if "newcomer" in stage.node(1).pods:
            stage.node(1).remove_pod("newcomer")


def _sizes(node: Node) -> dict[str, int]:
    """How many entries each map takes, where a setting says it."""
    found = json.loads(node.calico("status", "--output", "json"))["maps"]
    return {one["name"]: one["max_entries"] for one in found if one["name"] in SIZED}


def _layouts(node: Node) -> set[str]:
    """The versions whose layout is in force, each of which has one, and nothing else is pinned."""
    found = list(node.space.path(PINS).iterdir())
    links = {path.name: os.readlink(path) for path in found if path.is_symlink()}
    assert {path.name for path in found} == links.keys() | set(links.values())
    return set(links)
