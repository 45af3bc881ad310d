# SPDX-License-Identifier: Apache-2.0
"""Which endpoints are near enough: hints, as kube-proxy reads them, and the zone of this node."""

import pytest

from bpf.abi import FrontendFlag
from controller.services import Rules, ServiceTracker, compile_service
from controller.tests.objects import (
    JSON,
    all_compiled,
    changed,
    decoded_service,
    decoded_slice,
    endpoint,
    endpoint_slice,
    service,
    shown_backend,
)

RULES = Rules("own", zone="east")
A, B, C = "203.0.113.1", "203.0.113.2", "203.0.113.3"
NODE_PORT = [{"name": "http", "port": 80, "nodePort": 30080}]
DYING = {"ready": False, "serving": True, "terminating": True}


def _hinted(
    address: str, zones: str = "", nodes: str = "", on: str = "other", conditions: dict[str, bool] | None = None
) -> JSON:
    """An endpoint; zones and nodes are names with blanks between them."""
    hints = {
        field: [{"name": name} for name in names.split()]
        for field, names in (("forZones", zones), ("forNodes", nodes))
        if names
    }
    return {**endpoint(address, **(conditions or {})), "nodeName": on, "hints": hints}


def _sets(manifest: JSON, endpoints: list[JSON], rules: Rules = RULES) -> tuple[list[str], list[str]]:
    """The addresses that clients inside and outside get; of a frontend that is local, this node's alone."""
    compiled = compile_service(decoded_service(manifest), [decoded_slice(endpoint_slice("s1", endpoints))], rules)
    assert not compiled.problems
    inside: list[str] = []
    outside: list[str] = []
    for pool in compiled.pools.values():
        for _, flags in pool.frontends:
            used = pool.apart + pool.local if flags & FrontendFlag.LOCAL else pool.local + pool.others
            addresses = sorted(shown_backend(one).partition(":")[0] for one in used)
            (outside if flags & FrontendFlag.EXTERNAL else inside).extend(addresses)
    return inside, outside


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([_hinted(A, "east"), _hinted(B, "west")], [A], id="those for this zone"),
        pytest.param([_hinted(A, "west east"), _hinted(B, "east")], [A, B], id="an endpoint for several zones"),
        pytest.param([_hinted(A, "west"), _hinted(B, "north")], [A, B], id="none for this zone: all"),
        pytest.param([_hinted(A, "east"), _hinted(B)], [A, B], id="one without hints: all"),
        pytest.param(
            [_hinted(A, "east"), _hinted(B, conditions={"ready": False})], [A], id="unready ones need no hints"
        ),
        pytest.param(
            [_hinted(A, "east", conditions={"ready": False}), _hinted(B, "west")],
            [B],
            id="the only one for this zone is unready: all that are ready",
        ),
        pytest.param(
            [_hinted(A, "east", conditions=DYING), _hinted(B, "west", conditions=DYING)],
            [A, B],
            id="none is ready: hints say nothing of those terminating",
        ),
        pytest.param([_hinted(A, nodes="own"), _hinted(B, nodes="other")], [A], id="those for this node"),
        pytest.param([_hinted(A, nodes="own", on="other"), _hinted(B, nodes="x")], [A], id="wherever they are"),
        pytest.param(
            [_hinted(A, "east", "own"), _hinted(B, "east", "other"), _hinted(C, "west", "x")],
            [A],
            id="node before zone",
        ),
        pytest.param(
            [_hinted(A, "east", "x"), _hinted(B, "east", "y"), _hinted(C, "west", "z")],
            [A, B],
            id="none for this node: the zone",
        ),
        pytest.param(
            [_hinted(A, "east", "own"), _hinted(B, "east"), _hinted(C, "west", "x")],
            [A, B],
            id="one without hints for nodes: the zone",
        ),
        pytest.param(
            [_hinted(A, "east", "own"), _hinted(B, "", "x"), _hinted(C)], [A, B, C], id="neither kind is whole: all"
        ),
    ],
)
def test_cluster_set_by_hints(endpoints: list[JSON], expected: list[str]) -> None:
    """As hints say where every ready endpoint has them, and one names this node, or else its zone."""
    assert _sets(service(), endpoints) == (expected, [])


def test_hints_without_a_zone_of_this_node_are_ignored() -> None:
    """Those for zones, that is."""
    assert _sets(service(), [_hinted(A, "east"), _hinted(B, "west")], Rules("own")) == ([A, B], [])


@pytest.mark.parametrize("field", ["PreferClose", "PreferSameZone", "PreferSameNode", None])
def test_hints_decide_whatever_the_service_asks_for(field: str | None) -> None:
    """The distribution that a Service asks for is for the writer of slices; kube-proxy 1.36 does not read it either."""
    manifest = service(**({"trafficDistribution": field} if field else {}))
    manifest["metadata"]["annotations"] = {"service.kubernetes.io/topology-mode": "Disabled"}
    assert _sets(manifest, [_hinted(A, "east"), _hinted(B, "west")]) == ([A], [])


@pytest.mark.parametrize(
    ("endpoints", "inside", "outside"),
    [
        pytest.param([_hinted(A, "east", on="own"), _hinted(B, "west", on="own")], [A], [A, B], id="both are here"),
        pytest.param([_hinted(A, "west", on="own"), _hinted(B, "east")], [B], [A], id="hints lead away from here"),
        pytest.param([_hinted(A, "east", on="own"), _hinted(B, "east")], [A, B], [A], id="one of two is here"),
        pytest.param([_hinted(A, "east"), _hinted(B, "west")], [A], [], id="none is here"),
        pytest.param(
            [_hinted(A, "east", on="own", conditions=DYING), _hinted(B, "east")], [B], [A], id="the last here is going"
        ),
    ],
)
def test_hints_say_nothing_of_the_local_set(endpoints: list[JSON], inside: list[str], outside: list[str]) -> None:
    """With externalTrafficPolicy Local an outside client gets any ready endpoint of this node."""
    manifest = service(type="NodePort", ports=NODE_PORT, externalTrafficPolicy="Local")
    assert _sets(manifest, endpoints) == (inside, outside)


def test_zone_that_changes_compiles_services_with_hints_for_zones_again() -> None:
    """And no others; a zone that is the same compiles none."""
    tracker = ServiceTracker(Rules("own"))
    for name, hinted in (("web", _hinted(A, "east")), ("mail", _hinted(B, nodes="own")), ("news", endpoint(C))):
        tracker.apply(changed(decoded_service(service(name))))
        tracker.apply(changed(decoded_slice(endpoint_slice(name, [hinted], name))))
    all_compiled(tracker)
    for zone, expected in (("east", ["web"]), ("east", []), ("", ["web"])):
        tracker.set_zone(zone)
        assert [key[1] for key, _ in all_compiled(tracker)] == expected
