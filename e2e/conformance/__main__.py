# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own network tests: `python -m e2e.conformance`. Exit status 1 when something failed that is not in
e2e/conformance-pending.txt, or something passes that is; 2 when they could not be run."""

import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
from rich.console import Console

from e2e import kubernetes
from e2e.conformance import pending, report, runner, suite
from e2e.conformance.pending import PendingError
from e2e.conformance.results import Result
from e2e.lab import addresses
from e2e.lab.__main__ import describe
from e2e.lab.cluster import Lab
from e2e.lab.errors import LabError

OUTPUT = Path(__file__).parent.parent.parent / "build" / "conformance"
TABLE, LOGS = "results.txt", "logs"
WIDTH = 140


@click.command()
@click.option("--focus", default="", metavar="REGEX", help="Of them only tests in whose name this is found.")
@click.option("--procs", default=8, show_default=True, type=click.IntRange(1), help="Processes that share the tests.")
@click.option("--runs", default=1, show_default=True, type=click.IntRange(1), help="In a row, each on a new cluster.")
@click.option(
    "--stack",
    default=addresses.DUAL,
    show_default=True,
    type=click.Choice(list(addresses.STACKS)),
    help="The families of pods and Services.",
)
@click.option("--list", "listing", is_flag=True, help="Print the names of the tests, and run none.")
@click.option("--keep", is_flag=True, help="Leave the cluster of the last run standing.")
@click.option("--name", default="conformance", show_default=True, help="The lab's name.")
def main(focus: str, procs: int, runs: int, stack: str, listing: bool, keep: bool, name: str) -> None:
    """Runs upstream's sig-network tests that are marked [Conformance], and those of four groups, on a real cluster."""
    try:
        chosen, reasons = choose(focus)
        if listing:
            click.echo("\n".join(chosen))
            return
        if os.geteuid():
            raise LabError("not root: the lab is made of namespaces, which need it")
        runner.build()
        shutil.rmtree(OUTPUT, ignore_errors=True)
        good, every = True, []
        for number in range(1, runs + 1):
            directory = OUTPUT / (f"run{number}" if runs > 1 else "")
            directory.mkdir(parents=True)
            click.echo(f"run {number} of {runs}: {len(chosen)} tests, {procs} processes, {stack}")
            lab = Lab(name, keep)
            results, took_s = run(lab, stack, chosen, procs, directory)
            lab.leave() if keep and number == runs else lab.down()
            good &= judge(results, reasons, took_s, directory)
            every.append(results)
    except (LabError, PendingError, kubernetes.BuildError) as error:
        click.echo(error, err=True)
        sys.exit(2)
    unsteady = report.unsteady(every)
    for test in unsteady:
        click.echo(f"did not end alike in all runs: {test}")
    if keep:
        click.echo(f"\nThe cluster stands:\n{describe(name)}")
    sys.exit(0 if good and not unsteady else 1)


def choose(focus: str) -> tuple[list[str], dict[str, str]]:
    """The tests that are asked for, and of those that do not pass yet the reasons.

    Raises:
        LabError: there is none.
        PendingError: the list of those that do not pass has something that is no test of ours.
        kubernetes.BuildError: upstream's tests cannot be built.
    """
    ours = suite.chosen(runner.names())
    reasons = pending.parse(pending.FILE.read_text())
    if strangers := pending.unknown(reasons, ours):
        raise PendingError(f"{pending.FILE.name} has what is no test: {'; '.join(strangers)}")
    chosen = suite.chosen(ours, focus)
    if not chosen:
        raise LabError(f"no test has {focus} in its name")
    return chosen, reasons


def run(lab: Lab, stack: str, chosen: Sequence[str], procs: int, directory: Path) -> tuple[list[Result], float]:
    """Makes a lab a cluster of a stack, and runs tests on it; what became of them, and in how many seconds.

    Raises:
        LabError: they could not be run; the lab is gone.
    """
    began = time.monotonic()
    try:
        cluster = runner.make_cluster(lab, stack)
        click.echo(f"{time.monotonic() - began:4.0f} s: the cluster is up; its tests' log is {directory / runner.LOG}")
        began = time.monotonic()
        results = runner.run(cluster, chosen, procs, directory, click.echo)
        shutil.copytree(lab.logs, directory / LOGS)
    except BaseException:
        lab.down()
        raise
    return results, time.monotonic() - began


def judge(results: Sequence[Result], reasons: Mapping[str, str], took_s: float, directory: Path) -> bool:
    """Shows a run on the terminal and in a file; whether it went as the list of what does not pass yet says."""
    verdict = pending.judge(results, reasons)
    terminal = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    with (directory / TABLE).open("w", encoding="utf-8") as file:
        for console in (terminal, Console(highlight=False, file=file, width=WIDTH)):
            report.show(console, results, verdict, reasons, took_s)
    return verdict.good


if __name__ == "__main__":
    main()
