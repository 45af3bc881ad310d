# SPDX-License-Identifier: Apache-2.0
"""Nodes that are gone from the API while their pods run, step by step: what is passed on, and what is held back."""

import pytest

from bpf.prefixes import parse_range
from controller import cidr
from controller.departures import Departures
from controller.model import Kind, Node
from controller.source import Changed, Event, Synced
from controller.tests.objects import decoded_node, node

OLD, NEW = "10.244.1.0/24", "10.244.9.0/24"


def far(*cidrs: str) -> Changed:
    """The node `far`, with these pod ranges."""
    return Changed(Kind.NODE, ("", "far"), decoded_node(node("far", ["192.0.2.2"], list(cidrs))))


def near(*cidrs: str) -> Changed:
    return Changed(Kind.NODE, ("", "near"), decoded_node(node("near", ["192.0.2.3"], list(cidrs))))


def gone(name: str) -> Changed:
    return Changed(Kind.NODE, ("", name), None)


def shown(events: list[Event]) -> list[str]:
    """Each as NAME: RANGES, or NAME: gone."""
    lines = []
    for event in events:
        assert isinstance(event, Changed)
        ranges = " ".join(event.obj.spec.pod_cidrs) if isinstance(event.obj, Node) else "gone"
        lines.append(f"{event.key[1]}: {ranges}")
    return lines


@pytest.fixture
def departures() -> Departures:
    """Of the node `own`, which knows `far`."""
    found = Departures("own")
    assert shown(found.passed([far(OLD)])) == [f"far: {OLD}"]
    return found


def test_node_that_is_gone_stays_until_its_pods_are(departures: Departures) -> None:
    """Pods in other ranges, as those of the host's network are, count as well: they are on that node."""
    assert departures.passed([gone("far")]) == []
    assert departures.kept == ["far"]
    assert departures.settle("far", ["10.244.1.7"]) == []
    assert departures.settle("far", ["192.0.2.2"]) == []
    assert shown(departures.settle("far", None)) == ["far: gone"]
    assert departures.kept == []


def test_node_that_went_while_no_controller_was_here_stays_until_its_pods_are() -> None:
    """An earlier one remembered it; what the list has is not told twice, and what it claims is not kept."""
    remembered = [event.obj for event in (far(OLD), near(NEW)) if isinstance(event.obj, Node)]
    departures = Departures("own", remembered)
    other = Changed(Kind.NODE, ("", "other"), decoded_node(node("other", ["192.0.2.4"], [OLD])))
    assert shown(departures.passed([near(NEW)])) == [f"near: {NEW}"]
    *events, last = departures.passed([other, Synced(Kind.NODE)])
    assert shown(events) == [f"other: {OLD}", "far: "]
    assert last == Synced(Kind.NODE)
    assert departures.kept == ["far"]
    assert shown(departures.settle("far", None)) == ["far: gone"]


def test_node_that_came_back_otherwise_while_no_controller_was_here_has_both() -> None:
    """Its range of before is one of those that were passed on."""
    remembered = [event.obj for event in (far(OLD),) if isinstance(event.obj, Node)]
    departures = Departures("own", remembered)
    assert shown(departures.passed([far(NEW)])) == [f"far: {NEW} {OLD}"]
    assert departures.passed([Synced(Kind.NODE)]) == [Synced(Kind.NODE)]
    assert shown(departures.settle("far", ["10.244.9.2"])) == [f"far: {NEW}"]


def test_node_that_is_back_as_it_was_is_passed_on(departures: Departures) -> None:
    """Nothing is kept for it any longer."""
    departures.passed([gone("far")])
    assert shown(departures.passed([far(OLD)])) == [f"far: {OLD}"]
    assert departures.kept == []
    assert shown(departures.passed([gone("far")])) == []


def test_node_that_is_back_with_another_range_has_both_while_pods_are_in_the_old(departures: Departures) -> None:
    """It comes without any first: the range is assigned later."""
    departures.passed([gone("far")])
    assert shown(departures.passed([far()])) == [f"far: {OLD}"]
    assert shown(departures.passed([far(NEW)])) == [f"far: {NEW} {OLD}"]
    assert departures.settle("far", ["10.244.1.7", "10.244.9.2"]) == []
    assert shown(departures.settle("far", ["10.244.9.2"])) == [f"far: {NEW}"]
    assert departures.kept == []


