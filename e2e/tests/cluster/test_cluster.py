# SPDX-License-Identifier: Apache-2.0
"""A cluster without kube-proxy as its users see it: pods, Services, names, NodePorts. By kubectl alone."""

import json
from ipaddress import ip_address

import pytest

from e2e.tests.cluster.play import PLACES, PORT, REFUSED, Play, ask
from e2e.tests.stage import FAMILIES, PROTOCOLS

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

PODS = 20
QUESTIONS = 40


@pytest.fixture
def web(play: Play) -> Play:
    """The cast, with twenty servers."""
    play.scale(PODS)
    return play


def test_twenty_pods_run_on_every_node_with_addresses_of_their_own(web: Play) -> None:
    """Kubelets started them through the executable: each is ready, none shares an address, no node was left out."""
    pods = web.web()
    nodes = [node for node in web.get("nodes", namespaced=False)["items"] if not node["spec"].get("taints")]
    addresses = [item["ip"] for pod in pods for item in pod["status"]["podIPs"]]
    assert len(pods) == PODS
    assert len(set(addresses)) == PODS * len(pods[0]["status"]["podIPs"])
    assert {pod["spec"]["nodeName"] for pod in pods} == {node["metadata"]["name"] for node in nodes}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_cluster_ip_asked_from_every_node_is_answered_by_many(
    web: Play, protocol: str, family: str, place: str
) -> None:
    """From pods and host processes of every node, no question is lost, and the answers come from all over."""
    address = _service_address(web, family)
    servers = {pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in web.web()}
    for where in web.places(place):
        answers = ask(web.inside(where), protocol, address, PORT, count=QUESTIONS)
        assert len(answers) == QUESTIONS
        assert set(answers) <= set(servers), where
        assert len(set(answers)) >= PODS // 3
        assert len({servers[answer] for answer in answers}) > 1 or len(set(servers.values())) == 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_name_of_a_service_is_found_from_pods(web: Play, transport: str, family: str) -> None:
    """The cluster's name server is asked at its own Service."""
    address = _service_address(web, family)
    record = "AAAA" if family == "IPv6" else "A"
    name = f"web.{web.namespace}.svc.cluster.local"
    for where in web.places("ask"):
        found = web.inside(where)(["dig", "+short", "+tries=1", transport, record, name]).split()
        assert found == [address], where
        (answer,) = ask(web.inside(where), "tcp", "web", PORT)
        assert answer in {pod["metadata"]["name"] for pod in web.web()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_node_port_of_every_node_is_answered_and_the_pod_sees_the_client(web: Play, protocol: str, family: str) -> None:
    """A client that is no node reaches pods of all nodes by any node, and is known to them by its own address."""
    _service_address(web, family)
    for node in web.node_addresses(family):
        own = json.loads(web.outside(["ip", "-json", "route", "get", node]))[0]["prefsrc"]
        answers = ask(web.outside, protocol, node, web.node_port(protocol), "clientip", count=QUESTIONS)
        assert {ip_address(answer.rpartition(":")[0].strip("[]")) for answer in answers} == {ip_address(own)}, node
        assert len(answers) == QUESTIONS


def test_pod_asks_the_api_server_by_its_service(web: Play) -> None:
    """`kubernetes.default` answers pods of every node, wherever the API server is."""
    for where in web.places("ask"):
        told = web.inside(where)(["curl", "-s", "-k", "-m", "5", "https://kubernetes.default/version"])
        assert "gitVersion" in told, where


def test_deployment_scaled_is_followed(web: Play) -> None:
    """After 20, 2, 20 and 0 pods, those that are there answer, and without any the client hears a refusal."""
    (where, *_), address = web.places("ask"), web.get("service", "web")["spec"]["clusterIPs"][0]
    for replicas in (2, PODS):
        web.scale(replicas)
        answers = ask(web.inside(where), "tcp", address, PORT, count=QUESTIONS)
        assert set(answers) <= {pod["metadata"]["name"] for pod in web.web()}
    web.scale(0)
    assert ask(web.inside(where), "tcp", address, PORT) == [REFUSED]


def _service_address(play: Play, family: str) -> str:
    address = play.service_address(family)
    if not address:
        pytest.skip(f"the cluster has no {family}")
    return address
