# SPDX-License-Identifier: Apache-2.0
"""The statistics of the benchmark. Pure; all quantities keep the unit they come in.

Contenders take turns within a round, so that both meet the machine in the same state: what is compared is a round's
ratio, and the rounds are what the bootstrap draws from. A machine that drifts from one round to the next moves both.
"""

import random
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple

DRAWS = 2000
CONFIDENCE = 0.95
# Fixed, so that the same samples give the same interval.
SEED = 206

# An interval wider than this share of its value says little about a bar a few hundredths away.
WIDE = 0.10
# Quartiles of the rounds' ratios further apart than this share of their median: something else used the machine, and
# not in equal parts while either contender had its turn.
RESTLESS = 0.25


class Interval(NamedTuple):
    """An estimate, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Summary(NamedTuple):
    """Samples of one contender. `spread` is the distance of the quartiles as a share of the median."""

    median: float
    p99: float
    spread: float


def quantile(samples: Sequence[float], share: float) -> float:
    """The value below which `share` of the samples lie, between two neighbours in proportion. Raises ValueError."""
    if not samples:
        raise ValueError("no samples")
    ordered = sorted(samples)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def p99(samples: Sequence[float]) -> float:
    return quantile(samples, 0.99)


def spread(samples: Sequence[float]) -> float:
    """The distance of the quartiles as a share of the median."""
    return (quantile(samples, 0.75) - quantile(samples, 0.25)) / median(samples)


def summary(rounds: Sequence[Sequence[float]]) -> Summary:
    """All samples of a contender, whatever the round; the spread is that of its rounds' medians."""
    flat = [sample for samples in rounds for sample in samples]
    return Summary(median(flat), p99(flat), spread([median(samples) for samples in rounds]))


def interval(
    values: Sequence[float], statistic: Callable[[Sequence[float]], float] = median, group: int = 0
) -> Interval:
    """A statistic of `values`, with the interval in which it lies when they are drawn anew with replacement.

    Args:
        group: so many consecutive values share a set-up: set-ups are drawn first, then values within each; 0: all do.
    """
    chance = random.Random(SEED)
    size = group or len(values)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    drawn = []
    for _ in range(DRAWS):
        chosen = chance.choices(groups, k=len(groups))
        drawn.append(statistic([value for one in chosen for value in chance.choices(one, k=len(one))]))
    tail = (1 - CONFIDENCE) / 2
    return Interval(statistic(values), quantile(drawn, tail), quantile(drawn, 1 - tail))


def round_ratios(
    ours: Sequence[Sequence[float]],
    theirs: Sequence[Sequence[float]],
    of_round: Callable[[Sequence[float]], float] = median,
) -> list[float]:
    """Ours / theirs, round by round.

    Args:
        ours, theirs: the samples of each round, in the same order of rounds.
        of_round: what stands for a round: median or p99 of its samples.

    Raises:
        ValueError: not as many rounds on either side.
    """
    return [of_round(mine) / of_round(other) for mine, other in zip(ours, theirs, strict=True)]


def doubts(name: str, ratios: Sequence[float], estimate: Interval) -> list[str]:
    """Why the estimate made of rounds' ratios should not be trusted; empty where nothing speaks against it."""
    found = []
    width = (estimate.high - estimate.low) / estimate.value
    if width > WIDE:
        found.append(f"{name}: the interval spans {width:.0%} of the value: more rounds, or a quieter machine")
    if spread(ratios) > RESTLESS:
        found.append(f"{name}: the rounds' ratios spread by {spread(ratios):.0%}: the machine was not quiet")
    return found
