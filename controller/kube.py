# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as the source: list and watch, decoded straight from the wire. The only importer of kubernetes.

The official client brings configuration, credentials and transport; its models and its informers are not used. What is
in force stays while the API server is away; a deletion that was missed meanwhile shows in the next list.
"""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import urllib3
import yaml
from kubernetes import client, config

from controller.departures import Departures
from controller.errors import AbsentError, ApiError, ExpiredError, RefusedError
from controller.manifests import label
from controller.memory import NodeMemory
from controller.model import OPTIONAL, REQUIRED, Key, Kind, Object, Pod, type_of_kind
from controller.pacing import Backoff
from controller.services import LABEL_HEADLESS, LABEL_PROXY
from controller.source import Changed, Event, Post, Problem, Problems, Synced
from controller.standins import StandIns

log = structlog.get_logger()

PAGE = 500
CONNECT_S = 5
LIST_READ_S = 60
# The server sends a bookmark about once a minute: a watch that is silent for longer than this is dead.
WATCH_READ_S = 150
# Watches end by themselves after a while, at different times on different nodes.
WATCH_LEAST_S, WATCH_MOST_S = 300, 600
# How often the pods of a node whose Node is gone are asked for: all controllers of a cluster together ask a hundred
# times a second at most.
SETTLE_S, SETTLE_RATE = 10.0, 100.0
# A watch that lasted this long was a good one: the next failure is waited out from the shortest pause again.
GOOD_WATCH_S = 5
# How often a kind is asked for that the server does not have: until it is of another version.
ABSENT_S = 300.0

PODS = "/api/v1/pods"
# Where each kind is, and what of it is asked for. Of a pod that has ended the API keeps the address, which another may
# have by then.
RESOURCES = {
    Kind.SERVICE: ("/api/v1/services", {"labelSelector": f"!{LABEL_PROXY}"}),
    Kind.ENDPOINT_SLICE: ("/apis/discovery.k8s.io/v1/endpointslices", {"labelSelector": f"!{LABEL_HEADLESS}"}),
    Kind.NODE: ("/api/v1/nodes", {}),
    Kind.SERVICE_CIDR: ("/apis/networking.k8s.io/v1/servicecidrs", {}),
    Kind.POD: (PODS, {"fieldSelector": "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"}),
}


class _Meta(msgspec.Struct, rename="camel"):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""


class _Item(msgspec.Struct):
    metadata: _Meta


class _PageMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    next: str = msgspec.field(name="continue", default="")


class _Page(msgspec.Struct):
    metadata: _PageMeta
    items: list[msgspec.Raw] | None = None


class _WatchEvent(msgspec.Struct):
    type: str
    object: msgspec.Raw


class _Status(msgspec.Struct):
    message: str = ""
    code: int = 0


class _Pods(msgspec.Struct):
    items: list[Pod] | None = None


_page = msgspec.json.Decoder(_Page)
_pods = msgspec.json.Decoder(_Pods)
_item = msgspec.json.Decoder(_Item)
_watch_event = msgspec.json.Decoder(_WatchEvent)
_status = msgspec.json.Decoder(_Status)


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
        self._server = Server(kubeconfig, api_server)
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


class Server:
    """The API server, by the official client."""

    def __init__(self, kubeconfig: Path | None, api_server: str) -> None:
        self._kubeconfig = kubeconfig
        self._api_server = api_server
        self._lock = threading.Lock()
        self._client: Any = None

    def get(self, path: str, query: dict[str, str], read_s: float) -> urllib3.BaseHTTPResponse:
        """An answer with its body still to be read.

        Raises:
            ExpiredError, RefusedError, AbsentError, ApiError: as the server answered, or did not.
        """
        try:
            api = self._connected()
            method, url, headers, _, _ = api.param_serialize(
                "GET", path, query_params=list(query.items()), auth_settings=["BearerToken"]
            )
            headers["Accept"] = "application/json"
            answer: urllib3.BaseHTTPResponse = api.rest_client.pool_manager.request(
                method,
                url,
                headers=headers,
                preload_content=False,
                timeout=urllib3.Timeout(connect=CONNECT_S, read=read_s),
            )
            if answer.status != 200:
                body = answer.read()
                answer.release_conn()
                raise self._refusal(path, answer.status, body)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise ApiError(f"GET {path}: {error}") from error
        return answer

    def addresses_on(self, node: str) -> list[str] | None:
        """The addresses of the pods that are assigned to a node; None where there are no such pods.

        Raises:
            RefusedError, ApiError: as the server answered, or did not.
        """
        query = {"fieldSelector": f"spec.nodeName={node}", "resourceVersion": "0"}
        answer = self.get(PODS, query, LIST_READ_S)
        try:
            pods = _pods.decode(answer.read()).items
        except (urllib3.exceptions.HTTPError, OSError, msgspec.MsgspecError) as error:
            raise ApiError(f"GET {PODS}: {error}") from error
        finally:
            answer.release_conn()
        return [item.ip for pod in pods for item in pod.status.pod_ips or ()] if pods else None

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = client.ApiClient(self._configuration())
            return self._client

    def _configuration(self) -> Any:
        """Raises ApiError."""
        made = client.Configuration()
        try:
            if self._kubeconfig:
                config.load_kube_config(config_file=str(self._kubeconfig), client_configuration=made)
            else:
                _load_default(made, self._api_server)
        except (
            config.ConfigException,
            yaml.YAMLError,
            OSError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            # The client checks little of a kubeconfig's shape before it reaches into it.
            raise ApiError(f"no way to the API server: {error}") from error
        made.retries = False
        return made

    def _refusal(self, path: str, status: int, body: bytes) -> ApiError:
        message = f"GET {path}: {status} {_message(body)}".rstrip()
        if status == 410:
            return ExpiredError(message)
        if status == 401:
            with self._lock:
                self._client = None  # credentials are read again
        if status in (401, 403):
            return RefusedError(message)
        if status == 404:
            return AbsentError(message)
        return ApiError(message)


class Follower:
    """Lists one kind, then watches it, until it is told to stop."""

    def __init__(self, kind: Kind, server: Server, post: Post, stopping: threading.Event) -> None:
        self._kind = kind
        self._path, self._selectors = RESOURCES[kind]
        self._server = server
        self._post = post
        self._stopping = stopping
        self._decoder = msgspec.json.Decoder(type_of_kind[kind])
        self._known: dict[Key, str] = {}
        self._bad: dict[Key, Problem] = {}
        self._version = ""
        self._listed = False
        self._failing = False

    def run(self) -> None:
        backoff = Backoff(0.5)
        # "0" is any state that the server has at hand, and costs it least; after 410 only the newest will do.
        start = "0"
        while not self._stopping.is_set():
            began = time.monotonic()
            try:
                if not self._version:
                    self._list(start)
                    backoff.reset()
                self._watch()
                pause_s = 0.0
            except ExpiredError:
                log.info("watch-expired", kind=self._kind)
                self._version, start = "", ""
                pause_s = backoff.next_s()
            except ApiError as error:
                if isinstance(error, AbsentError) and self._kind in OPTIONAL:
                    self._listed_all(set(), "")
                    pause_s = ABSENT_S
                else:
                    self._report(error)
                    pause_s = backoff.next_s()
            if time.monotonic() - began > GOOD_WATCH_S:
                backoff.reset()
            elif not pause_s:
                pause_s = backoff.next_s()
            self._stopping.wait(pause_s)

    def silence(self) -> Problems:
        """What takes back everything that was said to be wrong."""
        return Problems(self._origin, ())

    def _list(self, start: str) -> None:
        """Raises ApiError."""
        seen: set[Key] = set()
        query = self._query(limit=str(PAGE), resourceVersion=start)
        while True:
            page = self._read_page(query)
            self._post([event for raw in page.items or () for event in self._changed(bytes(raw), seen)])
            if not page.metadata.next:
                break
            query = self._query(limit=str(PAGE), **{"continue": page.metadata.next})
        self._listed_all(seen, page.metadata.resource_version)

    def _listed_all(self, seen: set[Key], version: str) -> None:
        """Ends a list: what it did not have is gone. version: from where to watch, or "" to list again."""
        self._bad = {key: problem for key, problem in self._bad.items() if key in seen}
        events: list[Event] = [self._gone(key) for key in self._known.keys() - seen]
        if not self._listed:
            events.append(Synced(self._kind))
            self._listed = True
        self._version = version
        self._failing = False
        log.info("listed", kind=self._kind, objects=len(self._known))
        self._post([*events, self._problems()])

    def _read_page(self, query: dict[str, str]) -> _Page:
        answer = self._server.get(self._path, query, LIST_READ_S)
        try:
            return _page.decode(answer.read())
        except (urllib3.exceptions.HTTPError, OSError, msgspec.MsgspecError) as error:
            raise ApiError(f"GET {self._path}: {error}") from error
        finally:
            answer.release_conn()

    def _watch(self) -> None:
        """Returns when the server ends the watch, or says nothing for too long. Raises ApiError."""
        query = self._query(
            watch="true",
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=str(random.randint(WATCH_LEAST_S, WATCH_MOST_S)),
        )
        answer = self._server.get(self._path, query, WATCH_READ_S)
        try:
            if self._failing:
                self._failing = False
                self._post([self._problems()])
            for lines in _lines(answer):
                events = [event for line in lines for event in self._read_line(line)]
                if events:
                    self._post(events)
                if self._stopping.is_set():
                    return
        except urllib3.exceptions.ReadTimeoutError:
            log.info("watch-silent", kind=self._kind, seconds=WATCH_READ_S)
        except (urllib3.exceptions.HTTPError, OSError, msgspec.MsgspecError) as error:
            raise ApiError(f"watching {self._path}: {error}") from error
        finally:
            answer.close()

    def _read_line(self, line: bytes) -> list[Event]:
        event = _watch_event.decode(line)
        raw = bytes(event.object)
        if event.type == "ERROR":
            status = _status.decode(raw)
            if status.code == 410:
                raise ExpiredError(status.message)
            raise ApiError(f"watching {self._path}: {status.code} {status.message}")
        if event.type == "BOOKMARK":
            self._version = _item.decode(raw).metadata.resource_version
            return []
        events = self._removed(raw) if event.type == "DELETED" else self._changed(raw, set())
        self._version = _item.decode(raw).metadata.resource_version
        return events

    def _changed(self, raw: bytes, seen: set[Key]) -> list[Event]:
        """What an object of the wire makes; one that cannot be decoded is named, and stays as it was before."""
        meta = _item.decode(raw).metadata
        key = meta.namespace, meta.name
        seen.add(key)
        if self._known.get(key) == meta.resource_version:
            return []
        try:
            obj: Object = self._decoder.decode(raw)
        except msgspec.MsgspecError as error:
            self._bad[key] = Problem(label((self._kind, key)), str(error))
            return [self._problems()]
        self._known[key] = meta.resource_version
        mended = [self._problems()] if self._bad.pop(key, None) else []
        return [Changed(self._kind, key, obj), *mended]

    def _removed(self, raw: bytes) -> list[Event]:
        meta = _item.decode(raw).metadata
        key = meta.namespace, meta.name
        bad = key in self._bad
        gone = self._gone(key)
        return [gone, self._problems()] if bad else [gone]

    def _gone(self, key: Key) -> Changed:
        self._known.pop(key, None)
        self._bad.pop(key, None)
        return Changed(self._kind, key, None)

    def _report(self, error: ApiError) -> None:
        self._failing = True
        self._post([Problems(self._origin, (Problem(f"API server, {self._kind}", str(error)), *self._bad.values()))])

    def _problems(self) -> Problems:
        return Problems(self._origin, tuple(self._bad.values()))

    @property
    def _origin(self) -> str:
        return f"watch {self._kind}"

    def _query(self, **parameters: str) -> dict[str, str]:
        return parameters | self._selectors


def _lines(answer: urllib3.BaseHTTPResponse) -> Iterator[list[bytes]]:
    """The complete lines of each piece that arrives."""
    rest = b""
    for piece in answer.stream(65536):
        *lines, rest = (rest + piece).split(b"\n")
        yield [line for line in lines if line.strip()]


def _load_default(made: Any, api_server: str) -> None:
    try:
        config.load_incluster_config(client_configuration=made)
    except config.ConfigException:
        config.load_kube_config(client_configuration=made)
        return
    if api_server:
        _keep_address(made, api_server)


def _keep_address(made: Any, api_server: str) -> None:
    """Keeps the server's address: whenever the client reads the token again, it sets that anew, and its hook, too."""
    refresh = made.refresh_api_key_hook

    def refreshed(configuration: Any) -> None:
        refresh(configuration)
        configuration.host, configuration.refresh_api_key_hook = api_server, refreshed

    made.host, made.refresh_api_key_hook = api_server, refreshed


def _message(body: bytes) -> str:
    try:
        return _status.decode(body).message
    except msgspec.MsgspecError:
        return body[:200].decode(errors="replace")
