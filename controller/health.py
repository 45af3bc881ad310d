# SPDX-License-Identifier: Apache-2.0
"""/healthz and /livez, as load balancers ask kube-proxy for them, and kubelet asks us at an address of our own.

/livez      503 when the oldest change that is not in the kernel has waited for too long
/healthz    the same, and 503 until everything has been written once and the node's network was in order once, and when
            this node's Node is gone, going, or about to be scaled away

The body is kube-proxy's, with networkConnected besides. Of the families it says the same: one sync writes both. While
all is well, lastUpdated is now, as there. What does not fit into a map does not count: no restart makes room. Source:
pkg/proxy/healthcheck of Kubernetes.
"""

import json
import time
from datetime import UTC, datetime

from controller.web import NOT_FOUND, Answer

# Where kubelet's probes ask: a kube-proxy beside us has the other address, and would answer in our place. No setting,
# since the DaemonSet names it; the number is that of the probe of layer 2, by TCP.
PROBES_ADDRESS = "127.0.0.1:20206"
# kube-proxy allows twice its sync period of 30 s.
TIMEOUT_S = 60.0

# A time that has not been, as Go writes it.
NEVER = "0001-01-01T00:00:00Z"


class Health:
    """What the controller says of itself; written by its thread, read by the server's.

    Attributes:
        eligible: load balancers may send this node traffic.
        connected: programs were attached and routes made, all of them, once.
    """

    def __init__(self) -> None:
        self._pending_since: float | None = None
        self._updated: float | None = None
        self.eligible = True
        self.connected = False

    def waiting(self) -> None:
        """There is a change that is not in the kernel; may be called from any thread."""
        if self._pending_since is None:
            self._pending_since = time.monotonic()

    def idle(self) -> None:
        """Nothing waits that could be written."""
        self._pending_since = None

    def synced(self) -> None:
        """Everything is in the kernel that fits."""
        self._pending_since = None
        self._updated = time.time()

    @property
    def alive(self) -> bool:
        since = self._pending_since
        return since is None or time.monotonic() - since < TIMEOUT_S

    def answer(self, path: str) -> Answer:
        if path not in ("/healthz", "/livez"):
            return NOT_FOUND
        now, updated, alive = time.time(), self._updated, self.alive
        well, more = alive, {}
        if path == "/healthz":
            well = alive and self.eligible and self.connected and updated is not None
            more = {"nodeEligible": self.eligible, "networkConnected": self.connected}
        told: dict[str, object] = {"lastUpdated": _text(now if well else updated), "currentTime": _text(now), **more}
        told["healthy"] = alive
        if updated is not None:
            told["status"] = {family: {"lastUpdated": _text(updated), "healthy": alive} for family in ("IPv4", "IPv6")}
        return Answer(200 if well else 503, "application/json", json.dumps(told).encode())


def _text(moment: float | None) -> str:
    return NEVER if moment is None else datetime.fromtimestamp(moment, UTC).isoformat()
