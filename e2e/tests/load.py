# SPDX-License-Identifier: Apache-2.0
"""Requests without end, while something happens that none of them may notice."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from e2e.lab.node import CNI_SERVER, CONTROLLER, Node
from e2e.lab.runtime import tool
from e2e.lab.space import Space

RATE, LASTING = 1000, 20
# A busy machine asks less often than it was told to, by what share says nothing of us; but ask it must.
LEAST = 0.2
LIMIT_S = 300


@contextmanager
def load(where: Space, address: str, port: int, seconds: int, *flags: str, rate: int = RATE) -> Iterator[set[str]]:
    """New connections from a space, and 20 that last, for as long as the body takes.

    Args:
        seconds: how long at least.
        rate: new connections a second.

    Yields who has answered: empty, and filled when the body is over. Fails the test where anything was refused, reset,
    or not answered.
    """
    settings = ("--rate", str(rate), "--lasting", str(LASTING), "--seconds", str(LIMIT_S), *flags)
    answered: set[str] = set()
    # After 14,000 connections in a minute the kernel looks long for a port that is in no TIME_WAIT of this client's.
    where.run("sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1")
    with where.start(*tool("load", address, str(port), *settings)) as asking:
        try:
            assert asking.stdout
            assert asking.stdout.readline() == "started\n"
            end = time.monotonic() + seconds
            yield answered
            time.sleep(max(end - time.monotonic(), 0))
            assert asking.poll() is None, "the load was over before the body"
            asking.terminate()
            output, complaint = asking.communicate(timeout=60)
        finally:
            asking.kill()
    assert output, complaint
    report = json.loads(output)
    print(report)
    assert report["asked"] >= LEAST * rate * report["seconds"], complaint
    assert report["failed"] == {}
    assert report["lasting_failed"] == {}
    answered.update(report["by_name"])


def kill_daemons_twice(nodes: Sequence[Node]) -> None:
    """Kills both daemons of every node and starts them again, in four seconds and what the starts take."""
    for _ in range(2):
        time.sleep(1)
        for node in nodes:
            node.kill(CONTROLLER)
            node.kill(CNI_SERVER)
        time.sleep(1)
        for node in nodes:
            node.start(CONTROLLER)
            node.start(CNI_SERVER)
        for node in nodes:
            node.wait_ready()
