# SPDX-License-Identifier: Apache-2.0
"""What a case hands back: the samples, and the figures that it states, each with the bar that it must not exceed. Pure.

Less is better in every figure: milliseconds, bytes, shares of a core, ratios to a peer.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from e2e.bench import stats
from e2e.bench.stats import Interval

OURS = "calico-ebpf"

Rounds = list[list[float]]


class Figure(NamedTuple):
    """A figure of ours.

    Attributes:
        name: what was measured, "ADD, ratio to ptp + host-local".
        unit: "ms", "MB", "%"; "" for a ratio.
        low, high: the 95 % interval; both are the value where there is none.
        bar: what `high` must not exceed; None: reported only.
        aim: what we are after; missing it is no failure.
        by_value: the value is what must not exceed the bar: where rounds were added while the interval held the bar.
    """

    name: str
    unit: str
    value: float
    low: float
    high: float
    bar: float | None = None
    aim: float | None = None
    by_value: bool = False

    @property
    def missed(self) -> bool:
        return self.bar is not None and not (self.value if self.by_value else self.high) <= self.bar


@dataclass
class Series:
    """Samples of one thing, of every contender, by round.

    Attributes:
        group: so many consecutive rounds share a set-up of the lab; 0: all do.
    """

    name: str
    unit: str
    group: int = 0
    samples: dict[str, Rounds] = field(default_factory=dict)

    def add(self, contender: str, turn: list[list[float]]) -> None:
        """Adds a contender's turns of one round, as the samples of that round."""
        self.samples.setdefault(contender, []).append([sample for samples in turn for sample in samples])

    def ratio(self, peer: str) -> Interval:
        """Our median to a peer's, over the rounds so far."""
        return stats.interval(stats.round_ratios(self.samples[OURS], self.samples[peer]), group=self.group)


@dataclass
class Outcome:
    """What came of a case.

    Attributes:
        versions: of what the contenders are made of.
        warnings: why the figures should not be trusted.
        notes: what else the reader must know.
    """

    title: str
    series: list[Series] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def missed(self) -> bool:
        return any(figure.missed for figure in self.figures)

    def compare(
        self, series: Series, peer: str, bar: float | None = None, aim: float | None = None, by_value: bool = False
    ) -> None:
        """States the ratio of our median to a peer's: the median over the rounds."""
        name, estimate = f"{series.name}, ratio to {peer}", series.ratio(peer)
        self.figures.append(Figure(name, "", *estimate, bar=bar, aim=aim, by_value=by_value))
        self.warnings += stats.doubts(name, stats.round_ratios(series.samples[OURS], series.samples[peer]), estimate)

    def compare_tails(self, series: Series, peer: str, bar: float | None = None, aim: float | None = None) -> None:
        """States the ratio of the rounds' 99th percentiles."""
        ratios = stats.round_ratios(series.samples[OURS], series.samples[peer], stats.p99)
        estimate = stats.interval(ratios, group=series.group)
        self.state(f"{series.name}, 99th percentile, ratio to {peer}", "", estimate, bar, aim)

    def state(
        self, name: str, unit: str, value: Interval | float, bar: float | None = None, aim: float | None = None
    ) -> None:
        """States a figure that has no peer here."""
        estimate = value if isinstance(value, Interval) else Interval(value, value, value)
        self.figures.append(Figure(name, unit, *estimate, bar=bar, aim=aim))
