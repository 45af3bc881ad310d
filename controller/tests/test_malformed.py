# SPDX-License-Identifier: Apache-2.0
"""Objects that make no sense, each beside good ones: named in the report, and no trouble to anybody else.

Every row comes from a directory and from the API; what admission would have refused there is given to it all the same.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from controller import follower
from controller.directory import Files
from controller.kube import KubernetesSource
from controller.model import REQUIRED
from controller.pacing import Backoff
from controller.source import Changed, Event, Problems, Synced
from controller.tests.apiserver import SERVICES, FakeApi
from controller.tests.collector import Collector
from controller.tests.objects import JSON, endpoint, endpoint_slice, service
from controller.tests.test_controller import Rig

SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
A, B = "203.0.113.1", "203.0.113.2"
NODE_PORT = [{"name": "http", "port": 80, "nodePort": 30200}]
GOOD_OBJECTS = [
    service("able", ["198.51.100.200"], NODE_PORT, type="NodePort"),
    endpoint_slice("able", [endpoint(B)], "able"),
]
GOOD_SERVED = {"198.51.100.200:80/6": [f"{B}:8080"], "0.0.0.0:30200/6": [f"{B}:8080"]}
BAD = "198.51.100.1:80/6"
HTTP = {"name": "http", "port": 80}
LOAD_BALANCER = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}


def _service(*ports: JSON, **spec: Any) -> JSON:
    """The Service bad."""
    return service("bad", spec.pop("ips", ["198.51.100.1"]), list(ports or [HTTP]), **spec)


def _annotated(name: str, value: object) -> JSON:
    manifest = _service()
    return manifest | {"metadata": manifest["metadata"] | {"annotations": {f"calico-ebpf.io/{name}": value}}}


def _slice(*endpoints: JSON, **fields: Any) -> JSON:
    """The one that bad has."""
    return endpoint_slice("bad", list(endpoints or [endpoint(A)]), "bad", **fields)


def _less(manifest: JSON, *path: str) -> JSON:
    """A copy that lacks a field."""
    made: JSON = json.loads(json.dumps(manifest))
    inner = made
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return made


def _row(name: str, broken: list[JSON], backends: list[str] | None, *problems: str) -> ParameterSet:
    """A row of the table.

    Args:
        backends: those at 198.51.100.1:80; None: bad is not served.
        problems: each is a part of one line of the report, which has no others.
    """
    return pytest.param(broken, backends, problems, id=name)


A_SERVED = [f"{A}:8080"]
MANY = [endpoint(f"203.0.{number // 250}.{number % 250 + 1}") for number in range(1000)]

ROWS = [
    # Services: fields that are missing, or of another type
    _row("no spec", [_less(_service(), "spec"), _slice()], None),
    _row("spec is null", [{**_service(), "spec": None}, _slice()], None, "Service shop/bad: Expected `object`"),
    _row("spec is a list", [{**_service(), "spec": []}, _slice()], None, "Service shop/bad: Expected `object`"),
    _row("status is a number", [{**_service(), "status": 1}, _slice()], None, "Service shop/bad: Expected `object`"),
    _row("no ports", [_less(_service(), "spec", "ports"), _slice()], None),
    _row("port without number", [_service({"name": "http"}), _slice()], None, "missing required field `port`"),
    _row("port is a text", [_service({"port": "80"}), _slice()], None, "Expected `int`, got `str`"),
    _row("annotation is a number", [_annotated("return", 1), _slice()], None, "Expected `str`, got `int`"),
    _row(
        "unknown way back",
        [_annotated("return", "Direct"), _slice()],
        A_SERVED,
        "annotation calico-ebpf.io/return: 'Direct' is neither entry nor direct: this node's setting counts",
    ),
    _row(
        "unknown balancing",
        [_annotated("balancing", "hash"), _slice()],
        A_SERVED,
        "annotation calico-ebpf.io/balancing: 'hash' is neither random nor maglev: this node's setting counts",
    ),
    _row("label is a number", [_service(labels={"app": 1}), _slice()], None, "Expected `str`, got `int`"),
    # Services: values that cannot be
    _row("port 0", [_service(HTTP, {"port": 0}), _slice()], A_SERVED, "Service shop/bad: port 0/TCP cannot be"),
    _row("port -1", [_service(HTTP, {"port": -1}), _slice()], A_SERVED, "Service shop/bad: port -1/TCP cannot be"),
    _row("port 65536", [_service(HTTP, {"port": 65536}), _slice()], A_SERVED, "port 65536/TCP cannot be"),
    _row(
        "unknown protocol", [_service(HTTP, {"port": 81, "protocol": "ICMP"}), _slice()], A_SERVED, "81/ICMP cannot be"
    ),
    _row("protocol in small letters", [_service(HTTP, {"port": 81, "protocol": "tcp"}), _slice()], A_SERVED, "81/tcp"),
    _row(
        "two ports alike",
        [_service(HTTP, {"name": "other", "port": 80}), _slice()],
        A_SERVED,
        "Service shop/bad: port 80/TCP is there twice: the first is used",
    ),
    _row(
        "NodePort that cannot be",
        [_service({**HTTP, "nodePort": 70000}, type="NodePort"), _slice()],
        A_SERVED,
        "Service shop/bad: nodePort 70000/TCP cannot be",
    ),
    _row(
        "two ports of one NodePort",
        [_service(*({"name": f"{port}", "port": port, "nodePort": 30080} for port in (80, 81)), type="NodePort")],
        [],
        "Service shop/bad: nodePort 30080/TCP is there twice: the first is used",
    ),
    _row(
        "NodePort of another Service",
        [_service({**HTTP, "nodePort": 30200}, type="NodePort", ips=["198.51.100.1"]), _slice()],
        A_SERVED,
        "Service shop/bad: nodePort 30200/TCP: of Service shop/able as well, which is used",
    ),
    _row("cluster IP is no address", [_service(ips=["198.51.100"]), _slice()], None, "not an IP address: '198.51.100'"),
    _row(
        "cluster IP is unspecified",
        [_service(ips=["0.0.0.0"]), _slice()],
        None,
        "not an address of a Service: '0.0.0.0'",
    ),
    _row(
        "external IPs",
        [_service({**HTTP, "nodePort": 0}, externalIPs=["nowhere", "::", "0.0.0.0"]), _slice()],
        A_SERVED,
        "Service shop/bad: not an IP address: 'nowhere'",
        "Service shop/bad: not an address of a Service: '::'",
        "Service shop/bad: not an address of a Service: '0.0.0.0'",
    ),
    _row(
        "address of the load balancer",
        [{**_service(**LOAD_BALANCER), "status": {"loadBalancer": {"ingress": [{"ip": "x"}]}}}, _slice()],
        A_SERVED,
        "Service shop/bad: not an IP address: 'x'",
    ),
    _row(
        "healthCheckNodePort",
        [_service(**LOAD_BALANCER, healthCheckNodePort=70000), _slice()],
        A_SERVED,
        "Service shop/bad: healthCheckNodePort 70000 cannot be",
    ),
    # EndpointSlices: fields that are missing, or of another type
    _row("no addressType", [_service(), _less(_slice(), "addressType")], [], "EndpointSlice shop/bad: Object missing"),
    _row("no owner", [_service(), _less(_slice(), "metadata", "labels")], []),
    _row("no endpoints", [_service(), {**_slice(), "endpoints": None}], []),
    _row("no ports of a slice", [_service(), {**_slice(), "ports": None}], []),
    _row(
        "endpoint without addresses", [_service(), _slice({"conditions": {}})], [], "missing required field `addresses`"
    ),
    _row(
        "endpoint with no address",
        [_service(), _slice({"addresses": []}, endpoint(A))],
        A_SERVED,
        "EndpointSlice shop/bad: an endpoint without address",
    ),
    _row(
        "ready is a text", [_service(), _slice({**endpoint(A), "conditions": {"ready": "yes"}})], [], "Expected `bool"
    ),
    _row("hint without name", [_service(), _slice({**endpoint(A), "hints": {"forZones": [{}]}})], [], "field `name`"),
    # EndpointSlices: values that cannot be
    _row("unknown addressType", [_service(), _slice(addressType="IPX")], [], "addressType 'IPX' cannot be"),
    _row("names in place of addresses", [_service(), _slice(endpoint("a.example.org"), addressType="FQDN")], []),
    _row(
        "address of the other family",
        [_service(), _slice(endpoint("2001:db8::1"), endpoint(A))],
        A_SERVED,
        "EndpointSlice shop/bad: not an IPv4 address: '2001:db8::1'",
    ),
    _row("IPv4 as IPv6", [_service(), _slice(endpoint("::ffff:203.0.113.1"), addressType="IPv6")], [], "not an IPv6"),
    _row("no address", [_service(), _slice(endpoint("x"), endpoint(A))], A_SERVED, "not an IP address: 'x'"),
    _row(
        "unknown protocol of a slice",
        [_service(), _slice(ports=[{"name": "http", "port": 8080}, {"name": "x", "port": 1, "protocol": "ICMP"}])],
        A_SERVED,
        "EndpointSlice shop/bad: port 1/ICMP cannot be",
    ),
    _row(
        "port of a slice", [_service(), _slice(ports=[{"name": "http", "port": 65536}])], [], "port 65536/TCP cannot be"
    ),
    _row("a thousand endpoints", [_service(), _slice(*MANY)], [f"{one['addresses'][0]}:8080" for one in MANY]),
    _row(
        "a thousand endpoints of the other family",
        [_service(), _slice(*MANY, addressType="IPv6")],
        [],
        "EndpointSlice shop/bad: not an IPv6 address: '203.0.0.1' and 999 more",
    ),
]


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    made = Rig(tmp_path)
    made.tell(*(Synced(kind) for kind in REQUIRED))
    return made


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    monkeypatch.setattr(follower, "Backoff", lambda _: Backoff(0.02, 0.05))
    server = FakeApi()
    try:
        yield server
    finally:
        server.close()


def _from_directory(objects: list[JSON]) -> list[Event]:
    return Files().read("all.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}).encode())


def _from_api(objects: list[JSON], api: FakeApi, directory: Path) -> list[Event]:
    for one in objects:
        api.put(SERVICES if one["kind"] == "Service" else SLICES, one)
    collector = Collector()
    source = KubernetesSource(api.kubeconfig(directory), memory=directory / "nodes.json")
    source.start(collector.post)
    try:
        collector.wait(lambda now: set(now.synced) >= set(REQUIRED))
    finally:
        source.stop()
    changes: list[Event] = [
        Changed(kind, (obj.metadata.namespace, name), obj) for (kind, name), obj in collector.objects.items()
    ]
    return [*changes, *(Problems(*one) for one in collector.problems.items())]


def _check(rig: Rig, events: list[Event], backends: list[str] | None, problems: tuple[str, ...]) -> None:
    rig.now += 10
    rig.tell(*events)
    rig.wait(10)
    found = rig.served()
    assert {frontend: found.get(frontend) for frontend in GOOD_SERVED} == GOOD_SERVED
    assert found.get(BAD) == (sorted(backends) if backends is not None else None)
    reported = rig.report()["errors"]
    assert len(reported) == len(problems), reported
    for problem in problems:
        assert any(problem in line for line in reported), reported


@pytest.mark.parametrize(("broken", "backends", "problems"), ROWS)
def test_malformed_object_of_a_directory_is_named_and_harms_nobody(
    rig: Rig, broken: list[JSON], backends: list[str] | None, problems: tuple[str, ...]
) -> None:
    """In the same file as the good ones."""
    _check(rig, _from_directory([*broken, *GOOD_OBJECTS]), backends, problems)


@pytest.mark.parametrize(("broken", "backends", "problems"), ROWS)
def test_malformed_object_of_the_api_is_named_and_harms_nobody(
    rig: Rig, api: FakeApi, tmp_path: Path, broken: list[JSON], backends: list[str] | None, problems: tuple[str, ...]
) -> None:
    """In the same list as the good ones."""
    _check(rig, _from_api([*broken, *GOOD_OBJECTS], api, tmp_path), backends, problems)
