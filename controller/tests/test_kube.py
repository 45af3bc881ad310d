# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes source against a fake API server: lists, watches, and how they fail."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes.config import incluster_config

from controller import follower, kube, standins
from controller.kube import KubernetesSource
from controller.model import OPTIONAL, REQUIRED, Kind, Node, Service
from controller.pacing import Backoff
from controller.tests.apiserver import NODES, PODS, SERVICE_CIDRS, SERVICES, FakeApi, Query
from controller.tests.collector import Collector
from controller.tests.objects import JSON, node, pod, service, service_cidr


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of a fiftieth of a second instead of half a second and more."""
    monkeypatch.setattr(follower, "Backoff", lambda _: Backoff(0.02, 0.05))
    monkeypatch.setattr(kube, "SETTLE_S", 0.02)


@pytest.fixture
def api() -> Iterator[FakeApi]:
    server = FakeApi()
    try:
        server.put(SERVICES, service("a"))
        yield server
    finally:
        server.close()


@pytest.fixture
def seen(api: FakeApi, tmp_path: Path) -> Iterator[Collector]:
    """What a source that follows `api` posts, from the start."""
    with following(api, tmp_path) as collector:
        yield collector


@contextmanager
def following(api: FakeApi, directory: Path) -> Iterator[Collector]:
    """A source that follows `api`, as the one that did so before from the same directory; what it posts."""
    collector = Collector()
    source = KubernetesSource(api.kubeconfig(directory), memory=directory / "nodes.json")
    source.start(collector.post)
    try:
        yield collector
    finally:
        source.stop()


def _listed(seen: Collector) -> bool:
    return set(seen.synced) >= set(REQUIRED)


def test_objects_are_listed_then_watched(api: FakeApi, seen: Collector) -> None:
    """Added, changed and deleted ones are posted as they come."""
    seen.wait(_listed)
    assert seen.names() == {"a"}
    api.put(SERVICES, service("b"))
    api.put("/api/v1/nodes", node("n", [], []))
    seen.wait(lambda now: now.names() == {"a", "b"} and now.names(Kind.NODE) == {"n"})
    api.put(SERVICES, service("b", ports=[{"port": 81}]))
    seen.wait(lambda now: _ports(now, "b") == [81])
    api.delete(SERVICES, "a")
    seen.wait(lambda now: now.names() == {"b"})


def _ports(seen: Collector, name: str) -> list[int]:
    found = seen.objects.get((Kind.SERVICE, name))
    return [port.port for port in found.spec.ports] if isinstance(found, Service) else []


def test_selectors_and_credentials_are_sent(api: FakeApi, seen: Collector) -> None:
    """The API server filters what nobody here needs."""
    tokens = []
    api.behave = lambda handler, *_: tokens.append(handler.headers["Authorization"])  # type: ignore[func-returns-value]
    seen.wait(_listed)
    seen.wait(
        lambda _: api.watching("/apis/discovery.k8s.io/v1/endpointslices") > 0 and api.watching(SERVICE_CIDRS) > 0
    )
    selectors = {path: query.get("labelSelector") for path, query in api.requests}
    assert selectors == {
        SERVICES: "!service.kubernetes.io/service-proxy-name",
        "/apis/discovery.k8s.io/v1/endpointslices": "!service.kubernetes.io/headless",
        "/api/v1/nodes": None,
        SERVICE_CIDRS: None,
    }
    assert set(tokens) <= {"Bearer secret"}


def test_long_list_is_read_in_pages(api: FakeApi, seen: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each page by the token of the one before."""
    seen.wait(_listed)
    monkeypatch.setattr(follower, "PAGE", 2)
    for name in "bcdefg":
        api.put(SERVICES, service(name))
    api.send(SERVICES, "ERROR", {"code": 410, "message": "too old"})
    seen.wait(lambda now: len(now.names()) == 7)
    seen.wait(lambda _: any(query.get("continue") == "6" for _, query in api.requests))


