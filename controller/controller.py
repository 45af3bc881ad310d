# SPDX-License-Identifier: Apache-2.0
"""The loop: events in, maps and routes out. One thread does all of it; sources, the monitor and audits only post.

    posted events -> trackers -> pools -> difference -> maps

A change is written at once when the last sync is some time ago, and together with its neighbours under churn. Nothing
is programmed, and above all nothing removed, until every kind that is required has been listed once. A failed sync is
tried again, later and later, and then compares everything; what the kernel refuses of the network's entries is tried
again by itself, and Services go on. Stopping leaves maps, attachments and routes as they are.
"""

import gc
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from queue import Empty, SimpleQueue
from typing import NamedTuple

import structlog

from bpf.errors import BpfError
from bpf.settings import Settings
from controller import frontends
from controller.dataplane import Dataplane
from controller.health import Health
from controller.healthports import HealthPorts
from controller.metrics import Metrics
from controller.mirror import Mirror
from controller.model import REQUIRED, Kind, Node, ServiceCIDR
from controller.network import NodeNetwork
from controller.nodes import facts, some
from controller.pacing import Backoff, Pacer
from controller.ranges import ServiceRanges
from controller.report import Report, Standing
from controller.services import Rules, ServiceTracker
from controller.source import Changed, Event, Problem, Problems, Source, Synced

log = structlog.get_logger()

# Longer than any start takes; where the source is away, the collector must not stay off.
LISTING_S = 60.0
# The kernel tells of devices and routes in bursts.
NETWORK_INTERVAL_S = 0.1

# What fills a map whose size is no setting.
TOO_MANY = {
    "nodes": "too many nodes",
    "peers": "too many nodes",
    "devices": "too many devices lead to networks: those beside the underlay come last",
    "unmasqueraded": "too many ranges",
}


# What is told besides of a Service that cannot be compiled when the controller starts.
LEFT_ALONE = "until that can be, what no other Service has stays in the maps, too"


class Signal(Enum):
    """What is posted besides events."""

    STOP = "stop"
    NETWORK = "network"


class Audited(NamedTuple):
    """What an audit read, or why it could not."""

    found: Mirror | BpfError


Message = Sequence[Event] | Signal | Audited


