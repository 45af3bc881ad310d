# SPDX-License-Identifier: Apache-2.0
"""Which endpoints a Service port has: the rules of the Service API, as tables."""

from typing import Any, NamedTuple

import pytest

from bpf.abi import Backend, BackendFlag, FrontendFlag, FrontendKey, SourceKey
from bpf.address import packed
from controller.desired import Pool, PoolKey
from controller.services import Compiled, Rules, ServiceTracker, compile_service
from controller.tests.objects import (
    JSON,
    all_compiled,
    changed,
    decoded_service,
    decoded_slice,
    endpoint,
    endpoint_slice,
    gone,
    is_port,
    service,
    shown_backend,
    shown_frontend,
)

RULES = Rules("own")
A, B, C = "203.0.113.1", "203.0.113.2", "203.0.113.3"


def _compiled(manifest: JSON, *slices: JSON) -> dict[str, list[str]]:
    """Frontend -> backends, as text."""
    compiled = compile_service(decoded_service(manifest), [decoded_slice(one) for one in slices], RULES)
    return {
        shown_frontend(frontend): [shown_backend(backend) for backend in pool.backends]
        for pool in compiled.pools.values()
        for frontend, _ in pool.frontends
        if is_port(frontend)
    }


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([endpoint(A), endpoint(B)], [A, B], id="no conditions at all mean ready"),
        pytest.param([endpoint(A, ready=False), endpoint(B, ready=True)], [B], id="an unready one is left out"),
        pytest.param([endpoint(A, ready=False)], [], id="unready alone is nothing, as serving follows ready"),
        pytest.param(
            [endpoint(A, ready=False, serving=True, terminating=True)], [A], id="none is ready: serving and terminating"
        ),
        pytest.param(
            [endpoint(A, ready=False, serving=True, terminating=True), endpoint(B)], [B], id="one ready: no terminating"
        ),
        pytest.param(
            [endpoint(A, ready=False, serving=True)], [], id="serving without terminating is not the fallback"
        ),
        pytest.param(
            [endpoint(A, ready=False, serving=False, terminating=True)], [], id="terminating that no longer serves"
        ),
        pytest.param(
            [endpoint(A, ready=True, terminating=True)], [A], id="ready while terminating: unready ones are published"
        ),
        pytest.param([{"addresses": [A, B]}], [A], id="only the first address counts"),
        pytest.param([{"addresses": []}], [], id="an endpoint without address is none"),
        pytest.param([endpoint("2001:db8::1"), endpoint(B)], [B], id="an address of the wrong family is left out"),
        pytest.param([endpoint("nonsense"), endpoint(B)], [B], id="a malformed address is left out"),
    ],
)
def test_endpoints_by_condition_select_as_the_api_says(endpoints: list[JSON], expected: list[str]) -> None:
    """Ready endpoints; where there are none, those serving and terminating."""
    found = _compiled(service(), endpoint_slice("s1", endpoints))
    assert found == {"198.51.100.1:80/6": [f"{address}:8080" for address in expected]}


NODE_PORT = [{"name": "http", "port": 80, "nodePort": 30080}]
INGRESS = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}]}}
E, L, D, M = FrontendFlag.EXTERNAL, FrontendFlag.LOCAL, FrontendFlag.DIRECT, FrontendFlag.MAGLEV


def _external(manifest: JSON, way_back: str = "entry", balancing: str = "random") -> dict[str, int]:
    """External frontend -> flags."""
    rules = Rules("own", way_back=way_back, balancing=balancing)
    compiled = compile_service(decoded_service(manifest), [], rules)
    assert not compiled.problems
    return {
        shown_frontend(frontend): flags
        for pool in compiled.pools.values()
        for frontend, flags in pool.frontends
        if not flags & FrontendFlag.CLUSTER_IP and is_port(frontend)
    }


