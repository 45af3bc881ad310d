# SPDX-License-Identifier: Apache-2.0
"""What /metrics shows. The programs' own counts are read from their maps when somebody asks."""

import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, Histogram, generate_latest
from prometheus_client import Counter as Total
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from bpf import bpftool, syscall
from bpf.abi import MAPS, Counter, DropCount, DropKey, DropReason
from bpf.errors import BpfError
from bpf.pins import Pins
from controller.proxymetrics import ProxyMetrics
from controller.sweep import Round
from controller.web import NOT_FOUND, Answer

# In the place of iptables or nftables: whoever asks kube-proxy learns that this is another one.
PROXY_MODE = b"calico-ebpf"

_SYNC_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

# Maps of programs and of the CNI plugin whose entries are counted for each scrape.
COUNTED = ("affinities", "pods", "sockets")

_SWEEP_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02)


class Metrics:
    """The controller's own counts, those of the programs, and kube-proxy's."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(Programs(pins))
        self.sync_seconds = Histogram(
            "calico_ebpf_sync_duration_seconds",
            "Time to work out and write a difference to the maps.",
            buckets=_SYNC_BUCKETS,
            registry=self._registry,
        )
        self.sync_failures = self._total("calico_ebpf_sync_failures", "Syncs that failed and are tried again.")
        self.writes = self._total("calico_ebpf_map_writes", "Entries written or deleted in the maps.")
        self.drift = self._total("calico_ebpf_drift_repaired", "Entries that were found other than they should be.")
        self.last_sync = self._gauge("calico_ebpf_last_sync_timestamp_seconds", "When the maps were last in step.")
        self.pending = self._gauge("calico_ebpf_pending_changes", "Changes that are not in the kernel.")
        self.objects = self._gauge("calico_ebpf_objects", "Objects followed.", "kind")
        self.problems = self._gauge("calico_ebpf_problems", "Problems standing, by where they come from.", "origin")
        self.map_entries = self._gauge("calico_ebpf_map_entries", "Entries in a map.", "map")
        self.map_size = self._gauge("calico_ebpf_map_max_entries", "Entries that a map takes.", "map")
        self.sweep_seconds = Histogram(
            "calico_ebpf_sweep_slice_seconds",
            "Time for which a slice of the sweep of expired flows held a CPU.",
            buckets=_SWEEP_BUCKETS,
            registry=self._registry,
        )
        self.sweep_longest = self._gauge("calico_ebpf_sweep_longest_slice_seconds", "The last round's longest slice.")
        self.sweep_removed = self._total("calico_ebpf_flows_swept", "Entries of expired flows that were removed.")
        self.proxy = ProxyMetrics(self._registry)
        self.map_short = self._gauge("calico_ebpf_map_short", "Service ports that lack room in a map.", "map")

    def answer(self, path: str) -> Answer:
        """The scrape; counts of the programs are read when it comes. And what kube-proxy says of its way of working."""
        if path == "/proxyMode":
            return Answer(200, "text/plain", PROXY_MODE)
        if path != "/metrics":
            return NOT_FOUND
        self._count_others_entries()
        return Answer(200, CONTENT_TYPE_LATEST, generate_latest(self._registry))

    def swept(self, done: Round) -> None:
        """Takes note of a round of the sweep; implements controller.sweep.Counts."""
        for one in done.slices:
            self.sweep_seconds.observe(one.seconds)
        self.sweep_longest.set(max(one.seconds for one in done.slices))
        self.sweep_removed.inc(sum(one.removed for one in done.slices))
        self.map_entries.labels("flows").set(done.entries)

    def _count_others_entries(self) -> None:
        """Of maps that the controller does not write; 65,536 are counted in an eighth of a second. Those of flows are
        many more, and counted by the sweep."""
        for name in (*COUNTED, "flows"):
            with suppress(BpfError, OSError), self._pins.opened_map(name) as fd:
                self.map_size.labels(name).set(syscall.map_info(fd).max_entries)
                if name in COUNTED:
                    entries = syscall.map_entries(fd, MAPS[name].key_size, MAPS[name].value_size)
                    self.map_entries.labels(name).set(sum(1 for _ in entries))

    def _total(self, name: str, text: str) -> Total:
        return Total(name, text, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)


class Programs:
    """A collector of the maps that the programs count in."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins

    def describe(self) -> list[Metric]:
        """Nothing: that keeps the registry from reading the maps to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield self._drops()
        yield from self._counters()

    def _drops(self) -> Metric:
        family = CounterMetricFamily("calico_ebpf_drops", "Packets dropped or refused.", labels=["reason", "device"])
        for key, values in self._dump("drops"):
            drop = DropKey.unpack(key)
            size = len(DropCount(0, 0).pack())
            packets = sum(DropCount.unpack(values[at : at + size]).packets for at in range(0, len(values), size))
            family.add_metric([_reason(drop.reason), _device(drop.ifindex)], packets)
        return family

    def _counters(self) -> Iterator[Metric]:
        for key, values in self._dump("counters"):
            index = int.from_bytes(key, "little")
            if index in list(Counter):
                family: Any = CounterMetricFamily(f"calico_ebpf_{Counter(index).name.lower()}", "See enum counter.")
                family.add_metric(
                    [], sum(int.from_bytes(values[at : at + 8], "little") for at in range(0, len(values), 8))
                )
                yield family

    def _dump(self, name: str) -> list[tuple[bytes, bytes]]:
        try:
            return list(bpftool.dump(self._pins.map(name)))
        except BpfError:
            return []  # a scrape shows the rest; the sync complains


def _reason(number: int) -> str:
    return DropReason(number).name.lower() if number in list(DropReason) else str(number)


def _device(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return str(ifindex)