def test_watch_expired_lists_again_and_finds_what_was_missed(api: FakeApi, seen: Collector) -> None:
    """410 in the watch: level-triggered, a deletion that nobody told of is applied."""
    seen.wait(lambda _: api.watching(SERVICES) > 0)
    api.delete(SERVICES, "a", tell=False)
    api.send(SERVICES, "ERROR", {"code": 410, "message": "too old resource version"})
    seen.wait(lambda now: not now.names())
    lists = [query for path, query in api.requests if path == SERVICES and "watch" not in query]
    assert [query.get("resourceVersion") for query in lists] == ["0", None]


def test_object_without_metadata_is_named_and_harms_no_other(api: FakeApi, seen: Collector) -> None:
    """In a watch, which goes on; and in a list, where any of those that are missing may be it."""
    seen.wait(lambda _: api.watching(SERVICES) > 0)
    api.send(SERVICES, "ADDED", {"kind": "Service", "spec": {}})
    api.put(SERVICES, service("b"))
    seen.wait(lambda now: now.names() == {"a", "b"} and any("without a name" in one for one in now.messages()))
    assert api.watching(SERVICES) == 1
    items = [
        {"metadata": None},
        {**service("b"), "metadata": {"name": "b", "namespace": "shop", "resourceVersion": "9"}},
    ]

    def behave(handler: Any, path: str, query: Query) -> bool:
        if path != SERVICES or "watch" in query:
            return False
        handler.reply(200, {"metadata": {"resourceVersion": str(api.version)}, "items": items})
        return True

    api.behave = behave
    api.send(SERVICES, "ERROR", {"code": 410, "message": "too old"})
    seen.wait(lambda _: api.watching(SERVICES) > 1)
    assert seen.names() == {"a", "b"}
    del items[0]
    api.send(SERVICES, "ERROR", {"code": 410, "message": "too old"})
    seen.wait(lambda now: now.names() == {"b"} and not now.messages())


def test_watch_answered_410_lists_again(api: FakeApi, seen: Collector) -> None:
    """410 as the status of the watch itself."""
    seen.wait(lambda _: api.watching(SERVICES) > 0)
    refused: list[str] = []

    def once(handler: Any, path: str, query: Query) -> bool:
        if path == SERVICES and "watch" in query and not refused:
            refused.append(path)
            return bool(handler.refuse(410, "expired"))
        return False

    api.behave = once
    api.put(SERVICES, service("b"))
    api.cut_watches()
    seen.wait(lambda now: now.names() == {"a", "b"} and bool(refused))


def test_connection_lost_resumes_where_it_was(api: FakeApi, seen: Collector) -> None:
    """The next watch starts from the last version seen: nothing is listed again, nothing is lost."""
    api.put(SERVICES, service("b"))
    seen.wait(lambda now: now.names() == {"a", "b"} and api.watching(SERVICES) > 0)
    changes = seen.changes
    api.cut_watches()
    api.put(SERVICES, service("c"))
    seen.wait(lambda now: now.names() == {"a", "b", "c"})
    assert seen.changes == changes + 1
    assert sum(1 for path, query in api.requests if path == SERVICES and "watch" not in query) == 1


def test_bookmark_moves_the_version_to_resume_from(api: FakeApi, seen: Collector) -> None:
    """After a quiet time the version of the last change would be too old."""
    seen.wait(lambda _: api.watching(SERVICES) > 0)
    api.send(SERVICES, "BOOKMARK", {"metadata": {"resourceVersion": "4711"}})
    time.sleep(0.1)
    api.cut_watches()
    seen.wait(lambda _: api.watching(SERVICES) > 1)
    assert [query for path, query in api.requests if path == SERVICES][-1]["resourceVersion"] == "4711"


def test_forbidden_is_named_and_tried_again(api: FakeApi, seen: Collector) -> None:
    """What is in force stays; the other kinds go on."""
    seen.wait(_listed)
    api.behave = lambda handler, path, _: path == SERVICES and handler.refuse(403, "services is forbidden")
    api.send(SERVICES, "ERROR", {"code": 410, "message": "too old"})
    seen.wait(lambda now: any("403 services is forbidden" in message for message in now.messages()))
    api.put("/api/v1/nodes", node("n", [], []))
    seen.wait(lambda now: now.names(Kind.NODE) == {"n"})
    assert seen.names() == {"a"}
    api.behave = lambda *_: False
    api.put(SERVICES, service("b"))
    seen.wait(lambda now: now.names() == {"a", "b"} and not now.messages())