@pytest.mark.parametrize(
    ("fields", "status", "expected"),
    [
        pytest.param({}, {}, {}, id="a cluster IP's Service"),
        pytest.param({"ports": NODE_PORT}, {}, {}, id="a stale nodePort of a cluster IP's Service"),
        pytest.param({"type": "NodePort", "ports": NODE_PORT}, {}, {"0.0.0.0:30080/6": E}, id="NodePort"),
        pytest.param({"type": "LoadBalancer", "ports": NODE_PORT}, {}, {"0.0.0.0:30080/6": E}, id="no address yet"),
        pytest.param(
            {"type": "LoadBalancer", "ports": NODE_PORT},
            INGRESS,
            {"0.0.0.0:30080/6": E, "192.0.2.80:80/6": E},
            id="load balancer with NodePort",
        ),
        pytest.param(
            {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": False},
            INGRESS,
            {"192.0.2.80:80/6": E},
            id="load balancer without NodePort",
        ),
        pytest.param({}, INGRESS, {}, id="a stale status of a cluster IP's Service"),
        pytest.param(
            {"type": "LoadBalancer"},
            {"loadBalancer": {"ingress": [{"ip": "192.0.2.80", "ipMode": "VIP"}]}},
            {"192.0.2.80:80/6": E},
            id="ipMode VIP",
        ),
        pytest.param(
            {"type": "LoadBalancer"},
            {"loadBalancer": {"ingress": [{"ip": "192.0.2.80", "ipMode": "Proxy"}, {"hostname": "lb.example.org"}]}},
            {},
            id="a proxy and a name",
        ),
        pytest.param(
            {"externalIPs": ["192.0.2.90", "192.0.2.90", "198.51.100.1"]},
            {},
            {"192.0.2.90:80/6": E},
            id="external IPs, one twice, one the cluster IP itself",
        ),
        pytest.param({"externalIPs": ["2001:db8::90"]}, {}, {}, id="an external IP of a family that it has not"),
        pytest.param(
            {"type": "NodePort", "ports": NODE_PORT, "externalTrafficPolicy": "Local"},
            {},
            {"0.0.0.0:30080/6": E | L},
            id="policy Local",
        ),
        pytest.param(
            {"type": "LoadBalancer", "loadBalancerSourceRanges": [" 0.0.0.0/0 "]},
            INGRESS,
            {"192.0.2.80:80/6": E},
            id="a range of everything",
        ),
    ],
)
def test_external_frontends_by_type_and_status(fields: JSON, status: JSON, expected: dict[str, int]) -> None:
    """Exactly those that the Service has now."""
    manifest = service(**fields) | {"status": status}
    assert _external(manifest) == expected
    assert _external(manifest, "direct") == {frontend: flags | D for frontend, flags in expected.items()}
    agreed = {
        frontend: flags if flags & L or frontend.startswith("0.0.0.0") else flags | M
        for frontend, flags in expected.items()
    }
    assert _external(manifest, balancing="maglev") == agreed


@pytest.mark.parametrize("echo", [True, False])
def test_load_balancer_addresses_answer_echo_where_they_are_to(echo: bool) -> None:
    """Each once, however many ports the Service has, in the families that it has, and whoever asks; neither external
    IPs nor what is the cluster IP as well."""
    given = ("192.0.2.80", "192.0.2.81", "2001:db8::80", "198.51.100.1")
    ingress = {"loadBalancer": {"ingress": [{"ip": one} for one in given]}}
    ports = [{"name": "http", "port": 80}, {"name": "https", "port": 443}]
    manifest = service(type="LoadBalancer", ports=ports, externalIPs=["192.0.2.90"]) | {"status": ingress}
    compiled = compile_service(decoded_service(manifest), [], RULES._replace(echo=echo))
    found = {key: pool.frontends for key, pool in compiled.pools.items() if not key.port and key.protocol}
    answering = tuple((FrontendKey(packed(one), 0, 1).pack(), int(E)) for one in ("192.0.2.80", "192.0.2.81"))
    assert found == ({PoolKey("shop", "web", 0, 1, 4): answering} if echo else {})


@pytest.mark.parametrize("setting", ["entry", "direct"])
@pytest.mark.parametrize("asked", ["entry", "direct"])
def test_service_says_itself_how_its_answers_return(asked: str, setting: str) -> None:
    """Whatever this node's setting is."""
    manifest = service(type="NodePort", ports=NODE_PORT)
    manifest["metadata"]["annotations"] = {"calico-ebpf.io/return": asked, "other": "annotation"}
    assert _external(manifest, setting) == {"0.0.0.0:30080/6": E | D if asked == "direct" else E}


@pytest.mark.parametrize("setting", ["random", "maglev"])
@pytest.mark.parametrize("asked", ["random", "maglev"])
def test_service_says_itself_how_its_clients_get_a_backend(asked: str, setting: str) -> None:
    """Whatever this node's setting is."""
    manifest = service(externalIPs=["192.0.2.90"])
    manifest["metadata"]["annotations"] = {"calico-ebpf.io/balancing": asked}
    assert _external(manifest, balancing=setting) == {"192.0.2.90:80/6": E | M if asked == "maglev" else E}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        pytest.param({"externalIPs": ["192.0.2.90"]}, False, id="external IP"),
        pytest.param({"type": "LoadBalancer"}, False, id="load balancer whose address is to come"),
        pytest.param({"type": "NodePort", "ports": NODE_PORT}, True, id="NodePort"),
        pytest.param({"externalIPs": ["192.0.2.90"], "externalTrafficPolicy": "Local"}, True, id="policy Local"),
    ],
)
def test_table_that_is_asked_for_in_vain_is_told(fields: JSON, told: bool) -> None:
    """Of the Service's own word; this node's setting is for those that can have one."""
    manifest = service(**fields)
    assert not compile_service(decoded_service(manifest), [], Rules("own", balancing="maglev")).problems
    manifest["metadata"]["annotations"] = {"calico-ebpf.io/balancing": "maglev"}
    problems = compile_service(decoded_service(manifest), [], RULES).problems
    assert [problem.message.split(":")[0] for problem in problems] == (
        ["annotation calico-ebpf.io/balancing"] if told else []
    )


