# SPDX-License-Identifier: Apache-2.0
"""Puts the controller together for a node, and runs it."""

import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import structlog

from bpf import node
from bpf.abi import PeerKey
from bpf.pins import Pins
from bpf.settings import Settings
from controller import (
    alone,
    connecttime,
    denied,
    health,
    inotify,
    kubeproxy,
    masqagent,
    memory,
    monitor,
    sockets,
    sweep,
    web,
)
from controller.controller import Controller
from controller.dataplane import Dataplane
from controller.directory import DirectorySource
from controller.errors import AloneError
from controller.maps import PinnedMaps
from controller.metrics import Metrics
from controller.network import NodeNetwork
from controller.peers import Peers, remembered
from controller.routes import Netlink
from controller.source import Source
from controller.web import Answer

log = structlog.get_logger()

GUARD_S = 2.0
# How long nobody answers where a load balancer asks, when kube-proxy has gone.
SERVE_S = 1.0
# An editor may move the deny list away before it writes another.
DENY_S = 0.2


def run(settings: Settings) -> None:
    """Runs the controller until SIGTERM or SIGINT.

    Raises:
        BpfError: the data plane could not be loaded.
        AloneError: another controller runs on this node.
    """
    log_to_stderr(settings.log_level)
    held = alone.lock(settings.run_dir)
    pins = node.pins(settings)
    netlink = Netlink()
    metrics = Metrics(pins)
    maps = PinnedMaps(pins, (held,))
    peers = Peers(
        lambda mac: maps.holds("peers", PeerKey(mac).pack()),
        lambda: controller.network_changed(),
    )
    network = NodeNetwork(settings, pins, netlink, peers)
    controller = Controller(settings, source_of(settings), Dataplane(maps), network, metrics)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: controller.stop())
    deaths: list[BaseException] = []
    threading.excepthook = lambda death: _thread_died(death, deaths, controller)
    # The source reads while the programs are loaded.
    controller.start()
    _load(settings, pins)
    controller.post([connecttime.attach(settings, pins)])
    _deny(settings, maps, controller, metrics)
    _serve(settings, controller, metrics)
    monitor.watch(controller.network_changed)
    masqagent.watch(settings.ip_masq_agent_file, controller.network_changed)
    remotes = maps.read("remotes")
    peers.remember(remembered(maps.read("peers"), remotes))
    network.remember(remotes)
    peers.start()
    _sweep(settings, pins, metrics)
    sockets.start(pins, controller.backends_gone)
    threading.Thread(target=_guard, args=(held, settings), name="guard", daemon=True).start()
    if settings.connect_time != "off" and settings.audit_interval_s:
        keeping = (settings, pins, controller.post)
        threading.Thread(target=connecttime.keep, args=keeping, name="connect-time", daemon=True).start()
    watching = (controller.post, settings.metrics_address)
    threading.Thread(target=kubeproxy.watch, args=watching, name="kube-proxy", daemon=True).start()
    controller.run()
    peers.stop()
    netlink.close()
    log.info("stopped")
    if deaths:
        raise deaths[0]


def _thread_died(death: threading.ExceptHookArgs, deaths: list[BaseException], controller: Controller) -> None:
    """Ends the process, which is started again: without one of its threads it would stand still, and look well."""
    log.error("thread-died", thread=death.thread.name if death.thread else "", exc_info=death.exc_value)
    if death.exc_value:
        deaths.append(death.exc_value)
    controller.stop()


def _guard(held: int, settings: Settings) -> None:
    """Ends the process, which is started again and writes everything anew, when somebody has cleared its directory, or
    another version has taken its maps over."""
    while not alone.is_lost(held, settings.run_dir):
        if node.other_layout_in_force(settings):
            raise AloneError("another version has taken over")
        time.sleep(GUARD_S)
    raise AloneError(f"{settings.run_dir / alone.LOCK_NAME} was removed, and what else stood there")


def _load(settings: Settings, pins: Pins) -> None:
    loaded = node.load_datapath(settings)
    log.info("datapath-ready", loaded=loaded, pins=str(pins.root))


def _deny(settings: Settings, maps: PinnedMaps, controller: Controller, metrics: Metrics) -> None:
    """Before anybody is served: the map of a node that was started anew knows nothing of it. Then by threads, when
    somebody has written to the file, and as often as audits are."""
    held = denied.DenyList(settings.state_dir)
    controller.post([denied.enforce(held, maps).problems])

    def written() -> None:
        time.sleep(DENY_S)
        controller.post([denied.enforce(held, maps).problems])

    inotify.follow("deny-list", held.path.parent, written, held.path.name)
    if settings.audit_interval_s:
        keeping = (settings, maps, controller.post, metrics.drift.inc)
        threading.Thread(target=denied.keep, args=keeping, name="deny-audit", daemon=True).start()


def _sweep(settings: Settings, pins: Pins, metrics: Metrics) -> None:
    if not settings.sweep_interval_s:
        return
    if sweep.available(pins):
        sweep.start(pins, settings.sweep_interval_s, metrics)
    else:
        log.info("no-sweep", reason="the kernel does not take it: expired flows go when others need their place")


def source_of(settings: Settings) -> Source:
    """The source that the settings name."""
    if settings.source != "kubernetes":
        return DirectorySource(Path(settings.source))
    # The client takes a quarter of a second and 30 MB, which a directory has no use for.
    from controller.kube import KubernetesSource

    nodes = settings.run_dir / memory.FILE_NAME
    return KubernetesSource(settings.kubeconfig, settings.api_server, settings.node_name, nodes)


def log_to_stderr(level: str) -> None:
    """JSON lines with an event's name and keys."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )


def _serve(settings: Settings, controller: Controller, metrics: Metrics) -> None:
    """That an address is taken, by kube-proxy say, must not keep Services from working: it is had when it is free."""
    wanted = (
        ("health", settings.health_address, metrics.proxy.counted(controller.health.answer)),
        ("probes", health.PROBES_ADDRESS, controller.health.answer),
        ("metrics", settings.metrics_address, metrics.answer),
    )
    for name, address, answer in wanted:
        if address and not _served(name, address, answer):
            threading.Thread(target=_serve_later, args=(name, address, answer), name=name, daemon=True).start()


def _served(name: str, address: str, answer: Callable[[str], Answer]) -> bool:
    try:
        web.serve(name, address, answer)
    except OSError as error:
        log.error(f"{name}-not-served", address=address, error=str(error))
        return False
    return True


def _serve_later(name: str, address: str, answer: Callable[[str], Answer]) -> None:
    while True:
        time.sleep(SERVE_S)
        with suppress(OSError):
            web.serve(name, address, answer)
            log.info(f"{name}-served", address=address)
            return
