# SPDX-License-Identifier: Apache-2.0
"""A steady load on a server of the lab: new connections at a rate, and some that stay; what went wrong, counted.

    python -I -S load.py 10.96.0.10 80 --rate 1000 --lasting 20 --seconds 10

Prints `started` once the lasting connections stand, and at the end one line of JSON:

    {"asked": 10000, "seconds": 10.0, "failed": {"ECONNREFUSED": 3}, "lasting_failed": {}, "slowest_ms": 4.1,
     "by_name": {"web-1": 5003}, "by_tick": [{"web-1": 250, "web-2": 249}]}

It ends at SIGTERM, or when the seconds are over. A tick is half a second. It asks by a clock of its own: a slow answer
delays no later question, as long as fewer than OPEN_MAX are unanswered. Imports the standard library alone.
"""

import argparse
import asyncio
import errno
import json
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable

# What is unanswered for so long has failed.
TIMEOUT_S = 10.0
TICK_S = 0.5
# A machine that is too busy for the rate asks less, rather than queue questions until they time out here.
OPEN_MAX = 200


Exchange = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[str]]


class Load:
    """A load, and what came of it."""

    def __init__(self, address: str, port: int, exchange: Exchange) -> None:
        self._address, self._port, self._exchange = address, port, exchange
        self._failed: Counter[str] = Counter()
        self._lasting_failed: Counter[str] = Counter()
        self._ticks: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self._began = self._end = 0.0
        self._slowest_s = 0.0
        self._asked = self._open = 0

    async def run(self, rate: int, lasting: int, seconds: float) -> None:
        """Asks for `seconds` or until SIGTERM, then waits for what is still open."""
        standing = [await self._connect() for _ in range(lasting)]
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop)
        self._began = time.monotonic()
        self._end = self._began + seconds
        print("started", flush=True)
        tasks = [asyncio.create_task(self._stay(*pair)) for pair in standing]
        await self._ask_at(rate, tasks)
        await asyncio.gather(*tasks)

    def report(self) -> str:
        return json.dumps(
            {
                "asked": self._asked,
                "seconds": round(self._end - self._began, 2),
                "failed": self._failed,
                "lasting_failed": self._lasting_failed,
                "slowest_ms": round(self._slowest_s * 1000, 2),
                "by_name": sum(self._ticks.values(), Counter()),
                "by_tick": [self._ticks[tick] for tick in range(max(self._ticks, default=-1) + 1)],
            }
        )

    def _stop(self) -> None:
        self._end = min(self._end, time.monotonic())

    async def _ask_at(self, rate: int, tasks: list["asyncio.Task[None]"]) -> None:
        """Starts questions so that, at any time, as many have begun as the rate asks for, or were left out."""
        left_out = 0
        while (now := time.monotonic()) < self._end:
            due = int((now - self._began) * rate) - self._asked - left_out
            room = OPEN_MAX - self._open
            for _ in range(min(due, room)):
                self._asked += 1
                self._open += 1
                tasks.append(asyncio.create_task(self._ask()))
            left_out += max(due - room, 0)
            await asyncio.sleep(0.002)

    async def _ask(self) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reader, writer = await self._connect()
                name = await self._exchange(reader, writer)
                self._ticks[int((began - self._began) / TICK_S)][name] += 1
                writer.close()
        except (OSError, EOFError, ValueError) as error:
            self._failed[_name(error)] += 1
        self._open -= 1
        self._slowest_s = max(self._slowest_s, time.monotonic() - began)

    async def _stay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """A connection that asks ten times a second, and must be answered by the same server to the end."""
        names = set()
        try:
            while time.monotonic() < self._end:
                async with asyncio.timeout(TIMEOUT_S):
                    names.add(await self._exchange(reader, writer))
                await asyncio.sleep(0.1)
            writer.close()
        except (OSError, EOFError, ValueError) as error:
            self._lasting_failed[_name(error)] += 1
        if len(names) > 1:
            self._lasting_failed["answered by another"] += 1

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self._address, self._port)


async def ask_line(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """One question to the lab's server; the name in its answer."""
    writer.write(b"?\n")
    return str(json.loads(await reader.readuntil(b"\n"))["name"])


async def ask_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    """The same of an HTTP server that tells its name at /hostname, on a connection that stays."""
    writer.write(b"GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n")
    status, *fields = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
    if " 200 " not in status:
        raise ValueError(status)
    length = next(field.partition(":")[2] for field in fields if field.lower().startswith("content-length:"))
    return (await reader.readexactly(int(length))).decode()


def _name(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "ETIMEDOUT"
    if isinstance(error, EOFError):
        return "closed"
    return errno.errorcode.get(getattr(error, "errno", None) or 0, str(error))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=int, default=1000, help="new connections a second")
    parser.add_argument("--lasting", type=int, default=20, help="connections that stay")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--http", action="store_true", help="the server is agnhost's netexec, not the lab's")
    arguments = parser.parse_args()
    load = Load(arguments.address, arguments.port, ask_http if arguments.http else ask_line)
    asyncio.run(load.run(arguments.rate, arguments.lasting, arguments.seconds))
    print(load.report())


if __name__ == "__main__":
    main()