@pytest.mark.parametrize(
    ("fields", "backends", "size"),
    [
        pytest.param({"externalIPs": ["192.0.2.90"]}, 2, 3, id="external IP"),
        pytest.param({"externalIPs": ["192.0.2.90"]}, 3, 3, id="as many backends as places"),
        pytest.param({"externalIPs": ["192.0.2.90"]}, 4, 0, id="more backends than places"),
        pytest.param({}, 2, 0, id="a cluster IP alone"),
        pytest.param({"type": "NodePort", "ports": NODE_PORT}, 2, 0, id="a NodePort, which is the node's own"),
        pytest.param({"externalIPs": ["192.0.2.90"], "externalTrafficPolicy": "Local"}, 2, 0, id="policy Local"),
    ],
)
def test_table_is_for_clients_outside_of_all_nodes_backends(fields: JSON, backends: int, size: int) -> None:
    """Of the ports, never of the cluster IP as such; where it cannot be, that is said."""
    endpoints = [endpoint(f"203.0.113.{number}") for number in range(1, backends + 1)]
    rules = Rules("own", balancing="maglev", maglev_size=3)
    compiled = compile_service(
        decoded_service(service(**fields)), [decoded_slice(endpoint_slice("s1", endpoints))], rules
    )
    assert {key.port: pool.maglev_size for key, pool in compiled.pools.items()} == {0: 0, 80: size}
    told = "4 backends are more than maglev_table_size has places: they are chosen at random"
    assert [problem.message for problem in compiled.problems] == ([told] if backends == 4 else [])


def test_answers_from_cluster_ips_return_by_the_entry_node() -> None:
    """Those to a client outside that was routed there, also where other addresses are answered directly."""
    compiled = compile_service(decoded_service(service()), [], Rules("own", way_back="direct"))
    assert {flags for pool in compiled.pools.values() for _, flags in pool.frontends} == {FrontendFlag.CLUSTER_IP}


