# SPDX-License-Identifier: Apache-2.0
"""kube-proxy's own metrics, under its names and with its labels and buckets: dashboards made for it go on working.

One sync writes both families, and is shown under each, as a node with two families shows two. Source: pkg/proxy/metrics
of Kubernetes 1.36; what older versions have differs by the label ip_family, which they lack.
"""

import time
from collections.abc import Callable, Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from controller.model import EndpointSlice, Key, Kind
from controller.services import FAMILIES
from controller.source import Changed
from controller.web import Answer

PREFIX = "kubeproxy_"

_SYNC_BUCKETS = [0.001 * 2**power for power in range(15)]
_NETWORK_BUCKETS = [0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30)]


class ProxyMetrics:
    """Takes note of changes as they come, and of when they are in the kernel.

    Args:
        clock: seconds since the epoch.
    """

    def __init__(self, registry: CollectorRegistry, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._started = self._queued = clock()
        self._services: set[Key] = set()
        self._slices = 0
        self._triggers: dict[Key, list[tuple[str, float]]] = {}
        self._no_local: dict[Key, tuple[tuple[str, str], ...]] = {}

        def histogram(name: str, text: str, buckets: Iterable[float]) -> Histogram:
            return Histogram(PREFIX + name, text, ["ip_family"], buckets=tuple(buckets), registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(PREFIX + name, text, labels, registry=registry)

        def total(name: str, text: str, *labels: str) -> Counter:
            return Counter(PREFIX + name, text, labels, registry=registry)

        sync = "sync_proxy_rules_"
        self._duration = histogram(f"{sync}duration_seconds", "Time of a sync that succeeded.", _SYNC_BUCKETS)
        self._programming = histogram(
            "network_programming_duration_seconds",
            "From what changed an endpoint, by the annotation of its slice, until it is in the kernel.",
            _NETWORK_BUCKETS,
        )
        self._last = gauge(f"{sync}last_timestamp_seconds", "When a sync last succeeded.", "ip_family")
        queued = gauge(f"{sync}last_queued_timestamp_seconds", "When a sync was last asked for.", "ip_family")
        for family in FAMILIES:
            # Read when somebody asks: thousands of changes come at the start.
            queued.labels(family).set_function(lambda: self._queued)
        slices = gauge(f"{sync}endpoint_changes_pending", "Changes of slices that are not in the kernel.")
        slices.set_function(lambda: self._slices)
        self._slices_total = total(f"{sync}endpoint_changes", "Changes of slices.")
        services = gauge(f"{sync}service_changes_pending", "Services with changes that are not in the kernel.")
        services.set_function(lambda: len(self._services))
        self._services_total = total(f"{sync}service_changes", "Changes of Services.")
        self._lacking = gauge(
            f"{sync}no_local_endpoints_total",
            "Service ports with a policy of Local and no endpoint here, though there are some elsewhere.",
            "traffic_policy",
            "ip_family",
        )
        self._probes = {
            path: total(f"proxy_{path.strip('/')}", f"Answers of {path}.", "code") for path in ("/healthz", "/livez")
        }
        for policy in ("internal", "external"):
            for family in FAMILIES:
                self._lacking.labels(policy, family)

    def changed(self, change: Changed) -> None:
        """Takes note of a change that a sync is to write."""
        if change.kind == Kind.SERVICE:
            self._services.add(change.key)
            self._services_total.inc()
        else:
            self._slices += 1
            self._slices_total.inc()
            self._note_trigger(change)
        self._queued = self._clock()

    def written(self, seconds: float) -> None:
        """Takes note that all changes are in the kernel, by a sync that took so long."""
        now = self._clock()
        for family in FAMILIES:
            self._duration.labels(family).observe(seconds)
            self._last.labels(family).set(now)
        for triggers in self._triggers.values():
            for family, triggered in triggers:
                self._programming.labels(family).observe(now - triggered)
        self._services, self._slices, self._triggers = set(), 0, {}

    def lacking(self, service: Key, ports: tuple[tuple[str, str], ...]) -> None:
        """Takes note of a Service's ports that have a policy of Local and no endpoint here.

        Args:
            ports: traffic policy (internal, external) and family of each.
        """
        for labels in self._no_local.pop(service, ()):
            self._lacking.labels(*labels).dec()
        for labels in ports:
            self._lacking.labels(*labels).inc()
        if ports:
            self._no_local[service] = ports

    def counted(self, answer: Callable[[str], Answer]) -> Callable[[str], Answer]:
        """The same answers, counted."""

        def answered(path: str) -> Answer:
            found = answer(path)
            if path in self._probes:
                self._probes[path].labels(str(found.status)).inc()
            return found

        return answered

    def _note_trigger(self, change: Changed) -> None:
        """What was triggered before the start tells nothing of this controller, nor does a slice that is gone."""
        if not isinstance(change.obj, EndpointSlice):
            self._triggers.pop(change.key, None)
            return
        annotations = change.obj.metadata.annotations
        triggered = _seconds(annotations.last_change_trigger_time) if annotations else 0.0
        if triggered > self._started:
            self._triggers.setdefault(change.key, []).append((change.obj.address_type, triggered))


def _seconds(text: str) -> float:
    """Since the epoch; 0.0 where it is no time."""
    try:
        moment = datetime.fromisoformat(text)
        return moment.timestamp() if moment.tzinfo else 0.0
    except (ValueError, OverflowError):
        return 0.0
