# SPDX-License-Identifier: Apache-2.0
"""Ids of Services and backends, which flows remember: never 0, not used again after a restart, reserved in blocks."""

from collections.abc import Container

from bpf.abi import HostPort

BLOCK = 4096
# Those of host ports follow.
ID_MAX = HostPort.IDS - 1


class Ids:
    """Hands out ids. Those below `limit` are noted in the state map before any of them is written elsewhere.

    Args:
        reserved: what the state map holds; 0: none yet.
    """

    def __init__(self, reserved: int) -> None:
        # Earlier versions went further.
        self._next = max(1, reserved) if reserved < ID_MAX else 1
        self.limit = reserved if reserved < ID_MAX else 1

    def allocate(self, used: Container[int]) -> int:
        """An id that is not in `used`."""
        while True:
            chosen = self._next
            if chosen >= self.limit:
                self.limit = min(chosen + BLOCK, ID_MAX)
            self._next = chosen + 1
            if self._next >= ID_MAX:
                # After a thousand million ids: what is in use is passed over.
                self._next, self.limit = 1, 1
            if chosen not in used:
                return chosen
