# SPDX-License-Identifier: Apache-2.0
"""healthCheckNodePorts: what is counted, and what is answered on loopback."""

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from controller import healthports
from controller.healthports import ORIGIN, HealthPorts
from controller.model import Key
from controller.services import HealthPort, Rules, compile_service
from controller.source import Event, Problems
from controller.tests.objects import JSON, decoded_service, decoded_slice, endpoint, endpoint_slice, service

WEB, MAIL = ("shop", "web"), ("shop", "mail")
HOSTS = {4: "127.0.0.1", 6: "::1"}
A, B, C = "203.0.113.1", "203.0.113.2", "203.0.113.3"
LOCAL = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30999}


def _counted(manifest: JSON, *slices: JSON) -> HealthPort | None:
    return compile_service(decoded_service(manifest), [decoded_slice(one) for one in slices], Rules("own")).health


def _here(address: str, node: str = "own", **conditions: bool) -> JSON:
    return {**endpoint(address, **conditions), "nodeName": node}


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([], 0, id="no endpoint"),
        pytest.param([_here(A), _here(B, "other"), endpoint(C)], 1, id="of three one is here"),
        pytest.param([_here(A), _here(B, ready=False)], 1, id="one is not ready"),
        pytest.param([_here(A, ready=False, serving=True, terminating=True)], 0, id="terminating alone, though served"),
        pytest.param([_here(A), _here(A)], 1, id="one twice"),
    ],
)
def test_ready_endpoints_of_this_node_are_counted(endpoints: list[JSON], expected: int) -> None:
    """Each once, whichever of its ports the Service has."""
    ports = [{"name": "http", "port": 8080}, {"name": "https", "port": 8443}, {"name": "metrics", "port": 9090}]
    assert _counted(service(**LOCAL), endpoint_slice("s1", endpoints, ports=ports)) == HealthPort(30999, {4: expected})


def test_endpoints_of_each_family_are_counted_apart() -> None:
    """As the two halves of kube-proxy do; a family that the Service lacks has no count."""
    slices = (
        endpoint_slice("s1", [_here(A), _here(B)]),
        endpoint_slice("s2", [_here("2001:db8:b::1")], addressType="IPv6"),
    )
    both = service(ips=["198.51.100.1", "2001:db8:5::1"], **LOCAL)
    assert _counted(both, *slices) == HealthPort(30999, {4: 2, 6: 1})
    assert _counted(service(ips=["2001:db8:5::1"], **LOCAL), *slices) == HealthPort(30999, {6: 1})


@pytest.mark.parametrize(
    "fields",
    [{"type": "NodePort"}, {"type": "ClusterIP"}, {"externalTrafficPolicy": "Cluster"}, {"healthCheckNodePort": 0}],
)
def test_service_without_health_port_has_none(fields: JSON) -> None:
    """Whatever a stale field says."""
    assert _counted(service(**{**LOCAL, **fields})) is None


class Rig:
    """Health ports, and what they posted."""

    def __init__(self) -> None:
        self.healthy = True
        self.posted: list[Event] = []
        self.ports = HealthPorts(lambda: self.healthy, self._post)

    def tell(self, service: Key, port: HealthPort | None) -> None:
        self.ports.note(service, port)
        self.ports.apply()

    def messages(self) -> list[str]:
        if not self.posted:
            return []
        last = self.posted[-1]
        assert isinstance(last, Problems)
        assert last.origin == ORIGIN
        return [f"{one.subject}: {one.message}" for one in last.problems]

    def _post(self, events: Sequence[Event]) -> None:
        self.posted += events


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    try:
        yield made
    finally:
        made.ports.close()


def _free_port() -> int:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as one:
        port: int = one.getsockname()[1]
        return port


def _ask(port: int, family: int = 4, method: str = "GET") -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(HOSTS[family], port, timeout=5)
    try:
        connection.request(method, "/healthz?x=1")
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read().decode()
    finally:
        connection.close()


def _status(port: int, family: int = 4) -> int:
    """0: nobody is there."""
    try:
        return _ask(port, family)[0]
    except ConnectionError:
        return 0


