# SPDX-License-Identifier: Apache-2.0
"""Our daemons killed and started again under load: the data plane does not notice."""

import pytest

from e2e.lab import addresses
from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.tests.load import kill_daemons_twice, load
from e2e.tests.stage import PORT, WEB, Stage, ask, names, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SECONDS = 10


def test_daemons_killed_and_restarted_under_load_lose_nothing(directory_stage: Stage) -> None:
    """Of 1,000 new connections a second and 20 lasting ones, none is refused or reset while both daemons die twice."""
    stage = directory_stage
    with load(stage.pod("ask-1").space, WEB.v4, PORT, SECONDS) as answered:
        kill_daemons_twice(stage.lab.nodes)
    assert answered == {"web-1", "web-2"}


def test_controller_terminated_leaves_services_reachable(directory_stage: Stage) -> None:
    """SIGTERM ends the controller with status 0, and Services go on without it."""
    node = directory_stage.node(1)
    assert node.stop(CONTROLLER) == 0
    try:
        assert names(ask(directory_stage.place("ask-1"), "tcp", WEB.v4, count=20)) == {"web-1", "web-2"}
        assert names(ask(node.space, "udp", WEB.v6, count=20)) == {"web-1", "web-2"}
    finally:
        node.start(CONTROLLER)
        node.wait_ready()


def test_change_missed_while_the_controller_was_away_is_applied(directory_stage: Stage) -> None:
    """Endpoints that came and went while nobody watched are in force once the controller is back."""
    stage, service = directory_stage, addresses.service(30)
    stage.expose("missed", service, ["web-1"])
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", service.v4)) == {"web-1"})
    stage.node(1).kill(CONTROLLER)
    try:
        stage.expose("missed", service, ["web-2"])
    finally:
        stage.node(1).start(CONTROLLER)
        stage.node(1).wait_ready()
    wait(lambda: names(ask(stage.place("ask-1"), "tcp", service.v4, count=10)) == {"web-2"})
    stage.source.delete("missed")


def test_pod_is_made_and_removed_without_the_cni_server(directory_stage: Stage) -> None:
    """While the warm server is away, the executable does the same by itself."""
    node = directory_stage.node(1)
    node.kill(CNI_SERVER)
    try:
        pod = node.add_pod("one-shot")
        assert names(ask(directory_stage.place("ask-2"), "tcp", pod.address.v4, 8080)) == {"one-shot"}
        node.remove_pod("one-shot")
    finally:
        node.start(CNI_SERVER)
        node.wait_ready()