def test_node_port_of_both_families_and_two_protocols() -> None:
    """One number may serve TCP and UDP; each family has its own unspecified address."""
    ports = [{"name": name, "port": 53, "nodePort": 30053, "protocol": name} for name in ("TCP", "UDP")]
    manifest = service(ips=["198.51.100.1", "2001:db8:5::1"], ports=ports, type="NodePort")
    assert set(_external(manifest)) == {"0.0.0.0:30053/6", "0.0.0.0:30053/17", ":::30053/6", ":::30053/17"}


def test_cluster_ips_and_load_balancer_addresses_stand_by_themselves() -> None:
    """Each once, whatever the Service's ports; without backends, and, of the others, load balancers' alone."""
    ports = [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 443}, {"name": "c", "port": 99999}]
    ips = ["198.51.100.1", "2001:db8:5::1"]
    manifest = service(ips=ips, ports=ports, type="LoadBalancer", externalIPs=["192.0.2.90"]) | {"status": INGRESS}
    compiled = compile_service(decoded_service(manifest), [decoded_slice(endpoint_slice("s", [endpoint(A)]))], RULES)
    alone = {
        shown_frontend(frontend): (flags, pool.backends)
        for pool in compiled.pools.values()
        for frontend, flags in pool.frontends
        if not is_port(frontend)
    }
    balancer = {"192.0.2.80:0/0": (E, ()), "192.0.2.80:0/1": (E, ())}
    assert alone == {f"{ip}:0/0": (FrontendFlag.CLUSTER_IP, ()) for ip in ips} | balancer


S, H = FrontendFlag.SOURCES, FrontendFlag.HOST_ALLOWED
OWN = (packed("192.0.2.1"), packed("192.0.2.77"), packed("2001:db8::1"))


@pytest.mark.parametrize(
    ("ranges", "v4", "v6"),
    [
        pytest.param(["203.0.113.0/24"], E | S, E, id="one family: the other is for everybody"),
        pytest.param(["192.0.2.0/26"], E | S | H, E, id="this node's first address"),
        pytest.param(["192.0.2.64/26"], E | S, E, id="another one of this node"),
        pytest.param(["203.0.113.0/24", "2001:db8::/64"], E | S, E | S | H, id="each family by its own"),
        pytest.param(["203.0.113.0/24", "0.0.0.0/0"], E, E, id="everything besides"),
        pytest.param(["nonsense"], E | S, E | S, id="nothing that makes sense"),
    ],
)
def test_source_ranges_are_of_load_balancer_addresses_alone(
    ranges: list[str], v4: FrontendFlag, v6: FrontendFlag
) -> None:
    """Neither of the NodePort nor of external IPs, but where one of these is a load balancer's address as well."""
    ingress = {"loadBalancer": {"ingress": [{"ip": "192.0.2.80"}, {"ip": "2001:db8::80"}]}}
    manifest = service(
        ips=["198.51.100.1", "2001:db8:5::1"],
        ports=NODE_PORT,
        type="LoadBalancer",
        externalIPs=["192.0.2.80", "192.0.2.90"],
        loadBalancerSourceRanges=ranges,
    )
    compiled = compile_service(decoded_service(manifest | {"status": ingress}), [], RULES._replace(addresses=OWN))
    assert {
        shown_frontend(frontend): flags
        for pool in compiled.pools.values()
        for frontend, flags in pool.frontends
        if flags != FrontendFlag.CLUSTER_IP
    } == {
        "192.0.2.80:80/6": v4,
        "192.0.2.80:0/0": E,
        "192.0.2.80:0/1": E,
        "2001:db8::80:80/6": v6,
        "2001:db8::80:0/0": E,
        "2001:db8::80:0/58": E,
        "192.0.2.90:80/6": E,
        "0.0.0.0:30080/6": E,
        ":::30080/6": E,
    }
    assert bool(compiled.problems) == ("nonsense" in ranges)


