# SPDX-License-Identifier: Apache-2.0
"""Runs cases: `python -m e2e.bench [CASE ...]`, all without one. Exit status 1 when a figure is missed, 2 when a case
could not be measured."""

import importlib
import sys

import click
from rich.console import Console

from e2e import kubernetes
from e2e.bench import machine, report
from e2e.bench.outcome import Outcome
from e2e.bench.tool import BUILD, BenchError
from e2e.lab import images
from e2e.lab.space import LabError

# Name to the module of its `run`, in the order of a whole run.
CASES = {
    "cni": "e2e.bench.cni",
    "control-plane": "e2e.bench.control_plane",
    "connect": "e2e.bench.connect",
    "nodeport": "e2e.bench.nodeport",
    "transfer": "e2e.bench.transfer",
    "reuse": "e2e.bench.reuse",
    "sweep": "e2e.bench.sweep",
    "xdp": "e2e.bench.xdp",
    "pods": "e2e.bench.pods",
    "install": "e2e.bench.install",
    "churn": "e2e.bench.churn",
}
# Those that run commands of Kubernetes itself.
WITH_KUBERNETES = {"churn", "connect", "install", "nodeport", "pods"}
REPORT = BUILD / "report.json"


@click.command()
@click.argument("cases", nargs=-1, type=click.Choice(list(CASES)))
def main(cases: tuple[str, ...]) -> None:
    """Measure against the peers."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    outcomes: dict[str, Outcome] = {}
    broken = False
    chosen = cases or tuple(CASES)
    if WITH_KUBERNETES & set(chosen):
        build_kubernetes()
    for name in chosen:
        console.print(f"measuring {name} ...")
        try:
            outcomes[name] = measure(name)
        except (BenchError, LabError, kubernetes.BuildError) as error:
            console.print(f"{name}: {error}", style="red", markup=False)
            broken = True
            continue
        report.show(console, outcomes[name])
        report.write(REPORT, outcomes, machine.describe())
    if outcomes:
        console.print(f"\nevery sample: {REPORT}", markup=False)
    if broken:
        sys.exit(2)
    sys.exit(1 if any(outcome.missed for outcome in outcomes.values()) else 0)


def build_kubernetes() -> None:
    """Before anything is measured, so that no figure has a compiler beside it."""
    try:
        kubernetes.commands()
        images.archive()
    except (kubernetes.BuildError, LabError) as error:
        click.echo(error, err=True)
        sys.exit(2)


def measure(name: str) -> Outcome:
    """Runs a case, and notes whether the machine was quiet."""
    quiet = machine.Quiet()
    outcome: Outcome = importlib.import_module(CASES[name]).run()
    outcome.warnings[:0] = quiet.doubts()
    return outcome


if __name__ == "__main__":
    main()