def _eventually(reached: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 10
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("local", "healthy", "status"), [(2, True, 200), (0, True, 503), (2, False, 503)])
def test_answer_is_that_of_kube_proxy(rig: Rig, local: int, healthy: bool, status: int) -> None:
    """Status, headers and body."""
    port = _free_port()
    rig.healthy = healthy
    rig.tell(WEB, HealthPort(port, {4: local}))
    _eventually(lambda: _status(port))
    found, headers, body = _ask(port)
    assert found == status
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == str(local)
    assert body == (
        '{\n\t"service": {\n\t\t"namespace": "shop",\n\t\t"name": "web"\n\t},\n'
        f'\t"localEndpoints": {local},\n\t"serviceProxyHealthy": {json.dumps(healthy)}\n}}'
    )
    assert _ask(port, method="HEAD")[2] == ""


def test_families_are_answered_apart(rig: Rig) -> None:
    """Each by its own endpoints; nobody is there for a family that the Service lacks."""
    port, other = _free_port(), _free_port()
    rig.tell(WEB, HealthPort(port, {4: 1, 6: 0}))
    rig.tell(MAIL, HealthPort(other, {6: 1}))
    _eventually(lambda: _status(other, 6))
    assert (_status(port, 4), _status(port, 6), _status(other, 4), _status(other, 6)) == (200, 503, 0, 200)


def test_port_follows_its_service(rig: Rig) -> None:
    """Another count, another port, none."""
    port, other = _free_port(), _free_port()
    rig.tell(WEB, HealthPort(port, {4: 1}))
    _eventually(lambda: _status(port) == 200)
    rig.tell(WEB, HealthPort(port, {4: 0}))
    _eventually(lambda: _status(port) == 503)
    rig.tell(WEB, HealthPort(other, {4: 1}))
    _eventually(lambda: (_status(port), _status(other)) == (0, 200))
    rig.tell(WEB, None)
    _eventually(lambda: _status(other) == 0)
    assert not rig.posted


def test_port_may_go_from_one_service_to_another_at_once(rig: Rig) -> None:
    """In one change, whichever of them is looked at first."""
    port = _free_port()
    rig.tell(WEB, HealthPort(port, {4: 1}))
    _eventually(lambda: _status(port))
    rig.ports.note(MAIL, HealthPort(port, {4: 0}))
    rig.ports.note(WEB, None)
    rig.ports.apply()
    _eventually(lambda: _status(port) == 503)
    assert not rig.posted


def test_port_that_is_taken_is_named_and_had_later(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """By somebody else's process; another Service's is served meanwhile."""
    monkeypatch.setattr(healthports, "RETRY_S", 0.05)
    other = _free_port()
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = taken.getsockname()[1]
        rig.ports.note(WEB, HealthPort(port, {4: 1}))
        rig.ports.note(MAIL, HealthPort(other, {4: 1}))
        rig.ports.apply()
        _eventually(lambda: _status(other) == 200)
        _eventually(rig.messages)
        assert rig.messages() == [f"Service shop/web: healthCheckNodePort {port}/IPv4: Address already in use"]
        time.sleep(0.2)
        assert len(rig.posted) == 1, "what has not changed was told again"
    _eventually(lambda: _status(port) == 200)
    _eventually(lambda: not rig.messages())


def test_port_of_two_services_is_named_until_one_goes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The API server allocates each once, a directory of manifests does not."""
    monkeypatch.setattr(healthports, "RETRY_S", 0.05)
    port = _free_port()
    rig.tell(WEB, HealthPort(port, {4: 1}))
    rig.tell(MAIL, HealthPort(port, {4: 0}))
    _eventually(rig.messages)
    assert rig.messages()[0].startswith("Service shop/mail:")
    assert _status(port) == 200
    rig.tell(WEB, None)
    _eventually(lambda: _status(port) == 503)
    _eventually(lambda: not rig.messages())


def test_connection_that_says_nothing_is_closed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those beyond the most that may be open are closed at once."""
    monkeypatch.setattr(healthports, "IDLE_S", 0.5)
    monkeypatch.setattr(healthports, "CONNECTIONS", 1)
    port = _free_port()
    rig.tell(WEB, HealthPort(port, {4: 1}))
    _eventually(lambda: _status(port))
    with socket.create_connection((HOSTS[4], port), timeout=5) as idle:
        began = time.monotonic()
        with socket.create_connection((HOSTS[4], port), timeout=5) as beyond:
            assert beyond.recv(1) == b""
            assert time.monotonic() - began < 0.4
        assert idle.recv(1) == b""
    _eventually(lambda: _status(port) == 200)
