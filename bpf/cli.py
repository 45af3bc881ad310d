# SPDX-License-Identifier: Apache-2.0
"""The command line `calico-ebpf`: a group whose commands are imported when they are called, by name.

So this imports neither `cni` nor `controller`, and a daemon starts without what the other one needs. Also the flags of
the settings, for the commands' modules.
"""
# ruff: noqa: ARG002 -- click names the arguments of what is overridden

import importlib
import os
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import click

from bpf.errors import SettingsError
from bpf.settings import CONFIG_FILE, Described, Settings, describe

# Name to (module of its `command`, one line of help).
COMMANDS = {
    "controller": ("controller.commands.controller", "Run the controller: Services and routes, into the data plane."),
    "cni-server": ("cni.commands", "Run the CNI plugin's warm server."),
    "status": ("controller.commands.status", "What is loaded, attached and running on this node."),
    "services": ("controller.commands.services", "Frontends and the backends behind them."),
    "backends": ("controller.commands.backends", "Backends, with their Services and flows."),
    "flows": ("controller.commands.flows", "Tracked connections."),
    "pods": ("controller.commands.pods", "This node's pods."),
    "drops": ("controller.commands.drops", "What did not get through, and why."),
    "deny": ("controller.commands.deny", "Ranges from which nothing comes in from outside."),
    "doctor": ("controller.commands.doctor", "Check this node, and say what to do."),
    "install": ("controller.commands.install", "Put the bundle that this runs from on a node."),
    "uninstall": ("controller.commands.uninstall", "Take everything of ours off this node."),
}

# The error trees whose messages are meant for people.
ERROR_MODULES = {"bpf.errors", "cni.errors", "controller.errors"}


class LazyGroup(click.Group):
    """Imports a command when it is called, not when it is listed; prints our own errors as one line, exit status 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PermissionError as error:
            raise click.ClickException(f"{error}; this needs root") from error
        except Exception as error:
            if type(error).__module__ in ERROR_MODULES:
                raise click.ClickException(str(error)) from error
            raise


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="calico-ebpf", message="calico-ebpf %(version)s")
def main() -> None:
    """Pod networking and Services for Kubernetes in BPF."""


def settings_flags(*names: str, forgiving: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Gives a command a flag for each setting named, or for all of them, and --config; it is called with `settings`.

    The command is refused, but for its help, to whoever is not root: before it asks or reports anything.

    Args:
        forgiving: a file that cannot be understood is told of, and counts as absent.

    Raises:
        SettingsError: from the command, where a value is wrong.
    """
    wanted = [setting for setting in describe() if not names or setting.name in names]

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def command(config: Path | None, **options: Any) -> Any:
            flags = {setting.name: options.pop(setting.name) for setting in wanted}
            if os.geteuid():
                raise click.ClickException("not root: everything here looks at maps, devices or processes that need it")
            load = _load_forgiving if forgiving else Settings.load
            return function(settings=load(flags, os.environ, config or CONFIG_FILE), **options)

        decorated: Callable[..., Any] = command
        for setting in reversed(wanted):
            decorated = _flag(setting)(decorated)
        file = click.Path(exists=True, dir_okay=False, path_type=Path)
        return click.option("--config", type=file, help=f"Settings file.  [default: {CONFIG_FILE}]")(decorated)

    return decorate


def _load_forgiving(flags: Mapping[str, object], environ: Mapping[str, str], path: Path) -> Settings:
    """Raises SettingsError where a flag or a variable is wrong."""
    try:
        return Settings.load(flags, environ, path)
    except SettingsError as error:
        settings = Settings.load(flags, environ, Path(os.devnull))
        click.echo(f"{error}; going on without this file", err=True)
        return settings


def _flag(setting: Described) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The flag as text: bpf.settings judges the values of all origins alike."""
    meta = setting.meta
    metavar = "|".join(meta.choices) or {int: meta.unit or "N", Path: "PATH"}.get(setting.kind, "TEXT")
    default = f"  [default: {setting.default}]" if setting.default else ""
    return click.option(setting.flag, setting.name, metavar=metavar.upper(), help=meta.meaning + default)


if __name__ == "__main__":
    main(prog_name="calico-ebpf")
