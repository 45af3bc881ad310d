# SPDX-License-Identifier: Apache-2.0
"""The order in which contenders take turns: A B B A, then B A A B, so that neither always comes first or last. Pure."""

from collections.abc import Callable, Iterator, Sequence

from e2e.bench.outcome import Series

Turn = Callable[[], dict[str, list[float]]]


def order(contenders: Sequence[str], number: int) -> list[str]:
    """Who has a turn, and when, in a round: everybody twice, the second time in reverse."""
    first = list(contenders) if number % 2 == 0 else list(reversed(contenders))
    return first + first[::-1]


def numbered(count: int, warm_up: int) -> Iterator[tuple[int, bool]]:
    """(number, whether it counts) of every round, those that only warm up first."""
    for number in range(-warm_up, count):
        yield number, number >= 0


def play(turns: dict[str, Turn], series: dict[str, Series], count: int, warm_up: int) -> None:
    """Plays the rounds, and adds their samples to `series`.

    Args:
        turns: contender to its turn, which gives samples by the name of a series.
        series: by the names that the turns use.
        count: of rounds that count.
        warm_up: rounds before them, whose samples are thrown away.
    """
    for number, counts in numbered(count, warm_up):
        gathered: dict[str, list[dict[str, list[float]]]] = {name: [] for name in turns}
        for contender in order(list(turns), number):
            gathered[contender].append(turns[contender]())
        if not counts:
            continue
        for contender, taken in gathered.items():
            for name, one in series.items():
                one.add(contender, [turn[name] for turn in taken])
