# SPDX-License-Identifier: Apache-2.0
"""/healthz and /livez: kube-proxy's fields, and when each fails."""

import json
from typing import Any

import pytest

from controller.health import NEVER, Health


def _asked(health: Health, path: str) -> tuple[int, dict[str, Any]]:
    found = health.answer(path)
    assert found.content_type == "application/json"
    return found.status, json.loads(found.body)


@pytest.fixture
def health() -> Health:
    """One that has written everything, on a node in order."""
    made = Health()
    made.connected = True
    made.synced()
    return made


def test_answers_have_the_fields_of_kube_proxy(health: Health) -> None:
    """And what they say while all is well; livez says nothing of the node."""
    status, told = _asked(health, "/healthz")
    assert (status, told["nodeEligible"], told["healthy"]) == (200, True, True)
    assert told["lastUpdated"] == told["currentTime"]
    assert {family: one["healthy"] for family, one in told["status"].items()} == {"IPv4": True, "IPv6": True}
    status, told = _asked(health, "/livez")
    assert status == 200
    assert set(told) == {"lastUpdated", "currentTime", "healthy", "status"}


def test_change_that_waits_too_long_fails_both(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time is that of the oldest, and lastUpdated that of the last write."""
    updated = _asked(health, "/livez")[1]["status"]["IPv4"]["lastUpdated"]
    health.waiting()
    assert [_asked(health, path)[0] for path in ("/healthz", "/livez")] == [200, 200]
    monkeypatch.setattr("controller.health.TIMEOUT_S", 0.0)
    for path in ("/healthz", "/livez"):
        health.waiting()
        status, told = _asked(health, path)
        assert (status, told["healthy"], told["lastUpdated"]) == (503, False, updated)
        assert told["status"]["IPv6"] == {"lastUpdated": updated, "healthy": False}
    health.synced()
    assert [_asked(health, path)[0] for path in ("/healthz", "/livez")] == [200, 200]


def test_change_that_comes_to_nothing_does_not_wait(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was looked at, and there was nothing to write."""
    monkeypatch.setattr("controller.health.TIMEOUT_S", 0.0)
    health.waiting()
    health.idle()
    assert _asked(health, "/livez")[0] == 200


def test_node_that_is_going_fails_healthz_alone(health: Health) -> None:
    """Load balancers should leave; kubelet has no reason to restart the controller."""
    health.eligible = False
    status, told = _asked(health, "/healthz")
    assert (status, told["nodeEligible"], told["healthy"]) == (503, False, True)
    assert _asked(health, "/livez")[0] == 200


def test_start_fails_healthz_alone() -> None:
    """What was never written was never updated."""
    status, told = _asked(Health(), "/healthz")
    assert (status, told["lastUpdated"]) == (503, NEVER)
    assert "status" not in told
    assert _asked(Health(), "/livez")[0] == 200
