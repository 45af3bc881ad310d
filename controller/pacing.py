# SPDX-License-Identifier: Apache-2.0
"""When the next sync may run: at once after a quiet time, at an interval under churn, ever later after failures."""

import random

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 30.0


class Backoff:
    """Doubling pauses, each up to a fifth longer than it should be, so that nodes do not move in step."""

    def __init__(self, first_s: float = FIRST_RETRY_S, last_s: float = LAST_RETRY_S) -> None:
        self._first_s, self._last_s = first_s, last_s
        self._pause_s = first_s

    def reset(self) -> None:
        self._pause_s = self._first_s

    def next_s(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, self._last_s)
        return pause_s * random.uniform(1.0, 1.2)


class Pacer:
    """Times are those of one monotonic clock, which the caller reads."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._backoff = Backoff()
        self._earliest = 0.0

    @property
    def due(self) -> float:
        """The time before which no sync should begin."""
        return self._earliest

    def succeeded(self, began: float) -> None:
        self._backoff.reset()
        self._earliest = began + self._interval_s

    def failed(self, now: float) -> float:
        """Returns the pause until the next attempt, in seconds."""
        pause_s = self._backoff.next_s()
        self._earliest = now + pause_s
        return pause_s
