# SPDX-License-Identifier: Apache-2.0
"""Runs the demo: `python -m e2e.demo [--keep]`. Exit status 1 when a step does not show what it should."""

import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console

from e2e.demo import page, report
from e2e.demo.report import Report, Step, StepError
from e2e.demo.steps import Demo
from e2e.lab import cluster
from e2e.lab.__main__ import describe
from e2e.lab.cluster import Lab
from e2e.lab.space import LabError

PAGE = Path(__file__).parent.parent.parent / "build" / "demo" / "report.html"
WIDTH = 120
SUBTITLE = (
    "Two nodes made of network namespaces; Services from a directory of Kubernetes manifests. "
    "A client outside shares the nodes' subnet: it asks at NodePorts."
)


@click.command()
@click.option("--keep", is_flag=True, help="Leave the lab standing.")
@click.option("--name", default="demo", show_default=True, help="The lab's name.")
@click.option("--page", "path", type=click.Path(path_type=Path), default=PAGE, help="Where the report goes as a page.")
def main(keep: bool, name: str, path: Path) -> None:
    """Shows pods and Services at work, with real traffic."""
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    whole = Report("calico-ebpf at work", SUBTITLE, circumstances())
    report.show_title(console, whole)
    if os.geteuid():
        raise click.ClickException("not root: the demo makes network namespaces, and loads BPF programs")
    if cluster.is_kept(name):
        console.print(f"The lab {name} that was left standing is removed, with everything in it.", markup=False)
        cluster.remove(name)
    try:
        lab = Lab(name, keep)
    except LabError as error:
        raise click.ClickException(str(error)) from error
    try:
        run(lab, whole, console)
    except BaseException:
        lab.down()
        raise
    if keep:
        lab.leave()
    else:
        lab.down()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.html(whole), encoding="utf-8")
    report.show_end(console, whole, str(path))
    if keep:
        console.print(f"\nThe lab stands:\n{describe(name)}", markup=False)
    sys.exit(1 if whole.failed else 0)


def circumstances() -> str:
    """When, on what, and of which state of the source."""
    describe_head = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(describe_head, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:  # git is not among what the set-up installs
        commit = ""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now} · kernel {platform.release()}, {platform.machine()} · commit {commit or 'unknown'}"


def run(lab: Lab, whole: Report, console: Console) -> None:
    """Runs the steps up to the first that fails: those after it build on it."""
    demo, began = Demo(lab), time.monotonic()
    for number, action in enumerate(demo.steps(), 1):
        title, _, claim = (action.__doc__ or "").partition(": ")
        step = Step(title, claim)
        whole.steps.append(step)
        step_began = time.monotonic()
        try:
            action(step)
        except (StepError, LabError) as error:
            step.failure = str(error)
        step.took_s = time.monotonic() - step_began
        report.show_step(console, number, step)
        if step.failure:
            break
    whole.boxes = demo.boxes
    whole.took_s = time.monotonic() - began


if __name__ == "__main__":
    main()