def test_node_that_is_back_without_pods_has_its_own_range_alone(departures: Departures) -> None:
    """As one that was set up anew under its name."""
    departures.passed([gone("far")])
    departures.passed([far(NEW)])
    assert shown(departures.settle("far", None)) == [f"far: {NEW}"]


def test_range_that_another_node_claims_is_its(departures: Departures) -> None:
    """First it is taken from the one, then given to the other; of an absent node nothing is left then."""
    departures.passed([gone("far")])
    assert shown(departures.passed([near("10.244.0.0/22")])) == ["far: gone", "near: 10.244.0.0/22"]
    assert departures.kept == []


def test_range_that_another_node_claims_leaves_the_rest(departures: Departures) -> None:
    """The other family's, say; and what the node has now."""
    departures.passed([far(OLD, "fd00::/64"), gone("far")])
    assert shown(departures.passed([near(OLD)])) == ["far: fd00::/64", f"near: {OLD}"]
    assert shown(departures.passed([far(NEW)])) == [f"far: {NEW} fd00::/64"]
    assert shown(departures.passed([near("fd00::/60")])) == [f"far: {NEW}", f"near: fd00::/60 {OLD}"]


def test_range_that_is_lost_is_not_found_in_the_older_field(departures: Departures) -> None:
    """The API names a Node's first range in podCIDR as well."""
    manifest = node("far", ["192.0.2.2"], [OLD])
    manifest["spec"]["podCIDR"] = OLD
    departures.passed([Changed(Kind.NODE, ("", "far"), decoded_node(manifest)), near(OLD)])
    (event,) = departures.passed([gone("far")])
    assert isinstance(event, Changed)
    assert isinstance(event.obj, Node)
    assert event.obj.spec.ranges == []


def test_range_that_another_node_had_already_is_not_kept(departures: Departures) -> None:
    """A list that makes up for a watch that was cut tells first what there is, then what is gone."""
    departures.passed([near(OLD)])
    assert shown(departures.passed([gone("far")])) == ["far: "]
    assert departures.kept == ["far"]


def test_nodes_that_have_changed_ranges_keep_neither(departures: Departures) -> None:
    """Whichever is told first."""
    departures.passed([near(NEW)])
    assert shown(departures.passed([far(NEW), near(OLD)]))[-1] == f"near: {OLD}"
    assert shown(departures.settle("far", ["10.244.1.1"])) == []


def test_range_that_our_node_claims_is_its(departures: Departures) -> None:
    """It was registered anew, and got what another node had before."""
    departures.passed([gone("far")])
    own = Changed(Kind.NODE, ("", "own"), decoded_node(node("own", ["192.0.2.1"], [OLD])))
    assert shown(departures.passed([own])) == ["far: gone", f"own: {OLD}"]


def test_own_node_and_everything_else_is_passed_as_it_is(departures: Departures) -> None:
    """This node keeps its own by itself, and is to know that its Node is gone."""
    own = Changed(Kind.NODE, ("", "own"), decoded_node(node("own", ["192.0.2.1"], [NEW])))
    events: list[Event] = [own, gone("own"), Synced(Kind.NODE)]
    assert departures.passed(events) == events
    assert departures.passed([gone("unknown")]) == [gone("unknown")]


def test_range_that_makes_no_sense_is_kept_for_nobody(departures: Departures) -> None:
    """It is passed on, for who names such things."""
    assert shown(departures.passed([far("nonsense")])) == [f"far: nonsense {OLD}"]
    departures.passed([gone("far")])
    assert shown(departures.passed([far(NEW)])) == [f"far: {NEW} {OLD}"]


def test_range_is_parsed_once_however_many_nodes_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the first list, and each time that a Node is seen again."""
    parsed: list[str] = []
    monkeypatch.setattr(cidr, "parse_range", lambda text: parsed.append(text) or parse_range(text))
    ranges = [f"203.0.113.{4 * index}/30" for index in range(64)]
    events = [Changed(Kind.NODE, ("", text), decoded_node(node(text, [], [text]))) for text in ranges]
    found = Departures("own")
    assert found.passed([*events, *events]) == [*events, *events]
    assert parsed == ranges
