# SPDX-License-Identifier: Apache-2.0
"""Which connections met an endpoint that was out, on writes and connections whose times are known."""

import errno

import pytest

from e2e.bench import misses
from e2e.bench.misses import ELSEWHERE, LATE_MS, SOON_MS, Connection, Write

ENDPOINTS = 4
MS = 1_000_000


def write(sent_ms: int, returned_ms: int, unready: int, ready: int, service: int = 0) -> Write:
    return Write(sent_ms * MS, returned_ms * MS, service, unready, ready)


def connection(began_ms: int, ended_ms: int, endpoint: int, service: int = 0) -> Connection:
    return Connection(began_ms * MS, ended_ms * MS, service, service, endpoint)


# Endpoint 1 is out from 10 to 2000 ms; from 2010 on endpoint 2 is, and from 4010 on endpoint 1 again.
WRITES = [write(0, 10, 1, 3), write(2000, 2010, 2, 1), write(4000, 4010, 1, 2)]


@pytest.mark.parametrize(
    ("made", "judged", "ages_ms"),
    [
        (connection(9, 11, endpoint=1), 0, []),
        (connection(60, 61, endpoint=1), 0, [50]),
        (connection(160, 161, endpoint=1), 1, [150]),
        (connection(160, 161, endpoint=0), 1, []),
        (connection(1510, 1511, endpoint=1), 1, [1500]),
        (connection(1999, 2001, endpoint=1), 0, []),
        (connection(2005, 2006, endpoint=1), 0, []),
        (connection(2500, 2501, endpoint=1), 1, []),
        (connection(4030, 4031, endpoint=1), 0, [20]),
        (connection(160, 161, endpoint=1, service=7), 0, []),
    ],
    ids=[
        "before the write returned",
        "soon after",
        "later",
        "later, to another endpoint",
        "much later",
        "over while it is marked ready",
        "after that was sent, before it returned",
        "once it is ready",
        "when it is out again",
        "of another Service",
    ],
)
def test_connection_is_held_against_an_endpoint_only_while_that_is_out(
    made: Connection, judged: int, ages_ms: list[float]
) -> None:
    """An endpoint is out from a write's return until the next one that marks it ready is sent."""
    found = misses.judge(WRITES, [made], ENDPOINTS)
    assert (found.judged, found.ages_ms) == (judged, ages_ms)
    assert found.failed == {}


def test_found_counts_what_met_an_endpoint_later_than_it_may() -> None:
    """A connection at the limit is in time, one beyond it not."""
    made = [connection(10 + age, 11 + age, endpoint=1) for age in (30, 100, 101, 1000, 1001)]
    found = misses.judge(WRITES, made, ENDPOINTS)
    assert found.judged == 3
    assert (found.later_than(SOON_MS), found.later_than(LATE_MS), found.latest_ms) == (3, 1, 1001)


def test_connections_without_an_answer_of_their_service_have_failed() -> None:
    """What was refused, and what another Service's endpoint answered, is told by what it met, and judged no further."""
    refused = Connection(500 * MS, 501 * MS, 0, -1, -errno.ECONNREFUSED)
    misled = Connection(500 * MS, 501 * MS, 0, 3, 1)
    found = misses.judge(WRITES, [refused, misled, refused], ENDPOINTS)
    assert found.failed == {"ECONNREFUSED": 2, ELSEWHERE: 1}
    assert (found.judged, found.ages_ms) == (0, [])


def test_connections_of_a_client_are_told_by_five_numbers_each() -> None:
    """The port that answered tells the Service; without an answer it is none."""
    numbers = [1e14, 1e14 + 5, 2.0, 8102.0, 3.0, 1e14 + 1, 1e14 + 9, 0.0, 0.0, -111.0]
    assert list(misses.connections_of(numbers, first_port=8100)) == [
        Connection(10**14, 10**14 + 5, 2, 2, 3),
        Connection(10**14 + 1, 10**14 + 9, 0, -1, -111),
    ]
