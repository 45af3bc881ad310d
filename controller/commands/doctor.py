# SPDX-License-Identifier: Apache-2.0
"""`calico-ebpf doctor`: checks this node, and says what to do. Changes nothing."""

import click

from bpf.cli import settings_flags
from bpf.settings import Settings, describe
from controller.commands.checks import Check, Verdict, kernel_checks
from controller.commands.checks_install import install_checks
from controller.commands.checks_network import network_checks
from controller.commands.options import output_flag
from controller.commands.output import show_json, table

COLOURS = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "red"}


def effective(settings: Settings) -> list[dict[str, str]]:
    """Each setting with its value and where that came from."""
    return [
        {"name": setting.name, "value": _text(getattr(settings, setting.name)), "origin": settings.origin(setting.name)}
        for setting in describe()
    ]


def render(checks: list[Check]) -> list[str]:
    """The table of checks, and under it what to do."""
    lines = table(("CHECK", "RESULT", "SEEN"), [(item.name, item.verdict, item.seen) for item in checks])
    coloured = [
        line.replace(f" {item.verdict} ", f" {click.style(item.verdict, fg=COLOURS[item.verdict])} ", 1)
        for line, item in zip(lines[1:], checks, strict=True)
    ]
    advice = [f"{item.name}: {item.advice}" for item in checks if item.advice]
    return [lines[0], *coloured, *(["", "To do:", *advice] if advice else [])]


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)


@click.command("doctor")
@settings_flags()
@output_flag
@click.pass_context
def command(context: click.Context, settings: Settings, output: str) -> None:
    """Check this node, and say what to do.

    Exit status 1 when a check fails; a warning is no failure.
    """
    checks = [*kernel_checks(settings), *network_checks(settings), *install_checks(settings)]
    if output == "json":
        show_json({"checks": [item._asdict() for item in checks], "settings": effective(settings)})
    else:
        chosen = [tuple(setting.values()) for setting in effective(settings)]
        click.echo("\n".join([*render(checks), "", *table(("SETTING", "VALUE", "ORIGIN"), chosen)]))
    context.exit(any(item.verdict == Verdict.FAIL for item in checks))