def test_unauthorized_reads_the_credentials_again(api: FakeApi, seen: Collector, tmp_path: Path) -> None:
    """A token that was replaced in the file is taken up."""
    seen.wait(lambda _: api.watching(SERVICES) > 0)
    api.behave = lambda handler, *_: (
        handler.headers["Authorization"] != "Bearer fresh" and handler.refuse(401, "Unauthorized")
    )
    api.cut_watches()
    seen.wait(lambda now: any("401" in message for message in now.messages()))
    path = tmp_path / "kubeconfig"
    path.write_text(path.read_text().replace("secret", "fresh"))
    api.put(SERVICES, service("b"))
    seen.wait(lambda now: now.names() == {"a", "b"})


def test_server_slow_or_silent_keeps_what_is_in_force(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that says nothing is given up after the read time-out, and begun again."""
    monkeypatch.setattr(follower, "WATCH_READ_S", 0.3)
    collector = Collector()
    source = KubernetesSource(api.kubeconfig(tmp_path))
    source.start(collector.post)
    try:
        collector.wait(lambda _: api.watching(SERVICES) > 2)
        assert collector.names() == {"a"}
    finally:
        source.stop()


def test_server_away_at_start_is_named_and_nothing_synced(tmp_path: Path) -> None:
    """Not one kind is listed, so nothing will be programmed."""
    server = FakeApi()
    path = server.kubeconfig(tmp_path)
    server.close()
    collector = Collector()
    source = KubernetesSource(path)
    source.start(collector.post)
    try:
        collector.wait(lambda now: len(now.messages()) == len(REQUIRED + OPTIONAL))
        assert not collector.synced
    finally:
        source.stop()


def test_service_account_is_used_at_the_address_given(
    api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not at the one that Kubernetes tells pods; also when the token has been read again."""
    (tmp_path / "token").write_text("secret")
    (tmp_path / "ca.crt").write_text("unused")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "192.0.2.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    collector = Collector()
    source = KubernetesSource(None, api.url)
    source.start(collector.post)
    try:
        collector.wait(lambda now: now.names() == {"a"})
        api.cut_watches()
        api.put(SERVICES, service("b"))
        collector.wait(lambda now: now.names() == {"a", "b"})
    finally:
        source.stop()


def test_node_that_is_gone_stays_until_the_server_knows_no_pod_of_it(api: FakeApi, seen: Collector) -> None:
    """It is asked for pods of that node alone, and while it does not answer, the node stays."""
    api.put(NODES, node("far", ["192.0.2.2"], ["10.244.1.0/24"]))
    seen.wait(lambda now: (Kind.NODE, "far") in now.objects)
    api.put(PODS, {"metadata": {"name": "p"}, "status": {"podIPs": [{"ip": "10.244.1.7"}]}})
    api.delete(NODES, "far")
    seen.wait(lambda _: len(asked(api)) > 1)
    assert asked(api)[0]["fieldSelector"] == "spec.nodeName=far"
    for status in (500, 401, 403):
        api.behave = lambda handler, path, _, status=status: path == PODS and handler.refuse(status, "no")  # type: ignore[misc]
        before = len(asked(api))
        seen.wait(lambda _, before=before: len(asked(api)) > before + 1)  # type: ignore[misc]
        assert (Kind.NODE, "far") in seen.objects
    api.behave = lambda *_: False
    api.delete(PODS, "p")
    seen.wait(lambda now: (Kind.NODE, "far") not in now.objects)


def test_node_that_went_while_nobody_followed_stays_until_its_pods_are(api: FakeApi, tmp_path: Path) -> None:
    """It is told before Nodes count as listed: until then nothing is taken away."""
    api.put(NODES, node("far", ["192.0.2.2"], ["10.244.1.0/24"]))
    with following(api, tmp_path) as earlier:
        earlier.wait(_listed)
    api.put(PODS, {"metadata": {"name": "p"}, "status": {"podIPs": [{"ip": "10.244.1.7"}]}})
    api.delete(NODES, "far")
    with following(api, tmp_path) as seen:
        seen.wait(_listed)
        assert _ranges(seen, "far") == ["10.244.1.0/24"]
        api.delete(PODS, "p")
        seen.wait(lambda now: (Kind.NODE, "far") not in now.objects)


def test_pods_are_followed_while_a_node_lacks_ranges(api: FakeApi, seen: Collector) -> None:
    """By a watch, which resumes, and ends when the node has its ranges; the deletion that it missed shows in a list."""
    seen.wait(_listed)
    api.put(PODS, pod("a", "far", "10.244.1.7"))
    api.put(NODES, node("near", ["192.0.2.3"], ["10.244.2.0/24"]))
    seen.wait(lambda now: (Kind.NODE, "near") in now.objects)
    assert not asked(api)
    api.put(NODES, old(node("far", ["192.0.2.2"], [])))
    seen.wait(lambda now: _ranges(now, "far") == ["10.244.1.7/32"])
    api.put(PODS, pod("b", "far", "10.244.1.8"))
    seen.wait(lambda now: _ranges(now, "far") == ["10.244.1.7/32", "10.244.1.8/32"])
    api.delete(PODS, "a", tell=False)
    api.send(PODS, "ERROR", {"code": 410, "message": "too old resource version"})
    seen.wait(lambda now: _ranges(now, "far") == ["10.244.1.8/32"] and api.watching(PODS) > 1)
    api.put(NODES, node("far", ["192.0.2.2"], ["10.244.1.0/24"]))
    seen.wait(lambda now: _ranges(now, "far") == ["10.244.1.0/24"])
    api.send(PODS, "BOOKMARK", {"metadata": {"resourceVersion": "4711"}})
    time.sleep(0.1)
    asked_before = len(asked(api))
    api.cut_watches()
    time.sleep(0.2)
    assert len(asked(api)) == asked_before
    assert {query["fieldSelector"] for query in asked(api)} == {
        "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed"
    }


def test_pods_are_followed_again_when_a_node_needs_it_again(api: FakeApi, seen: Collector) -> None:
    """From a new list."""
    api.put(NODES, old(node("far", ["192.0.2.2"], [])))
    seen.wait(lambda _: api.watching(PODS) == 1)
    api.delete(NODES, "far")
    seen.wait(lambda now: (Kind.NODE, "far") not in now.objects)
    api.send(PODS, "BOOKMARK", {"metadata": {"resourceVersion": "4711"}})
    time.sleep(0.1)
    api.put(PODS, pod("a", "far", "10.244.1.7"))
    api.put(NODES, old(node("far", ["192.0.2.2"], [])))
    seen.wait(lambda now: _ranges(now, "far") == ["10.244.1.7/32"])


def test_node_that_is_new_has_pods_looked_at_when_its_time_is_over(
    api: FakeApi, seen: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though nothing changes meanwhile."""
    monkeypatch.setattr(standins, "PATIENCE_S", 0.3)
    api.put(PODS, pod("a", "far", "10.244.1.7"))
    api.put(NODES, node("far", ["192.0.2.2"], []))
    seen.wait(lambda now: (Kind.NODE, "far") in now.objects)
    assert not asked(api)
    seen.wait(lambda now: _ranges(now, "far") == ["10.244.1.7/32"])


def test_start_waits_for_pods_where_a_node_lacks_ranges(api: FakeApi, tmp_path: Path) -> None:
    """What an earlier controller wrote of them must not be taken for old; why it waits is named."""
    api.put(NODES, old(node("far", ["192.0.2.2"], [])))
    api.put(PODS, pod("a", "far", "10.244.1.7"))
    api.behave = lambda handler, path, _: path == PODS and handler.refuse(403, "pods is forbidden")
    collector = Collector()
    source = KubernetesSource(api.kubeconfig(tmp_path))
    source.start(collector.post)
    try:
        collector.wait(lambda now: any("403 pods is forbidden" in message for message in now.messages()))
        assert Kind.NODE not in collector.synced
        api.behave = lambda *_: False
        collector.wait(lambda now: Kind.NODE in now.synced and not now.messages())
        assert _ranges(collector, "far") == ["10.244.1.7/32"]
    finally:
        source.stop()


def test_kind_that_the_server_does_not_have_is_an_empty_list(
    api: FakeApi, seen: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for again, seldom; no problem, and nothing waits for it."""
    monkeypatch.setattr(follower, "ABSENT_S", 0.05)
    api.put(SERVICE_CIDRS, service_cidr("kubernetes", "10.96.0.0/16"))
    seen.wait(lambda now: now.names(Kind.SERVICE_CIDR) == {"kubernetes"})
    api.behave = lambda handler, path, _: path == SERVICE_CIDRS and handler.refuse(404, "not found")
    api.cut_watches()
    seen.wait(lambda now: not now.names(Kind.SERVICE_CIDR) and not now.messages())
    api.behave = lambda *_: False
    seen.wait(lambda now: now.names(Kind.SERVICE_CIDR) == {"kubernetes"})


def test_kind_that_is_required_is_never_taken_for_empty(api: FakeApi, seen: Collector) -> None:
    """404 of what stands before the API server, say."""
    seen.wait(_listed)
    api.behave = lambda handler, path, _: path == SERVICES and handler.refuse(404, "not found")
    api.send(SERVICES, "ERROR", {"code": 410, "message": "too old"})
    seen.wait(lambda now: any("404 not found" in message for message in now.messages()))
    assert seen.names() == {"a"}


def old(manifest: JSON) -> JSON:
    """The object as one that was made long ago."""
    return manifest | {"metadata": manifest["metadata"] | {"creationTimestamp": "2026-01-02T03:04:05Z"}}


def _ranges(seen: Collector, name: str) -> list[str]:
    found = seen.objects.get((Kind.NODE, name))
    return found.spec.pod_cidrs if isinstance(found, Node) else []


def asked(api: FakeApi) -> list[Query]:
    """The questions for pods."""
    return [query for path, query in api.requests if path == PODS]


def test_no_configuration_is_named(tmp_path: Path) -> None:
    """The message says which file."""
    collector = Collector()
    source = KubernetesSource(tmp_path / "absent")
    source.start(collector.post)
    try:
        collector.wait(lambda now: any("no way to the API server" in message for message in now.messages()))
    finally:
        source.stop()


def test_object_that_cannot_be_decoded_stays_as_it_was(api: FakeApi, seen: Collector) -> None:
    """It is named until it can be."""
    seen.wait(lambda now: _listed(now) and api.watching(SERVICES) > 0)
    bad = service("a", ports=[{"port": "x"}])
    api.put(SERVICES, bad)
    seen.wait(lambda now: bool(now.messages()))
    assert _ports(seen, "a") == [80]
    api.put(SERVICES, service("a", ports=[{"port": 81}]))
    seen.wait(lambda now: _ports(now, "a") == [81] and not now.messages())


def test_object_that_cannot_be_decoded_is_forgotten_when_it_is_deleted(api: FakeApi, seen: Collector) -> None:
    """Its problem goes with it, not with the next list."""
    seen.wait(lambda now: _listed(now) and api.watching(SERVICES) > 0)
    api.put(SERVICES, service("a", ports=[{"port": "x"}]))
    seen.wait(lambda now: bool(now.messages()))
    api.delete(SERVICES, "a")
    seen.wait(lambda now: not now.names() and not now.messages())


@pytest.mark.parametrize("content", ["clusters: [", "- nonsense", "clusters: 7\ncontexts: {}\ncurrent-context: x"])
def test_malformed_kubeconfig_is_named(tmp_path: Path, content: str) -> None:
    """Whatever is wrong with it, the thread lives and says so."""
    path = tmp_path / "kubeconfig"
    path.write_text(content)
    collector = Collector()
    source = KubernetesSource(path)
    source.start(collector.post)
    try:
        collector.wait(lambda now: len(now.messages()) == len(REQUIRED + OPTIONAL))
        assert all("no way to the API server" in message for message in collector.messages())
    finally:
        source.stop()
