# SPDX-License-Identifier: Apache-2.0
"""Nodes without pod ranges, step by step: when pods are wanted, and what stands in for the ranges."""

from datetime import UTC, datetime

import pytest

from bpf.address import packed
from controller.claims import Claims
from controller.departures import Departures
from controller.model import Kind, Node
from controller.source import Changed, Event, Problems, Synced
from controller.standins import PATIENCE_S, StandIns
from controller.tests.objects import decoded_node, decoded_pod, node, pod

RANGE = "10.244.1.0/24"
NOW = datetime(2026, 1, 2, 12, 0, tzinfo=UTC).timestamp()
LISTED = Synced(Kind.POD)


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def found(clock: Clock) -> StandIns:
    return StandIns("own", clock)


def seen(name: str, *cidrs: str, age_s: float | None = 3600) -> Changed:
    """A Node with these ranges, made so long before the test began."""
    manifest = node(name, ["192.0.2.2"], list(cidrs))
    if age_s is not None:
        manifest["metadata"]["creationTimestamp"] = datetime.fromtimestamp(NOW - age_s, UTC).isoformat()
    return Changed(Kind.NODE, ("", name), decoded_node(manifest))


def gone(name: str) -> Changed:
    return Changed(Kind.NODE, ("", name), None)


def runs(name: str, on: str, *addresses: str, **spec: bool) -> Changed:
    return Changed(Kind.POD, ("shop", name), decoded_pod(pod(name, on, *addresses, **spec)))


def ended(name: str) -> Changed:
    return Changed(Kind.POD, ("shop", name), None)


def shown(events: list[Event]) -> list[str]:
    """Each as NAME: RANGES, NAME: gone, the kind that is listed, or the messages of problems."""
    lines = []
    for event in events:
        if isinstance(event, Problems):
            lines.append(f"{event.origin}: {', '.join(one.message for one in event.problems) or 'well'}")
            continue
        if isinstance(event, Synced):
            lines.append(str(event.kind))
            continue
        assert isinstance(event, Changed)
        ranges = " ".join(event.obj.spec.pod_cidrs) if isinstance(event.obj, Node) else "gone"
        lines.append(f"{event.key[1]}: {ranges}".rstrip())
    return lines


def test_node_with_ranges_is_passed_on_and_no_pod_wanted(found: StandIns) -> None:
    """Whatever its age; what it had is not looked at."""
    events: list[Event] = [seen("far", RANGE), Synced(Kind.SERVICE), seen("far", "10.244.9.0/24"), gone("far")]
    assert found.passed(events) == events
    assert (found.wanted, found.due_s) == (False, None)


def test_new_node_is_given_time_for_its_ranges(found: StandIns, clock: Clock) -> None:
    """A normal cluster's nodes have them within a second: nobody is to follow pods for that."""
    assert shown(found.passed([seen("far", age_s=1)])) == ["far:"]
    assert (found.wanted, found.due_s) == (False, PATIENCE_S - 1)
    clock.now += 1
    found.passed([seen("far", RANGE, age_s=1)])
    clock.now += 3600
    assert found.passed([]) == []
    assert (found.wanted, found.due_s) == (False, None)


def test_node_without_ranges_for_long_has_its_pods_addresses(found: StandIns, clock: Clock) -> None:
    """Of both families; those of other nodes, and of the host's network, are not its."""
    found.passed([seen("far", age_s=1), Synced(Kind.NODE)])
    clock.now += PATIENCE_S - 1
    assert found.passed([]) == []
    assert found.wanted
    assert found.passed([runs("a", "far", "203.0.113.1", "2001:db8:b::1"), runs("x", "other", "203.0.113.9")]) == []
    assert found.passed([runs("h", "far", "192.0.2.2", hostNetwork=True)]) == []
    assert shown(found.passed([LISTED])) == ["far: 2001:db8:b::1/128 203.0.113.1/32"]


def test_node_that_is_old_waits_for_nothing(found: StandIns) -> None:
    """A controller that starts anew finds it in its first list; it is passed on first, for its own addresses."""
    assert shown(found.passed([seen("far")])) == ["far:"]
    assert found.wanted


@pytest.mark.parametrize(
    ("age_s", "due_s"),
    [(None, PATIENCE_S), (-3600, PATIENCE_S), (4, PATIENCE_S - 4)],
    ids=["of unknown age", "from the future", "of known age"],
)
def test_node_waits_for_its_ranges_as_long_as_others_at_most(
    found: StandIns, clock: Clock, age_s: float | None, due_s: float
) -> None:
    """Where this node's clock is behind, too; each time that it is seen it does not begin anew."""
    found.passed([seen("far", age_s=age_s)])
    assert found.due_s == due_s
    clock.now += due_s
    found.passed([seen("far", age_s=age_s)])
    assert found.wanted