def test_clients_of_a_load_balancer_address_are_those_of_its_family() -> None:
    """Also in the pool that clients outside have to themselves."""
    fields = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "loadBalancerSourceRanges": ["192.0.2.64/26"]}
    manifest = decoded_service(service(**fields) | {"status": INGRESS})
    slices = [decoded_slice(endpoint_slice("s", [_on("own", A, **DYING), _on("other", B)]))]
    pools = compile_service(manifest, slices, RULES).pools.values()
    found = {shown_frontend(one): pool.source_keys(one, flags) for pool in pools for one, flags in pool.frontends}
    key = SourceKey(160 + 96 + 26, FrontendKey(packed("192.0.2.80"), 80, 6), packed("192.0.2.64"))
    assert {frontend: keys for frontend, keys in found.items() if keys} == {"192.0.2.80:80/6": {key.pack()}}


def test_node_that_gets_an_address_has_restricted_services_compiled_again() -> None:
    """And no others; without one, what was known stays."""
    tracker = ServiceTracker(RULES)
    restricted = service("lb", type="LoadBalancer", loadBalancerSourceRanges=["192.0.2.0/24"]) | {"status": INGRESS}
    for one in (service(), restricted):
        tracker.apply(changed(decoded_service(one)))
    all_compiled(tracker)
    tracker.set_addresses(OWN)
    ((key, compiled),) = all_compiled(tracker)
    assert key == ("shop", "lb")
    assert E | S | H in {flags for pool in compiled.pools.values() for _, flags in pool.frontends}
    for addresses in (OWN, ()):
        tracker.set_addresses(addresses)
        assert not tracker.dirty


def _lasting(seconds: int) -> JSON:
    return {"clientIP": {"timeoutSeconds": seconds}}


def _on(node: str | None, address: str, **conditions: bool) -> JSON:
    return {**endpoint(address, **conditions), **({"nodeName": node} if node else {})}


DYING = {"ready": False, "serving": True, "terminating": True}


class Sets(NamedTuple):
    """Addresses of a Service's Cluster set and of its Local set."""

    cluster: list[str]
    local: list[str]


@pytest.mark.parametrize(
    ("endpoints", "expected"),
    [
        pytest.param([], Sets([], []), id="none at all"),
        pytest.param([_on("own", A), _on("other", B)], Sets([A, B], [A]), id="ready here and there"),
        pytest.param([_on(None, A)], Sets([A], []), id="of no node: not ours"),
        pytest.param([_on("other", B)], Sets([B], []), id="none here"),
        pytest.param([_on("own", A, **DYING), _on("other", B)], Sets([B], [A]), id="the last here is going"),
        pytest.param([_on("own", A), _on("own", C, **DYING)], Sets([A], [A]), id="one here is ready, one going"),
        pytest.param([_on("own", A), _on("other", B, **DYING)], Sets([A], [A]), id="the other node's is going"),
        pytest.param(
            [_on("own", A, **DYING), _on("other", B, **DYING)], Sets([A, B], [A]), id="all are going, everywhere"
        ),
        pytest.param([_on("other", B, **DYING)], Sets([B], []), id="the last of all is going, elsewhere"),
        pytest.param([_on("own", A, ready=False), _on("other", B)], Sets([B], []), id="unready here"),
        pytest.param(
            [_on("own", A, ready=False, serving=False, terminating=True), _on("other", B)],
            Sets([B], []),
            id="going here, and no longer serving",
        ),
    ],
)
@pytest.mark.parametrize("policy", ["internalTrafficPolicy", "externalTrafficPolicy"])
def test_cluster_and_local_set_are_worked_out_apart(policy: str, endpoints: list[JSON], expected: Sets) -> None:
    """Under either policy Local: in each set the ready ones, and where it has none, those serving and terminating."""
    manifest = service(type="NodePort", ports=NODE_PORT, **{policy: "Local"})
    compiled = compile_service(decoded_service(manifest), [decoded_slice(endpoint_slice("s1", endpoints))], RULES)
    (pool,) = _of_ports(compiled)
    cluster, local = (
        sorted(shown_backend(one).partition(":")[0] for one in part)
        for part in (pool.local + pool.others, pool.apart + pool.local)
    )
    assert Sets(cluster, local) == expected
    assert {Backend.unpack(one).flags for one in pool.apart} <= {BackendFlag.APART}
    assert {Backend.unpack(one).flags for one in pool.local + pool.others} <= {0}


