# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's metrics: names, labels and what moves them; time is the test's own."""

from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from controller.proxymetrics import ProxyMetrics
from controller.services import Rules, compile_service
from controller.tests.objects import (
    JSON,
    changed,
    decoded_service,
    decoded_slice,
    endpoint,
    endpoint_slice,
    gone,
    service,
)
from controller.web import Answer

TRIGGER = "endpoints.kubernetes.io/last-change-trigger-time"
A, B = "203.0.113.1", "203.0.113.2"
WEB = changed(decoded_service(service()))
SLICE = decoded_slice(endpoint_slice("s1", [endpoint(A)]))

# What kube-proxy 1.36 has whatever way it works.
NAMES = {
    "kubeproxy_network_programming_duration_seconds",
    "kubeproxy_proxy_healthz_total",
    "kubeproxy_proxy_livez_total",
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_total",
}


class Rig:
    """The metrics, and the clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.registry = CollectorRegistry()
        self.metrics = ProxyMetrics(self.registry, lambda: self.now)

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"kubeproxy_{name}", labels)

    def sync_value(self, name: str, **labels: str) -> float | None:
        return self.value(f"sync_proxy_rules_{name}", **labels)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def _triggered(moment: float | str, **fields: str) -> JSON:
    """A slice whose annotation says when it was triggered."""
    text = moment if isinstance(moment, str) else datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
    manifest = endpoint_slice("s1", [], **fields)
    manifest["metadata"]["annotations"] = {TRIGGER: text, "other": "ignored"}
    return manifest


def test_names_are_those_of_kube_proxy(rig: Rig) -> None:
    """All that it has in every mode, and nothing else."""
    lines = generate_latest(rig.registry).decode().splitlines()
    found = {
        line.split()[2] for line in lines if line.startswith("# TYPE") and not line.split()[2].endswith("_created")
    }
    assert found == NAMES


def test_buckets_are_those_of_kube_proxy(rig: Rig) -> None:
    """Quantiles would differ otherwise."""
    rig.metrics.changed(changed(decoded_slice(_triggered(1001.0))))
    rig.metrics.written(0.5)
    for name, count, some in (
        ("sync_proxy_rules_duration_seconds", 15, {"0.001", "0.002", "16.384"}),
        ("network_programming_duration_seconds", 80, {"0.25", "0.5", "1.0", "59.0", "60.0", "115.0", "120.0", "300.0"}),
    ):
        buckets = {
            sample.labels["le"]
            for family in rig.registry.collect()
            for sample in family.samples
            if sample.name == f"kubeproxy_{name}_bucket" and sample.labels["ip_family"] == "IPv4"
        }
        assert some < buckets
        assert len(buckets) == count + 1, "and +Inf"


def test_changes_are_counted_and_pending_until_written(rig: Rig) -> None:
    """Services once each, slices each time."""
    for change in (WEB, WEB, changed(SLICE), changed(SLICE), gone(SLICE)):
        rig.metrics.changed(change)
    kinds = ("service_changes", "endpoint_changes")
    assert [rig.sync_value(f"{kind}_total") for kind in kinds] == [2, 3]
    assert [rig.sync_value(f"{kind}_pending") for kind in kinds] == [1, 3]
    rig.metrics.written(0.01)
    assert [rig.sync_value(f"{kind}_total") for kind in kinds] == [2, 3]
    assert [rig.sync_value(f"{kind}_pending") for kind in kinds] == [0, 0]


@pytest.mark.parametrize("family", ["IPv4", "IPv6"])
def test_times_are_those_of_the_last_change_and_the_last_sync(rig: Rig, family: str) -> None:
    """What was never asked for was so at the start."""
    assert rig.sync_value("last_queued_timestamp_seconds", ip_family=family) == 1000
    rig.now = 1005.0
    rig.metrics.changed(WEB)
    rig.now = 1006.0
    rig.metrics.written(0.25)
    assert rig.sync_value("last_queued_timestamp_seconds", ip_family=family) == 1005
    assert rig.sync_value("last_timestamp_seconds", ip_family=family) == 1006
    assert rig.sync_value("duration_seconds_sum", ip_family=family) == 0.25


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        pytest.param(1001.0, 4.0, id="after the start"),
        pytest.param("1970-01-01T00:16:41.000000000Z", 4.0, id="as Go writes it"),
        pytest.param("1970-01-01T01:16:41+01:00", 4.0, id="in another zone"),
        pytest.param(999.0, None, id="before the start"),
        pytest.param("1970-01-01T00:16:41", None, id="without a zone"),
        pytest.param("yesterday", None, id="no time"),
        pytest.param("", None, id="empty"),
    ],
)
def test_network_programming_is_measured_from_the_trigger(
    rig: Rig, moment: float | str, expected: float | None
) -> None:
    """Until the sync has succeeded, once."""
    rig.metrics.changed(changed(decoded_slice(_triggered(moment, addressType="IPv6"))))
    rig.now = 1005.0
    rig.metrics.written(0.1)
    rig.metrics.written(0.1)
    assert rig.value("network_programming_duration_seconds_sum", ip_family="IPv6") == expected
    assert rig.value("network_programming_duration_seconds_count", ip_family="IPv6") == (1 if expected else None)
    assert rig.value("network_programming_duration_seconds_count", ip_family="IPv4") is None


def test_each_change_of_a_slice_is_measured_unless_it_is_gone(rig: Rig) -> None:
    """The annotation of one that was deleted tells of an earlier change."""
    for moment in (1001.0, 1002.0):
        rig.metrics.changed(changed(decoded_slice(_triggered(moment))))
    rig.now = 1005.0
    rig.metrics.written(0.1)
    assert rig.value("network_programming_duration_seconds_sum", ip_family="IPv4") == 4 + 3
    rig.metrics.changed(changed(decoded_slice(_triggered(1004.0))))
    rig.metrics.changed(gone(SLICE))
    rig.metrics.written(0.1)
    assert rig.value("network_programming_duration_seconds_count", ip_family="IPv4") == 2


def test_ports_without_local_endpoints_are_those_that_the_services_have_now(rig: Rig) -> None:
    """All four are there from the start, as zeros."""

    def counted() -> list[float | None]:
        return [
            rig.sync_value("no_local_endpoints_total", traffic_policy=policy, ip_family=family)
            for policy in ("internal", "external")
            for family in ("IPv4", "IPv6")
        ]

    assert counted() == [0, 0, 0, 0]
    rig.metrics.lacking(("shop", "web"), (("external", "IPv4"), ("external", "IPv4"), ("external", "IPv6")))
    rig.metrics.lacking(("shop", "mail"), (("internal", "IPv4"),))
    assert counted() == [1, 0, 2, 1]
    rig.metrics.lacking(("shop", "web"), (("internal", "IPv4"),))
    assert counted() == [2, 0, 0, 0]
    rig.metrics.lacking(("shop", "web"), ())
    rig.metrics.lacking(("shop", "mail"), ())
    assert counted() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        pytest.param({}, (), id="no policy of Local"),
        pytest.param({"internalTrafficPolicy": "Local"}, ("internal",), id="inside"),
        pytest.param({"externalTrafficPolicy": "Local"}, ("external",), id="outside"),
        pytest.param({"externalTrafficPolicy": "Local", "type": "ClusterIP"}, (), id="nobody outside can ask"),
        pytest.param(
            {"internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local"}, ("internal", "external"), id="both"
        ),
    ],
)
def test_port_that_lacks_local_endpoints_by_policy(fields: JSON, expected: tuple[str, ...]) -> None:
    """It counts while there are endpoints elsewhere; with none at all, clients are refused, whatever the policy."""
    ports = [{"name": "http", "port": 80, "nodePort": 30080}]
    manifest = decoded_service(service(ports=ports, **{"type": "NodePort", **fields}))
    here, far = ({**endpoint(address), "nodeName": node} for address, node in ((A, "own"), (B, "other")))

    def lacking(*endpoints: JSON) -> tuple[tuple[str, str], ...]:
        slices = [decoded_slice(endpoint_slice("s1", list(endpoints)))]
        return compile_service(manifest, slices, Rules("own")).no_local

    assert lacking(far) == tuple((policy, "IPv4") for policy in expected)
    assert lacking(here, far) == ()
    assert lacking() == ()
    assert lacking({**far, "conditions": {"ready": False}}) == ()


def test_answers_of_health_are_counted_by_code(rig: Rig) -> None:
    """And others are not."""
    answer = rig.metrics.counted(lambda path: Answer(503 if path == "/healthz" else 200, "", b""))
    for path in ("/healthz", "/healthz", "/livez", "/"):
        assert answer(path).status
    assert rig.value("proxy_healthz_total", code="503") == 2
    assert rig.value("proxy_livez_total", code="200") == 1
