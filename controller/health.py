# SPDX-License-Identifier: Apache-2.0
"""/healthz and /livez, as load balancers and kubelet ask kube-proxy for them.

/livez      503 when the oldest change that is not in the kernel has waited for too long
/healthz    the same, and 503 when this node's Node is gone, going, or about to be scaled away
"""

import json
import time
from datetime import UTC, datetime

from controller.web import NOT_FOUND, Answer

# kube-proxy allows twice its sync period of 30 s.
TIMEOUT_S = 60.0


class Health:
    """What the controller says of itself; written by its thread, read by the server's."""

    def __init__(self) -> None:
        self._pending_since: float | None = None
        self._updated = time.time()
        self.eligible = True

    def waiting(self) -> None:
        """There is a change that is not in the kernel."""
        if self._pending_since is None:
            self._pending_since = time.monotonic()

    def synced(self) -> None:
        """Everything is in the kernel."""
        self._pending_since = None
        self._updated = time.time()

    @property
    def alive(self) -> bool:
        since = self._pending_since
        return since is None or time.monotonic() - since < TIMEOUT_S

    def answer(self, path: str) -> Answer:
        if path not in ("/healthz", "/livez"):
            return NOT_FOUND
        eligible = self.eligible if path == "/healthz" else True
        body = {"lastUpdated": _text(self._updated), "currentTime": _text(time.time())}
        told = body | ({"nodeEligible": self.eligible} if path == "/healthz" else {})
        status = 200 if self.alive and eligible else 503
        return Answer(status, "application/json", json.dumps(told).encode())


def _text(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()