def test_local_set_that_no_policy_asks_for_has_no_terminating_endpoint() -> None:
    """It serves what other nodes hand over for the Cluster set."""
    endpoints = [_on("own", A, **DYING), _on("other", B)]
    for policies in ({}, {"internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster"}):
        assert _pool(endpoints, type="NodePort", ports=NODE_PORT, **policies) == ((), (), (B,))
    assert _pool(endpoints, externalTrafficPolicy="Local") == ((), (), (B,)), "met from inside alone"


def _of_ports(compiled: Compiled) -> list[Pool]:
    """The pools but for those of cluster IPs as such."""
    return [pool for key, pool in compiled.pools.items() if key.port]


def _pool(endpoints: list[JSON], **fields: Any) -> tuple[tuple[str, ...], ...]:
    slices = [decoded_slice(endpoint_slice("s1", endpoints))]
    (pool,) = _of_ports(compile_service(decoded_service(service(**fields)), slices, RULES))
    parts = (pool.apart, pool.local, pool.others)
    return tuple(tuple(shown_backend(one).partition(":")[0] for one in part) for part in parts)


@pytest.mark.parametrize(
    ("internal", "external", "expected"),
    [
        pytest.param(None, None, (0, 0), id="neither is told"),
        pytest.param("Cluster", "Cluster", (0, 0), id="both Cluster"),
        pytest.param("Local", "Cluster", (L, 0), id="internal Local alone"),
        pytest.param("Cluster", "Local", (0, L), id="external Local alone"),
        pytest.param("Local", "Local", (L, L), id="both Local"),
    ],
)
def test_cluster_ips_follow_the_internal_policy_and_others_the_external_one(
    internal: str | None, external: str | None, expected: tuple[int, int]
) -> None:
    """Cluster IPs of both families; NodePorts, external IPs and load-balancer addresses."""
    policies = {"internalTrafficPolicy": internal, "externalTrafficPolicy": external}
    fields = {name: value for name, value in policies.items() if value}
    manifest = service(
        ips=["198.51.100.1", "2001:db8:5::1"],
        type="LoadBalancer",
        ports=NODE_PORT,
        externalIPs=["192.0.2.90"],
        **fields,
    )
    compiled = compile_service(decoded_service(manifest | {"status": INGRESS}), [], RULES)
    found = [flags for pool in _of_ports(compiled) for _, flags in pool.frontends]
    inside, outside = (FrontendFlag.CLUSTER_IP | expected[0], E | expected[1])
    assert sorted(found) == sorted([inside] * 2 + [outside] * 4)


@pytest.mark.parametrize(
    ("fields", "expected", "problems"),
    [
        pytest.param({}, 0, 0, id="left out"),
        pytest.param({"sessionAffinity": "None"}, 0, 0, id="None"),
        pytest.param({"sessionAffinity": "None", "sessionAffinityConfig": _lasting(60)}, 0, 0, id="None, for a minute"),
        pytest.param({"sessionAffinity": "ClientIP"}, 10800, 0, id="ClientIP, for as long as by default"),
        pytest.param(
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {}}, 10800, 0, id="a configuration of nothing"
        ),
        pytest.param(
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": _lasting(60)}, 60, 0, id="ClientIP, for a minute"
        ),
        pytest.param(
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": _lasting(0)}, 10800, 1, id="for no time at all"
        ),
        pytest.param(
            {"sessionAffinity": "ClientIP", "sessionAffinityConfig": _lasting(1 << 32)}, 10800, 1, id="for ever"
        ),
    ],
)
def test_session_affinity_is_of_all_pools(fields: JSON, expected: int, problems: int) -> None:
    """Of each port and family; a time-out that cannot be is named."""
    manifest = service(
        ips=["198.51.100.1", "2001:db8:5::1"], type="NodePort", ports=NODE_PORT, externalTrafficPolicy="Local", **fields
    )
    slices = [decoded_slice(endpoint_slice("s1", [_on("own", A, **DYING), _on("other", B)]))]
    compiled = compile_service(decoded_service(manifest), slices, RULES)
    assert [pool.affinity_s for pool in _of_ports(compiled)] == [expected] * 2
    assert len(compiled.problems) == problems


