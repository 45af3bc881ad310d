# SPDX-License-Identifier: Apache-2.0
"""Puts objects to an API server at a steady rate, on connections that stay.

    python -I -S put.py KUBECONFIG RATE

Each line of standard input is an object's path and its JSON. RATE of them a second are put in turn by the connections,
each by a clock of its own: what was late is made up for. At the end it prints a line for each, in their order:
CLOCK_MONOTONIC ns when it was sent, and when it had returned. Imports the standard library alone.
"""

import json
import ssl
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPSConnection
from pathlib import Path
from urllib.parse import urlsplit

# Few would keep no rate where answers are late. Where an object comes again after a multiple of so many lines, one
# connection puts it each time, and in order.
CONNECTIONS = 20


class Putter:
    """One of the connections.

    Args:
        kubeconfig: its content.
        rate: of all connections together.
    """

    def __init__(self, kubeconfig: dict[str, list[dict[str, dict[str, str]]]], rate: int) -> None:
        cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
        context = ssl.create_default_context(cafile=cluster["certificate-authority"])
        self._connection = HTTPSConnection(urlsplit(cluster["server"]).netloc, timeout=10, context=context)
        self._connection.connect()
        self._headers = {"Authorization": f"Bearer {user['token']}", "Content-Type": "application/json"}
        self._rate = rate

    def put_all(self, lines: list[str], place: int, began: float) -> list[tuple[int, int]]:
        """Puts every line whose turn it is; (sent, returned) of each. Raises RuntimeError: one was refused."""
        took = []
        for number in range(place, len(lines), CONNECTIONS):
            time.sleep(max(0.0, began + number / self._rate - time.monotonic()))
            took.append(self._put(*lines[number].split(" ", 1)))
        return took

    def _put(self, path: str, body: str) -> tuple[int, int]:
        sent_ns = time.monotonic_ns()
        self._connection.request("PUT", path, body.encode(), self._headers)
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path}: {response.status} {answer.decode()}")
        return sent_ns, time.monotonic_ns()


def main() -> None:
    kubeconfig, rate = json.loads(Path(sys.argv[1]).read_text()), int(sys.argv[2])
    lines = list(sys.stdin)
    putters = [Putter(kubeconfig, rate) for _ in range(CONNECTIONS)]
    began = time.monotonic()
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        working = [pool.submit(putter.put_all, lines, place, began) for place, putter in enumerate(putters)]
        took = [future.result() for future in working]
    for number in range(len(lines)):
        print(*took[number % CONNECTIONS][number // CONNECTIONS])


if __name__ == "__main__":
    main()
