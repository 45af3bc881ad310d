# SPDX-License-Identifier: Apache-2.0
"""One kind of the Kubernetes API: listed, then watched, decoded straight from the wire.

The client's informers are not used. What is in force stays while the API server is away; a deletion that was missed
meanwhile shows in the next list.
"""

import random
import threading
import time
from collections.abc import Iterator

import msgspec
import structlog
import urllib3

from controller.apiserver import LIST_READ_S, PODS, ApiServer, decode_status
from controller.errors import AbsentError, ApiError, ExpiredError
from controller.manifests import label
from controller.model import OPTIONAL, Key, Kind, Object, type_of_kind
from controller.pacing import Backoff
from controller.services import LABEL_HEADLESS, LABEL_PROXY
from controller.source import Changed, Event, Post, Problem, Problems, Synced

log = structlog.get_logger()

PAGE = 500
# The server sends a bookmark about once a minute: a watch that is silent for longer than this is dead.
WATCH_READ_S = 150
# Watches end by themselves after a while, at different times on different nodes.
WATCH_LEAST_S, WATCH_MOST_S = 300, 600
# A watch that lasted this long was a good one: the next failure is waited out from the shortest pause again.
GOOD_WATCH_S = 5
# How often a kind is asked for that the server does not have: until it is of another version.
ABSENT_S = 300.0

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


# Stands for objects that do not even say who they are.
NAMELESS: Key = ("", "")

_page = msgspec.json.Decoder(_Page)
_item = msgspec.json.Decoder(_Item)
_watch_event = msgspec.json.Decoder(_WatchEvent)


class Follower:
    """Lists one kind, then watches it, until it is told to stop."""

    def __init__(self, kind: Kind, server: ApiServer, post: Post, stopping: threading.Event) -> None:
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
        # One without a name may be any of those that are missing.
        missing = set() if NAMELESS in seen else self._known.keys() - seen
        events: list[Event] = [self._gone(key) for key in missing]
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
            status = decode_status(raw)
            if status.code == 410:
                raise ExpiredError(status.message)
            raise ApiError(f"watching {self._path}: {status.code} {status.message}")
        if event.type == "BOOKMARK":
            self._version = _item.decode(raw).metadata.resource_version
            return []
        try:
            version = _item.decode(raw).metadata.resource_version
        except msgspec.MsgspecError:
            return self._changed(raw, set())  # names it; the version is that of the next one
        events = self._removed(raw) if event.type == "DELETED" else self._changed(raw, set())
        self._version = version
        return events

    def _changed(self, raw: bytes, seen: set[Key]) -> list[Event]:
        """What an object of the wire makes; one that cannot be decoded is named, and stays as it was before."""
        try:
            meta = _item.decode(raw).metadata
        except msgspec.MsgspecError as error:
            seen.add(NAMELESS)
            self._bad[NAMELESS] = Problem(self._kind, f"one without a name: {error}")
            return [self._problems()]
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