def test_endpoint_in_two_slices_counts_once_and_the_one_not_terminating_wins() -> None:
    """While an endpoint moves between slices, the copy that lags behind says nothing."""
    dying = endpoint(A, ready=False, serving=True, terminating=True)
    for first, second in ((dying, endpoint(A)), (endpoint(A), dying)):
        found = _compiled(service(), endpoint_slice("s1", [first]), endpoint_slice("s2", [second]))
        assert found == {"198.51.100.1:80/6": [f"{A}:8080"]}


def test_named_target_port_may_differ_from_slice_to_slice() -> None:
    """The number comes from the slice."""
    other = endpoint_slice("s2", [endpoint(B)], ports=[{"name": "http", "port": 9090}])
    found = _compiled(service(), endpoint_slice("s1", [endpoint(A)]), other)
    assert found == {"198.51.100.1:80/6": [f"{A}:8080", f"{B}:9090"]}


def test_same_port_number_of_two_protocols_makes_two_frontends() -> None:
    """The protocol is part of the key, in Services and slices."""
    ports = [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]
    numbers = [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "dns-tcp", "port": 5354}]
    found = _compiled(service(ports=ports), endpoint_slice("s1", [endpoint(A)], ports=numbers))
    assert found == {"198.51.100.1:53/17": [f"{A}:5353"], "198.51.100.1:53/6": [f"{A}:5354"]}


def test_slice_port_of_another_protocol_is_not_the_services() -> None:
    """A name alone does not make a match."""
    ports = [{"name": "http", "port": 8080, "protocol": "UDP"}]
    assert _compiled(service(), endpoint_slice("s1", [endpoint(A)], ports=ports)) == {"198.51.100.1:80/6": []}


def test_unnamed_port_matches_a_slices_unnamed_port() -> None:
    """A Service with one port need not name it; a slice then has an empty or no name."""
    for name in ({}, {"name": ""}, {"name": None}):
        found = _compiled(
            service(ports=[{"port": 80}]), endpoint_slice("s1", [endpoint(A)], ports=[{"port": 8080, **name}])
        )
        assert found == {"198.51.100.1:80/6": [f"{A}:8080"]}


def test_slice_without_port_numbers_adds_nothing() -> None:
    """A port of None stands for all ports, which no Service port is."""
    assert _compiled(service(), endpoint_slice("s1", [endpoint(A)], ports=[{"name": "http"}])) == {
        "198.51.100.1:80/6": []
    }


def test_dual_stack_service_has_backends_of_each_frontends_family() -> None:
    """Slices of one family never serve the other; FQDN slices serve nobody."""
    found = _compiled(
        service(ips=["198.51.100.1", "2001:db8:5::1"]),
        endpoint_slice("v4", [endpoint(A)]),
        endpoint_slice("v6", [endpoint("2001:db8:b::1")], addressType="IPv6"),
        endpoint_slice("names", [endpoint("web.example.org")], addressType="FQDN"),
    )
    assert found == {"198.51.100.1:80/6": [f"{A}:8080"], "2001:db8:5::1:80/6": ["2001:db8:b::1:8080"]}


def test_cluster_ip_alone_serves_where_cluster_ips_is_absent() -> None:
    """Hand-written manifests leave clusterIPs out."""
    manifest = service()
    del manifest["spec"]["clusterIPs"]
    assert list(_compiled(manifest)) == ["198.51.100.1:80/6"]


