# SPDX-License-Identifier: Apache-2.0
"""kube-proxy beside us: what is reported, and when it is over."""

from collections.abc import Sequence

import pytest

from controller import kubeproxy, routes, web
from controller.source import Event, Problems


def reported(monkeypatch: pytest.MonkeyPatch, mode: str, chains: list[str]) -> list[str]:
    """The messages of one look."""
    monkeypatch.setattr(kubeproxy, "processes", list)
    monkeypatch.setattr(web, "get", lambda *_: (200, mode))
    monkeypatch.setattr(routes, "firewall_chains", lambda **_: chains)
    posted: list[Event] = []

    class Enough(Exception):
        pass

    def post(events: Sequence[Event]) -> None:
        posted.extend(events)

    def pause(_: float) -> None:
        raise Enough

    with pytest.raises(Enough):
        kubeproxy.watch(post, "127.0.0.1:10249", pause)
    (problems,) = posted
    assert isinstance(problems, Problems)
    return [problem.message for problem in problems.problems]


def test_kube_proxy_that_answers_is_reported_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the address of the metrics, and by its rules, each in words of its own."""
    messages = reported(monkeypatch, "nftables", ["kube-proxy"])
    assert [message.split(": kubectl")[0] for message in messages] == [
        "answers at 127.0.0.1:10249: nftables",
        "its rules are there: kube-proxy",
    ]
    assert all("--cleanup" in message for message in messages)


def test_nothing_of_kube_proxy_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own answer at that address is not taken for it; what was reported before is over."""
    assert reported(monkeypatch, "calico-ebpf", []) == []