class Controller:
    """Runs until `stop`; everything else is called from its own thread.

    Args:
        clock: monotonic seconds.

    Attributes:
        backends_gone: set when backends have been taken out of the maps, for others to wait for.
    """

    def __init__(
        self,
        settings: Settings,
        source: Source,
        dataplane: Dataplane,
        network: NodeNetwork,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.health = Health()
        self.backends_gone = threading.Event()
        self._health_ports = HealthPorts(lambda: self.health.alive, self.post)
        self._settings = settings
        self._source = source
        self._dataplane = dataplane
        self._network = network
        self._metrics = metrics
        self._clock = clock
        self._queue: SimpleQueue[Message] = SimpleQueue()
        self._services = ServiceTracker(
            Rules(
                settings.node_name,
                way_back=settings.return_path,
                balancing=settings.balancing,
                maglev_size=settings.maglev_table_size,
                echo=settings.load_balancer_echo == "answer",
            )
        )
        self._ranges = ServiceRanges(settings.service_cidrs)
        self._standing = Standing()
        self._report = Report(settings.run_dir)
        self._unlisted = set(REQUIRED)
        self._ranges_listed = False
        self._pacer = Pacer(settings.sync_interval_ms / 1000)
        self._network_pacer = Pacer(NETWORK_INTERVAL_S)
        self._network_dirty = True
        self._short_backoff = Backoff(1.0)
        self._short_due: float | None = None
        self._refused_backoff = Backoff(1.0)
        self._refused_due: float | None = None
        self._audit_due: float | None = None
        self._report_due: float | None = 0.0
        self._last_sync: float | None = None
        self._collect_due: float | None = None

    def stop(self) -> None:
        """Ends `run`; may be called from anywhere, a signal handler too."""
        self._queue.put(Signal.STOP)

    def network_changed(self) -> None:
        """Says that devices or routes changed; may be called from any thread."""
        self._queue.put(Signal.NETWORK)

    def post(self, events: Sequence[Event]) -> None:
        """Takes events, from any thread."""
        self.health.waiting()  # whatever becomes of them: a loop that stands still must not look well
        self._queue.put(events)

    def start(self) -> None:
        """Has the source begin to list; what it posts waits for `run`."""
        self._collect_due = self._clock() + LISTING_S
        gc.disable()  # until what is listed first stands: it is kept, and would be scanned over and over
        self._source.start(self.post)

    def run(self) -> None:
        """Returns after `stop`."""
        try:
            while self._take():
                self.step()
        finally:
            self._source.stop()
            self._health_ports.close()
            gc.enable()

    def step(self) -> None:
        """Does what is due."""
        now = self._clock()
        if self._collect_due is not None and now >= self._collect_due:
            self._collect_due = None
            gc.enable()
        if self._network_dirty and now >= self._network_pacer.due:
            self._sync_network(now)
        if self._refused_due is not None and now >= self._refused_due:
            self._refused_due = None
            self._dataplane.retry_refused()
        if self._sync_wanted:
            self.health.waiting()
            if now >= self._pacer.due:
                self._sync(now)
        elif self._queue.empty():
            self.health.idle()
        if self._audit_due is not None and now >= self._audit_due:
            self._begin_audit(now)
        if self._short_due is not None and now >= self._short_due:
            self._short_due = None
            self._dataplane.retry_short()
        if self._report_due is not None and now >= self._report_due:
            self._report_due = self._report.write(self._facts(), self._standing.lines(), now)

    @property
    def _ready(self) -> bool:
        return not self._unlisted

    @property
    def _sync_wanted(self) -> bool:
        return self._ready and (self._services.dirty or self._dataplane.dirty)

    def _take(self) -> bool:
        """Waits for something to do, and takes in all that has come; False: stop."""
        try:
            message = self._queue.get(timeout=self._wait_s())
            while True:
                if message is Signal.STOP:
                    return False
                self.handle(message)
                message = self._queue.get_nowait()
        except Empty:
            return True

    def _wait_s(self) -> float | None:
        timers = (self._audit_due, self._short_due, self._refused_due, self._report_due, self._collect_due)
        due = [one for one in timers if one is not None]
        if self._network_dirty:
            due.append(self._network_pacer.due)
        if self._sync_wanted:
            due.append(self._pacer.due)
        return max(0.0, min(due) - self._clock()) if due else None

    def handle(self, message: Message) -> None:
        """Takes note of what was posted."""
        if message is Signal.NETWORK:
            self._look_at_network()
        elif isinstance(message, Audited):
            self._end_audit(message.found)
        elif not isinstance(message, Signal):
            for event in message:
                self._handle_event(event)
            self._report_due = self._report_due or 0.0

    def _look_at_network(self, everything: bool = False) -> None:
        self._network.forget(everything)
        self._network_dirty = True

    def _handle_event(self, event: Event) -> None:
        if isinstance(event, Problems):
            self._replace([event])
        elif isinstance(event, Synced):
            self._unlisted.discard(event.kind)
            self._network_dirty |= event.kind == Kind.NODE
            if event.kind == Kind.SERVICE_CIDR:
                self._ranges_listed = True
                self._enforce_ranges()
        elif event.kind == Kind.NODE:
            self._handle_node(event)
        elif event.kind == Kind.SERVICE_CIDR:
            found = event.obj if isinstance(event.obj, ServiceCIDR) else None
            self._replace(self._ranges.set_range(event.key[1], found))
            self._enforce_ranges()
        elif self._services.apply(event):
            self._metrics.proxy.changed(event)

    def _enforce_ranges(self) -> None:
        """Of what Services may have, what none has is dropped: not before all that they have has been written."""
        if self._last_sync is not None:
            self._network_dirty |= self._network.set_service_ranges(self._ranges.ranges, self._ranges_listed)

    def _handle_node(self, event: Changed) -> None:
        node = event.obj if isinstance(event.obj, Node) else None
        if node and event.key[1] == self._settings.node_name:
            self._services.set_addresses(facts(node)[0].addresses)
        self._network_dirty |= self._network.set_node(event.key[1], node)
        self.health.eligible = self._network.eligible
        if node and event.key[1] == self._settings.node_name:
            self._services.set_zone(node.zone)  # of a Node that is gone, the last one: the node is where it was
        self._replace(self._ranges.set_node(event.key[1], node))

    def _replace(self, told: Iterable[Problems]) -> None:
        for one in told:
            self._standing.replace(one.origin, one.problems)

    def _sync_network(self, now: float) -> None:
        listed = Kind.NODE not in self._unlisted
        more = self._network.sync(listed)
        self.health.eligible = self._network.eligible
        self.health.connected |= listed and not self._network.failed
        self._standing.replace("nodes", tuple(self._network.problems))
        if self._network.entries is not None:
            self._dataplane.set_network(self._network.entries)
        self._network_dirty = more
        if more and self._network.failed:
            self._network_pacer.failed(now)
        else:
            self._network_pacer.succeeded(now)
        self._report_due = self._report_due or 0.0

    def _sync(self, began: float) -> None:
        self._compile()
        try:
            result = self._dataplane.sync()
        except BpfError as error:
            self._sync_failed(error)
            return
        ended = self._clock()
        self._pacer.succeeded(began)
        self._standing.replace("maps", (*self._room_problems(), *self._refused_by_kernel(ended)))
        if result.freed:
            self._dataplane.retry_short()
        elif self._dataplane.short or self._dataplane.network_short:
            self._short_due = self._short_due or ended + self._short_backoff.next_s()
        else:
            self._short_backoff.reset()
        self.health.synced()
        if result.backends_gone:
            self.backends_gone.set()
        self._health_ports.apply()
        if result.ops:
            level = log.info if result.full else log.debug
            level("synced", entries=result.ops, milliseconds=round((ended - began) * 1000, 1), full=result.full)
        first, self._last_sync = self._last_sync is None, time.time()
        if first:
            self._started(ended)
        self._measure(result.ops, ended - began)
        self._report_due = self._report_due or 0.0

    def _compile(self) -> None:
        for key in self._services.take_changed():
            label = "Service " + "/".join(key)
            try:
                compiled = self._services.compile(key)
            except Exception as error:  # a mistake of ours in one Service must not cost the node all the others
                log.error("service-not-compiled", service="/".join(key), exc_info=error)
                why = f"{type(error).__name__}: {error}"
                message = f"stays as it was, its change could not be made sense of: {why}"
                if self._dataplane.keep_service(key):
                    message += f"; {LEFT_ALONE}"
                self._standing.replace(label, (Problem(label, message),))
                continue
            self._dataplane.set_service(key, compiled.pools)
            self._standing.replace(label, tuple(compiled.problems))
            self._health_ports.note(key, compiled.health)
            self._metrics.proxy.lacking(key, compiled.no_local)

    def _sync_failed(self, error: BpfError) -> None:
        pause_s = self._pacer.failed(self._clock())
        self._metrics.sync_failures.inc()
        self._metrics.pending.set(self._dataplane.pending)
        self._standing.replace("maps", (Problem("maps", str(error)),))
        self._report_due = self._report_due or 0.0
        log.error("sync-failed", error=str(error), pending=self._dataplane.pending, retry_in_s=round(pause_s, 1))

    def _refused_by_kernel(self, now: float) -> list[Problem]:
        """What was refused of the maps of the network, which is tried again, later and later: no Service waits for it,
        nor does health."""
        refused = self._dataplane.refused
        if not refused:
            self._refused_backoff.reset()
            self._refused_due = None
        elif self._refused_due is None:
            self._metrics.sync_failures.inc()
            pause_s = self._refused_backoff.next_s()
            self._refused_due = now + pause_s
            log.error("network-maps-not-written", maps=sorted(refused), retry_in_s=round(pause_s, 1))
        return [Problem(f"map {name}", f"not all of it could be written: {why}") for name, why in refused.items()]

    def _room_problems(self) -> list[Problem]:
        """What does not fit, a problem for each map that is full, and frontends that two Services claim."""
        short = list(self._dataplane.short.values())
        problems = [
            Problem(f"map {name}", f"full: {short.count(name)} Service ports lack room; raise {name}_max")
            for name in sorted(set(short))
        ]
        for name in sorted(self._dataplane.network_short):
            advice = f"raise {name}_max" if hasattr(self._settings, f"{name}_max") else TOO_MANY[name]
            problems.append(Problem(f"map {name}", f"full: {advice}"))
        claimed: dict[tuple[str, str], list[str]] = {}
        for frontend, keys in self._dataplane.contested().items():
            if frontends.is_address(frontend):
                continue  # which Services share, each with ports of its own
            first, *others = (f"{key.namespace}/{key.name}" for key in keys)
            for other in others:
                claimed.setdefault((other, first), []).append(frontends.shown(frontend))
        problems += [
            Problem(f"Service {other}", f"{some(sorted(shown))}: of Service {first} as well, which is used")
            for (other, first), shown in sorted(claimed.items())
        ]
        return problems

    def _started(self, now: float) -> None:
        """Everything has been written for the first time."""
        self._enforce_ranges()
        self._collect_due = None
        gc.collect()
        gc.freeze()
        gc.enable()
        gc.set_threshold(50_000, 20, 100)
        if self._settings.audit_interval_s:
            self._audit_due = now + self._settings.audit_interval_s

    def _begin_audit(self, now: float) -> None:
        self._audit_due = now + self._settings.audit_interval_s
        self._look_at_network(everything=True)
        self._dataplane.record()
        threading.Thread(target=self._audit, name="audit", daemon=True).start()

    def _audit(self) -> None:
        try:
            found: Mirror | BpfError = self._dataplane.read_back()
        except BpfError as error:
            found = error
        self._queue.put(Audited(found))

    def _end_audit(self, found: Mirror | BpfError) -> None:
        if isinstance(found, BpfError):
            log.error("audit-failed", error=str(found))
            return
        drifted = self._dataplane.audit(found)
        if drifted:
            self._metrics.drift.inc(drifted)
            log.warning("drift-found", entries=drifted)

    def _measure(self, ops: int, seconds: float) -> None:
        metrics = self._metrics
        metrics.sync_seconds.observe(seconds)
        metrics.writes.inc(ops)
        metrics.last_sync.set_to_current_time()
        metrics.proxy.written(seconds)
        metrics.pending.set(self._dataplane.pending)
        for name, (entries, size) in self._dataplane.sizes().items():
            metrics.map_entries.labels(name).set(entries)
            metrics.map_size.labels(name).set(size)
            metrics.map_short.labels(name).set(list(self._dataplane.short.values()).count(name))
        for kind, count in self._counts().items():
            metrics.objects.labels(kind).set(count)
        metrics.problems.clear()
        for origin, count in self._standing.counts().items():
            metrics.problems.labels(origin).set(count)

    def _counts(self) -> dict[str, int]:
        return {**self._services.counts(), str(Kind.NODE): self._network.node_count}

    def _facts(self) -> dict[str, object]:
        """What controller.json says, problems apart."""
        return {
            "node": self._settings.node_name,
            "source": self._settings.source,
            "synced": self._ready and not self._dataplane.pending and self._last_sync is not None,
            "waiting_for": sorted(self._unlisted),
            "objects": self._counts(),
            "service_ranges": self._ranges.ranges,
            "pending": self._dataplane.pending,
            "last_sync": self._last_sync,
            "maps": {name: list(sizes) for name, sizes in self._dataplane.sizes().items()},
        }