def test_clock_that_was_set_back_makes_nobody_wait(found: StandIns, clock: Clock) -> None:
    """It no longer tells how long a node has had no ranges."""
    found.passed([seen("far", age_s=1)])
    clock.now -= 3600
    found.passed([])
    assert found.wanted


@pytest.fixture
def followed(found: StandIns) -> StandIns:
    """The node `far` has a pod with an address, and pods are followed."""
    found.passed([seen("far"), Synced(Kind.NODE), runs("a", "far", "203.0.113.1"), LISTED])
    return found


def test_pods_that_come_and_go_are_followed(followed: StandIns) -> None:
    """With what else changes of a pod, nothing is passed on."""
    assert followed.passed([runs("a", "far", "203.0.113.1")]) == []
    assert followed.passed([runs("b", "far")]) == []
    assert shown(followed.passed([runs("b", "far", "203.0.113.2")])) == ["far: 203.0.113.1/32 203.0.113.2/32"]
    assert shown(followed.passed([ended("a")])) == ["far: 203.0.113.2/32"]
    assert shown(followed.passed([ended("b")])) == ["far:"]
    assert followed.passed([ended("b")]) == []


def test_address_of_two_pods_stays_until_both_are_gone(followed: StandIns) -> None:
    """One that is about to go, and its successor."""
    assert followed.passed([runs("b", "far", "203.0.113.1")]) == []
    assert followed.passed([ended("a")]) == []
    assert shown(followed.passed([ended("b")])) == ["far:"]


def test_pod_of_the_same_name_on_another_node_has_moved(followed: StandIns) -> None:
    """A deletion that nobody told of: a list after a reconnect says what there is."""
    followed.passed([seen("near")])
    moved = followed.passed([runs("a", "near", "203.0.113.8")])
    assert sorted(shown(moved)) == ["far:", "near: 203.0.113.8/32"]


def test_node_that_changes_keeps_what_stands_in(followed: StandIns) -> None:
    """Its addresses, say; and one that is registered anew, which is young, does not wait again."""
    assert shown(followed.passed([seen("far", age_s=0)])) == ["far: 203.0.113.1/32"]


def test_second_node_without_ranges_does_not_wait(followed: StandIns) -> None:
    """Pods are followed already."""
    followed.passed([runs("b", "near", "203.0.113.8")])
    assert shown(followed.passed([seen("near", age_s=1)])) == ["near: 203.0.113.8/32"]


def test_ranges_count_as_soon_as_there_are_some(followed: StandIns) -> None:
    """With the last such Node pods are not wanted any longer; while their watch still stands, they are noted."""
    assert shown(followed.passed([seen("near"), seen("far", RANGE)])) == ["near:", f"far: {RANGE}"]
    assert followed.wanted
    assert shown(followed.passed([gone("near")])) == ["near: gone"]
    assert not followed.wanted
    assert followed.passed([runs("b", "far", "203.0.113.2")]) == []
    assert shown(followed.passed([seen("far", age_s=0)])) == ["far:"]


def test_node_comes_to_need_pods_that_are_still_followed(followed: StandIns) -> None:
    """It is shown with them at once."""
    followed.passed([seen("far", RANGE)])
    assert shown(followed.passed([seen("near"), runs("b", "near", "203.0.113.8")]))[-1] == "near: 203.0.113.8/32"


def test_pods_forgotten_stay_in_force_until_they_are_listed_anew(followed: StandIns) -> None:
    """The watch ended just as it came to be wanted again; then the list counts, with what it no longer has."""
    followed.forget()
    assert shown(followed.passed([seen("far")])) == ["far: 203.0.113.1/32"]
    assert followed.passed([runs("b", "far", "203.0.113.2")]) == []
    assert shown(followed.passed([LISTED])) == ["far: 203.0.113.2/32"]


def test_nodes_count_as_listed_once_their_pods_are(found: StandIns) -> None:
    """So that a controller that starts anew takes no way to a pod away."""
    assert shown(found.passed([seen("far"), Synced(Kind.NODE)])) == ["far:"]
    assert found.passed([runs("a", "far", "203.0.113.1")]) == []
    assert shown(found.passed([LISTED])) == ["far: 203.0.113.1/32", "Node"]
    assert found.passed([]) == []


@pytest.mark.parametrize("end", [seen("far", RANGE), gone("far")], ids=["ranges", "gone"])
def test_nodes_count_as_listed_when_none_needs_pods_any_longer(found: StandIns, end: Changed) -> None:
    """Nobody lists pods then."""
    found.passed([seen("far"), Synced(Kind.NODE)])
    assert shown(found.passed([end]))[-1] == "Node"


