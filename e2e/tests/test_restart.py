# SPDX-License-Identifier: Apache-2.0
"""Our daemons killed and started again under load: the data plane does not notice."""

import json
import time

import pytest

from e2e.lab import addresses
from e2e.lab.node import CNI_SERVER, CONTROLLER
from e2e.lab.runtime import tool
from e2e.tests.stage import PORT, WEB, Stage, ask, names, wait

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

RATE, LASTING, SECONDS = 1000, 20, 10


def test_daemons_killed_and_restarted_under_load_lose_nothing(directory_stage: Stage) -> None:
    """Of 1,000 new connections a second and 20 lasting ones, none is refused or reset while both daemons die twice."""
    stage = directory_stage
    flags = (WEB.v4, str(PORT), "--rate", str(RATE), "--lasting", str(LASTING), "--seconds", str(SECONDS))
    load = stage.pod("ask-1").space.start(*tool("load", *flags))
    assert load.stdout
    assert load.stdout.readline() == "started\n"
    for _ in range(2):
        time.sleep(1)
        _kill_everything(stage)
        time.sleep(1)
        _start_everything(stage)
    output, complaint = load.communicate(timeout=60)
    report = json.loads(output)
    print(report)
    # A busy machine asks less often than it was told to; that it asked all the while is what counts.
    assert report["asked"] >= 0.5 * RATE * SECONDS, complaint
    assert report["failed"] == {}
    assert report["lasting_failed"] == {}
    assert report["by_name"].keys() == {"web-1", "web-2"}


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


def _kill_everything(stage: Stage) -> None:
    for node in stage.lab.nodes:
        node.kill(CONTROLLER)
        node.kill(CNI_SERVER)


def _start_everything(stage: Stage) -> None:
    for node in stage.lab.nodes:
        node.start(CONTROLLER)
        node.start(CNI_SERVER)
    for node in stage.lab.nodes:
        node.wait_ready()
