# SPDX-License-Identifier: Apache-2.0
"""The statistics, on samples whose answers are known."""

import random

import pytest

from e2e.bench import stats
from e2e.bench.stats import Interval


def noisy(level: float, seed: int, drift: float = 0.0) -> list[list[float]]:
    """40 rounds of 5 samples around a level that rises by `drift` of itself until the last."""
    chance = random.Random(seed)
    return [[level * (1 + drift * number / 39) * chance.uniform(0.9, 1.1) for _ in range(5)] for number in range(40)]


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [
        ([5.0], 0.99, 5.0),
        ([1.0, 2.0], 0.5, 1.5),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(value) for value in range(101)], 0.99, 99.0),
        ([1.0, 2.0, 3.0], 0.0, 1.0),
        ([1.0, 2.0, 3.0], 1.0, 3.0),
    ],
)
def test_quantile_of_known_samples_is_in_proportion(samples: list[float], share: float, expected: float) -> None:
    """A quantile lies between its two neighbours, in proportion."""
    assert stats.quantile(samples, share) == pytest.approx(expected)


def test_quantile_without_samples_is_refused() -> None:
    """There is no quantile of nothing."""
    with pytest.raises(ValueError, match="no samples"):
        stats.quantile([], 0.5)


def test_round_ratios_of_equal_contenders_covers_one() -> None:
    """Two contenders of the same speed have a ratio whose interval holds 1."""
    ratio = stats.interval(stats.round_ratios(noisy(10, seed=1), noisy(10, seed=2)))
    assert ratio.low < 1 < ratio.high


def test_round_ratios_of_a_faster_contender_is_found_in_a_narrow_interval() -> None:
    """A contender that takes four fifths is told from its peer, and from one that takes nine tenths."""
    ratio = stats.interval(stats.round_ratios(noisy(8, seed=1), noisy(10, seed=2)))
    assert ratio.low <= 0.8 <= ratio.high < 0.9


def test_round_ratios_on_a_drifting_machine_is_as_narrow() -> None:
    """A machine that becomes twice as slow during the run changes nothing: rounds are compared with themselves."""
    still = stats.interval(stats.round_ratios(noisy(8, seed=1), noisy(10, seed=2)))
    drifting = stats.interval(stats.round_ratios(noisy(8, seed=1, drift=1), noisy(10, seed=2, drift=1)))
    assert drifting == pytest.approx(still)


def test_round_ratios_of_unequal_rounds_is_refused() -> None:
    """A round that only one contender played cannot be compared."""
    with pytest.raises(ValueError, match="shorter"):
        stats.round_ratios([[1.0], [1.0]], [[1.0]])


def test_interval_drawn_twice_is_the_same() -> None:
    """The same samples always give the same interval."""
    values = [sample for samples in noisy(3, seed=7) for sample in samples]
    assert stats.interval(values) == stats.interval(values)


def test_interval_of_equal_values_is_a_point() -> None:
    """Without variation there is nothing to be unsure of."""
    assert stats.interval([4.0] * 10) == Interval(4.0, 4.0, 4.0)


def test_summary_tells_the_spread_of_the_rounds() -> None:
    """The spread is that between rounds, whatever happens within one."""
    found = stats.summary([[1.0, 2.0, 3.0]] * 8)
    assert (found.median, found.spread) == (2.0, 0.0)


def test_interval_of_set_ups_that_differ_covers_what_another_would_give() -> None:
    """Values that agree within a set-up are no evidence beyond it: the interval spans the set-ups."""
    values = [level for level in (0.80, 0.82, 0.84, 0.86) for _ in range(50)]
    alone, grouped = stats.interval(values), stats.interval(values, group=50)
    assert grouped.high - grouped.low > alone.high - alone.low
    assert grouped.low <= 0.81
    assert grouped.high >= 0.85


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.79, 0.8, 0.81] * 10, []),
        ([0.74, 0.8, 0.86] * 3, ["interval"]),
        ([0.6, 0.65, 0.8, 0.8, 0.8, 0.95, 1.0] * 100, ["not quiet"]),
    ],
    ids=["quiet", "few rounds", "restless rounds"],
)
def test_doubts_name_what_speaks_against_a_ratio(ratios: list[float], expected: list[str]) -> None:
    """A wide interval and restless rounds are each told, a quiet run not."""
    found = stats.doubts("ADD", ratios, stats.interval(ratios))
    assert len(found) == len(expected)
    assert all(word in doubt for word, doubt in zip(expected, found, strict=True))