def test_nodes_count_as_listed_at_once_where_all_have_ranges_or_are_new(found: StandIns) -> None:
    """Nothing waits for what a normal cluster never needs."""
    assert shown(found.passed([seen("far", RANGE), seen("near", age_s=1), Synced(Kind.NODE)]))[-1] == "Node"


def test_own_node_needs_nothing(followed: StandIns) -> None:
    """It knows its pods by itself; and their addresses are no ranges to give out."""
    followed.passed([gone("far")])
    assert shown(followed.passed([seen("own"), runs("b", "own", "203.0.113.5")])) == ["own:"]
    assert not followed.wanted


def test_node_that_is_gone_keeps_what_stands_in_until_its_pods_are(followed: StandIns) -> None:
    """Behind Departures: the API is asked for its pods, as for those of any node."""
    departures = Departures("own")
    departures.passed([seen("far")])
    assert followed.passed(departures.passed([gone("far")])) == []
    assert followed.passed(departures.settle("far", ["203.0.113.1"])) == []
    assert shown(followed.passed(departures.settle("far", None))) == ["far: gone"]


def test_ranges_that_a_node_had_before_count_alone_while_pods_are_in_them(followed: StandIns) -> None:
    """Behind Departures: registered anew it comes without any, and has those of before."""
    departures = Departures("own")
    departures.passed([seen("near", RANGE), gone("near")])
    assert shown(followed.passed(departures.passed([seen("near", age_s=0)]))) == [f"near: {RANGE}"]
    assert shown(followed.passed(departures.settle("near", []))) == ["near:"]


LEFT_OUT = (
    "pods of Node far: {}, which its pods are said to have, is left out: a Node claims it, or it is no single host's"
)
WELL = "pods of Node far: well"


@pytest.mark.parametrize(
    ("address", "claimed"),
    [
        ("192.0.2.3", "InternalIP"),
        ("::ffff:192.0.2.3", "InternalIP"),
        ("198.51.100.3", "ExternalIP"),
        ("10.244.1.7", "range"),
        ("2001:db8:c::7", "range of IPv6"),
    ],
)
@pytest.mark.parametrize("claimant", ["near", "own"])
def test_address_that_another_node_claims_does_not_stand_in(
    followed: StandIns, address: str, claimed: str, claimant: str
) -> None:
    """Whichever came first, and for as long as it is claimed."""
    manifest = node(claimant, ["192.0.2.3"], [RANGE, "2001:db8:c::/64"])
    manifest["status"]["addresses"].append({"type": "ExternalIP", "address": "198.51.100.3"})
    other = Changed(Kind.NODE, ("", claimant), decoded_node(manifest))
    followed.passed([runs("b", "far", address)])
    assert shown(followed.passed([other]))[1:] == ["far: 203.0.113.1/32", LEFT_OUT.format(address)], claimed
    assert followed.passed([other]) == [other]
    assert followed.passed([runs("c", "far", address)]) == []
    assert followed.passed([ended("c")]) == []
    assert shown(followed.passed([gone(claimant)]))[2:] == [WELL]
    assert shown(followed.passed([other]))[1:] == ["far: 203.0.113.1/32", LEFT_OUT.format(address)]
    assert shown(followed.passed([ended("b")])) == [WELL]


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "ff02::1", "::", "::ffff:127.0.0.1", "x"],
)
def test_address_that_no_pod_can_have_does_not_stand_in(followed: StandIns, address: str) -> None:
    assert shown(followed.passed([runs("b", "far", address)])) == [LEFT_OUT.format(address)]
    assert shown(followed.passed([seen("far", RANGE)])) == [f"far: {RANGE}", WELL]


def test_claims_come_and_go_with_nodes() -> None:
    """A Node that says the same again changes nothing."""
    claims = Claims()
    for index in range(250):
        assert claims.note(f"n{index}", decoded_node(node(f"n{index}", [f"192.0.2.{index}"], [f"10.0.{index}.0/24"])))
    asked = ("10.0.249.9", "10.0.250.9", "192.0.2.7", "192.0.2.250")
    assert [packed(one) in claims for one in asked] == [True, False, True, False]
    assert not claims.note("n7", decoded_node(node("n7", ["192.0.2.7"], ["10.0.7.0/24"])))
    assert claims.note("n7", None)
    assert packed("192.0.2.7") not in claims


def test_range_of_ipv6_claims_no_address_of_ipv4() -> None:
    """The one that holds them all, as the maps have them; and one of nothing but these is none."""
    claims = Claims()
    assert claims.note("n", decoded_node(node("n", [], ["::/1"])))
    assert [packed(one) in claims for one in ("2001:db8::1", "192.0.2.1")] == [True, False]
    assert claims.note("n", decoded_node(node("n", [], ["::ffff:192.0.2.0/120"])))
    assert packed("192.0.2.1") not in claims