@pytest.mark.parametrize(
    "manifest",
    [
        pytest.param(service(ips=["None"]), id="headless"),
        pytest.param(service(ips=[]), id="without address yet"),
        pytest.param(service(type="ExternalName"), id="a mere name"),
        pytest.param(service(labels={"service.kubernetes.io/service-proxy-name": "other"}), id="another proxy's"),
    ],
)
def test_service_that_is_not_ours_makes_no_frontend(manifest: JSON) -> None:
    """And one that becomes so loses the frontends that it had."""
    tracker = ServiceTracker(RULES)
    tracker.apply(changed(decoded_service(service())))
    assert [bool(compiled.pools) for _, compiled in all_compiled(tracker)] == [True]
    tracker.apply(changed(decoded_service(manifest)))
    assert [bool(compiled.pools) for _, compiled in all_compiled(tracker)] == [False]


def test_headless_slices_are_ignored() -> None:
    """The label says that no proxy has use for them."""
    tracker = ServiceTracker(RULES)
    labelled = endpoint_slice("s1", [endpoint(A)], labels={"service.kubernetes.io/headless": ""})
    tracker.apply(changed(decoded_slice(labelled)))
    assert all_compiled(tracker) == []


def test_slice_that_changes_owner_leaves_the_old_service() -> None:
    """Both Services are compiled again, and no others."""
    tracker = ServiceTracker(RULES)
    for name, address in (("web", "198.51.100.1"), ("mail", "198.51.100.2"), ("news", "198.51.100.3")):
        tracker.apply(changed(decoded_service(service(name, [address]))))
    tracker.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(A)], "web"))))
    all_compiled(tracker)
    tracker.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(A)], "mail"))))
    found = {key[1]: sum(len(p.backends) for p in one.pools.values()) for key, one in all_compiled(tracker)}
    assert found == {"web": 0, "mail": 1}


def test_slice_before_its_service_is_kept_for_it() -> None:
    """The two kinds come from two lists, in any order."""
    tracker = ServiceTracker(RULES)
    tracker.apply(changed(decoded_slice(endpoint_slice("s1", [endpoint(A)]))))
    all_compiled(tracker)
    tracker.apply(changed(decoded_service(service())))
    ((_, compiled),) = all_compiled(tracker)
    assert sum(len(pool.backends) for pool in compiled.pools.values()) == 1


def test_deleted_slice_takes_its_endpoints_along() -> None:
    """Those of the Service's other slices stay."""
    tracker = ServiceTracker(RULES)
    tracker.apply(changed(decoded_service(service())))
    slices = [decoded_slice(endpoint_slice(name, [endpoint(ip)])) for name, ip in (("s1", A), ("s2", B))]
    for one in slices:
        tracker.apply(changed(one))
    tracker.apply(gone(slices[0]))
    ((_, compiled),) = all_compiled(tracker)
    assert [shown_backend(one) for pool in compiled.pools.values() for one in pool.backends] == [f"{B}:8080"]


def test_impossible_ports_and_addresses_are_named_and_the_rest_serves() -> None:
    """What makes no sense is reported with its object."""
    manifest = service(
        ips=["198.51.100.1", "2001:db8:5::zz"], ports=[{"name": "http", "port": 80}, {"name": "x", "port": 70000}]
    )
    compiled = compile_service(
        decoded_service(manifest),
        [decoded_slice(endpoint_slice("s1", [endpoint("203.0.113.300"), endpoint(C)]))],
        RULES,
    )
    assert sorted((problem.subject, problem.message) for problem in compiled.problems) == [
        ("EndpointSlice shop/s1", "not an IP address: '203.0.113.300'"),
        ("Service shop/web", "not an IP address: '2001:db8:5::zz'"),
        ("Service shop/web", "port 70000/TCP cannot be"),
    ]
    assert [shown_backend(one) for pool in compiled.pools.values() for one in pool.backends] == [f"{C}:8080"]
