# SPDX-License-Identifier: Apache-2.0
"""Captures at several places of the lab at once, by tools of capture.py."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from e2e.lab.runtime import tool
from e2e.lab.space import Space

DEVICE = "eth0"
# What was sent when the block ends may still be on its way.
SETTLE_S = 0.2

Packet = dict[str, Any]


@contextmanager
def captured(hops: Mapping[str, Space], ports: Iterable[int]) -> Iterator[dict[str, list[Packet]]]:
    """What passes eth0 of each hop at these ports meanwhile, frames for others left out; filled in at the end."""
    seen: dict[str, list[Packet]] = {}
    words = [word for port in ports for word in ("--port", str(port))]
    taps = {hop: space.start(*tool("capture", DEVICE, *words)) for hop, space in hops.items()}
    for tap in taps.values():
        if tap.stdout:
            tap.stdout.readline()
    try:
        yield seen
        time.sleep(SETTLE_S)
    finally:
        for hop, tap in taps.items():
            tap.terminate()
            packets = [json.loads(line) for line in tap.communicate()[0].splitlines()]
            seen[hop] = [packet for packet in packets if packet["way"] != "past"]
