# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as the source."""

import random
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import structlog

from controller.apiserver import ApiServer
from controller.departures import Departures
from controller.errors import ApiError
from controller.follower import Follower
from controller.memory import NodeMemory
from controller.model import OPTIONAL, REQUIRED, Kind
from controller.source import Event, Post
from controller.standins import StandIns

log = structlog.get_logger()

# How often the pods of a node whose Node is gone are asked for: all controllers of a cluster together ask a hundred
# times a second at most.
SETTLE_S, SETTLE_RATE = 10.0, 100.0


class KubernetesSource:
    """Follows every kind in a thread of its own, pods while a Node lacks ranges; implements Source.

    Args:
        kubeconfig: None: the pod's service account, else the variable KUBECONFIG.
        api_server: where the pod's service account is used; "" is the address that Kubernetes tells pods.
        own: the name of this node.
        memory: the file in which other Nodes are remembered.
    """

    def __init__(
        self, kubeconfig: Path | None, api_server: str = "", own: str = "", memory: Path | None = None
    ) -> None:
        self._server = ApiServer(kubeconfig, api_server)
        self._stopping = threading.Event()
        self._memory = NodeMemory(memory, own)
        self._departures = Departures(own, self._memory.nodes)
        self._stand_ins = StandIns(own)
        # Held by who changes either; told of when the watch of pods may have come to be wanted.
        self._nodes = threading.Condition()
        self._pods_unwanted = threading.Event()

    def start(self, post: Post) -> None:
        for kind in (*REQUIRED, *OPTIONAL):
            post_kind = partial(self._post_nodes, post) if kind == Kind.NODE else post
            follower = Follower(kind, self._server, post_kind, self._stopping)
            threading.Thread(target=follower.run, name=f"watch-{kind}", daemon=True).start()
        threading.Thread(target=self._settle, args=(post,), name="departures", daemon=True).start()
        threading.Thread(target=self._follow_pods, args=(post,), name="pods", daemon=True).start()

    def stop(self) -> None:
        self._stopping.set()
        with self._nodes:
            self._pods_unwanted.set()
            self._nodes.notify()

    def _post_nodes(self, post: Post, events: Sequence[Event]) -> None:
        with self._nodes:
            self._pass_nodes(post, self._departures.passed(events))

    def _pass_nodes(self, post: Post, events: Sequence[Event]) -> None:
        self._memory.note(events)
        self._pass(post, events)

    def _pass(self, post: Post, events: Sequence[Event]) -> None:
        """Posts what comes of events of Nodes and pods, and has pods followed while it is wanted; under the lock."""
        if passed := self._stand_ins.passed(events):
            post(passed)
        if self._stand_ins.wanted and not self._stopping.is_set():
            self._pods_unwanted.clear()
        else:
            self._pods_unwanted.set()
        self._nodes.notify()

    def _follow_pods(self, post: Post) -> None:
        """Lists and watches all pods whenever it is wanted. A watch ends with the next that comes of it, a bookmark at
        the latest; where it is wanted again by then, it goes on."""

        def post_pods(events: Sequence[Event]) -> None:
            with self._nodes:
                self._pass(post, events)

        while True:
            with self._nodes:
                if self._stopping.is_set():
                    return
                if not self._stand_ins.wanted:
                    self._nodes.wait(self._stand_ins.due_s)
                    self._pass(post, ())
                    continue
            follower = Follower(Kind.POD, self._server, post_pods, self._pods_unwanted)
            follower.run()
            with self._nodes:
                self._stand_ins.forget()
                self._pass(post, [follower.silence()])
            log.info("pods-no-longer-followed")

    def _settle(self, post: Post) -> None:
        """Asks for the pods of nodes that are kept without their Node, or with ranges that it does not name."""
        while not self._stopping.wait(random.uniform(1, 2) * self._pause_s()):
            for name in self._departures.kept:
                try:
                    addresses = self._server.addresses_on(name)
                except ApiError as error:
                    log.warning("pods-not-listed", node=name, error=str(error))
                    continue
                with self._nodes:
                    if events := self._departures.settle(name, addresses):
                        log.info("node-settled", node=name)
                        self._pass_nodes(post, events)

    def _pause_s(self) -> float:
        kept = len(self._departures.kept)
        return max(SETTLE_S, (len(self._departures) + kept) * max(kept, 1) / SETTLE_RATE)
