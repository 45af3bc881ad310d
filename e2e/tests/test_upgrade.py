# SPDX-License-Identifier: Apache-2.0
"""A node's daemons give way, under load, to those of a release whose maps have another layout, and come back."""

import time
from pathlib import Path

import pytest

from bpf.abi import AbiVersion
from e2e.lab import release
from e2e.lab.node import CNI_SERVER, CONTROLLER, ROOT, Node
from e2e.tests.load import load
from e2e.tests.stage import PORT, WEB, Stage, ask, names

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SECONDS = 12
PINS = "/sys/fs/bpf/calico-ebpf"


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
                    assert [path.name for path in node.space.path(PINS).iterdir()] == [f"v{version}"]
                if tree == other_release:
                    pod = stage.node(1).add_pod("newcomer")
                    assert names(ask(stage.place("ask-2"), "tcp", pod.address.v4, 8080)) == {"newcomer"}
        assert answered == {"web-1", "web-2"}
        assert names(ask(stage.place("ask-2"), "tcp", stage.pod("newcomer").address.v4, 8080)) == {"newcomer"}
        assert names(ask(stage.node(1).space, "tcp", WEB.v6, count=20)) == {"web-1", "web-2"}
    finally:
        if "newcomer" in stage.node(1).pods:
            stage.node(1).remove_pod("newcomer")
