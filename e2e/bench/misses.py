# SPDX-License-Identifier: Apache-2.0
"""Which connections met an endpoint that had been marked not ready. Pure; times are ns of CLOCK_MONOTONIC.

An endpoint is out from the return of the write that marked it not ready until the next one that marks it ready is sent:
whoever watches may know of that before it returns. A connection is held against that only if it ended before, since its
backend was chosen some time between its beginning and its end.
"""

import errno
import math
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

# After so long no more than a few connections may meet it, and after so long none.
SOON_MS, LATE_MS = 100.0, 1000.0
ELSEWHERE = "another Service's endpoint"


class Write(NamedTuple):
    """A write that marked one endpoint of a Service not ready, and another ready."""

    sent_ns: int
    returned_ns: int
    service: int
    unready: int
    ready: int


class Connection(NamedTuple):
    """A connection to a Service.

    Attributes:
        answered: the Service whose endpoint answered; -1 where none did.
        endpoint: which of that Service's; a negated errno where none did.
    """

    began_ns: int
    ended_ns: int
    service: int
    answered: int
    endpoint: int


@dataclass
class Found:
    """What the connections of a run met.

    Attributes:
        judged: connections that began more than SOON_MS after an endpoint of their Service was out.
        ages_ms: for how long the endpoint that answered had been out, of every connection that met such a one.
        failed: what the others met in place of an answer.
    """

    judged: int = 0
    ages_ms: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    @property
    def latest_ms(self) -> float:
        return max(self.ages_ms, default=0.0)

    def later_than(self, age_ms: float) -> int:
        """How many met an endpoint that had been out for longer."""
        return sum(age > age_ms for age in self.ages_ms)


class Outages:
    """When which endpoints were out.

    Args:
        writes: in the order of a Service's endpoints' changes.
    """

    def __init__(self, writes: Iterable[Write]) -> None:
        self._began: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        self._ended: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        for write in writes:
            self._end(write.service, write.ready, write.sent_ns)
            self._began[write.service, write.unready].append(write.returned_ns)
            self._ended[write.service, write.unready].append(math.inf)

    def _end(self, service: int, endpoint: int, sent_ns: int) -> None:
        ended = self._ended[service, endpoint]
        if ended and ended[-1] == math.inf:
            ended[-1] = sent_ns

    def age_ms(self, service: int, endpoint: int, connection: Connection) -> float:
        """For how long an endpoint had been out when a connection began; less than 0: it was not, or not to its end."""
        began = self._began[service, endpoint]
        place = bisect_right(began, connection.began_ns) - 1
        if place < 0 or self._ended[service, endpoint][place] < connection.ended_ns:
            return -1.0
        return (connection.began_ns - began[place]) / 1e6


def judge(writes: Iterable[Write], connections: Iterable[Connection], endpoints: int) -> Found:
    """What the connections met.

    Args:
        writes: in the order in which they were made.
        endpoints: of every Service.
    """
    outages, found = Outages(writes), Found()
    for connection in connections:
        failure = _failure(connection)
        if failure:
            found.failed[failure] += 1
            continue
        ages = [outages.age_ms(connection.service, endpoint, connection) for endpoint in range(endpoints)]
        found.judged += max(ages) > SOON_MS
        if ages[connection.endpoint] >= 0:
            found.ages_ms.append(ages[connection.endpoint])
    return found


def _failure(connection: Connection) -> str:
    """What a connection met in place of an endpoint of its Service; "" where it met one."""
    if connection.endpoint < 0:
        return errno.errorcode.get(-connection.endpoint, str(-connection.endpoint))
    return "" if connection.answered == connection.service else ELSEWHERE


def connections_of(numbers: Sequence[float], first_port: int) -> Iterator[Connection]:
    """Those that a client of tools/churn.c tells of.

    Args:
        first_port: at which the first Service's endpoints answer, the next Service's at the next.
    """
    for start in range(0, len(numbers), 5):
        began_ns, ended_ns, service, port, pod = map(int, numbers[start : start + 5])
        yield Connection(began_ns, ended_ns, service, port - first_port if pod >= 0 else -1, pod)
