# SPDX-License-Identifier: Apache-2.0
"""The group: what it imports, what it prints of errors, and the flags of the settings."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bpf import cli
from bpf.errors import NotLoadedError
from bpf.settings import Settings, describe


@pytest.fixture
def run() -> CliRunner:
    return CliRunner()


def test_group_imports_neither_package() -> None:
    """The group, its help and its version bring in neither cni nor controller nor their libraries."""
    script = (
        "import sys\nfrom bpf.cli import main\n"
        "for flag in ('--help', '--version'):\n    main([flag], standalone_mode=False)\n"
        "print([name for name in ('cni', 'controller', 'pyroute2', 'kubernetes', 'yaml') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


def test_help_lists_every_command(run: CliRunner) -> None:
    """What can be called is listed, with a line each."""
    shown = run.invoke(cli.main, ["--help"]).output
    assert all(f"  {name} " in shown for name in cli.COMMANDS)


def test_version_is_the_packages(run: CliRunner) -> None:
    """--version names the program and a version."""
    name, version = run.invoke(cli.main, ["--version"]).output.split()
    assert name == "calico-ebpf"
    assert version[0].isdigit()


def test_unknown_command_is_refused(run: CliRunner) -> None:
    """What is not there yet is no command."""
    result = run.invoke(cli.main, ["explain"])
    assert result.exit_code == 2
    assert "No such command 'explain'" in result.output


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        (NotLoadedError("nothing is loaded"), "Error: nothing is loaded\n"),
        (PermissionError(1, "Operation not permitted"), "Error: [Errno 1] Operation not permitted; this needs root\n"),
    ],
)
def test_errors_of_ours_are_one_line(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch, error: Exception, shown: str
) -> None:
    """An expected failure is a line and exit status 1, not a traceback."""
    result = run.invoke(group_with(monkeypatch, error), ["status"])
    assert (result.exit_code, result.output) == (1, shown)


def test_errors_that_nobody_expects_keep_their_traceback(run: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug is not dressed up as a message."""
    result = run.invoke(group_with(monkeypatch, KeyError("bug")), ["status"])
    assert isinstance(result.exception, KeyError)


def group_with(monkeypatch: pytest.MonkeyPatch, error: Exception) -> click.Group:
    """The group, with a `status` that fails."""

    @click.command("status")
    def failing() -> None:
        raise error

    monkeypatch.setattr(cli.LazyGroup, "get_command", lambda *_: failing)
    return cli.main


def test_settings_flags_make_a_flag_for_each_setting(run: CliRunner) -> None:
    """Every setting can be given, and is explained, on the command line."""
    seen: list[Settings] = []

    @click.command()
    @cli.settings_flags()
    def command(settings: Settings) -> None:
        seen.append(settings)

    shown = run.invoke(command, ["--help"]).output
    assert all(f"  {setting.flag} " in shown for setting in describe())
    assert run.invoke(command, ["--flows-max", "4096", "--underlay-devices", "eth0,eth1"]).exit_code == 0
    assert (seen[0].flows_max, seen[0].underlay_devices) == (4096, ("eth0", "eth1"))
    assert seen[0].origin("flows_max") == "--flows-max"


def test_settings_flags_named_leave_out_the_others(run: CliRunner, tmp_path: Path) -> None:
    """A command may offer a few; the file and the environment still set all."""

    @click.command()
    @cli.settings_flags("bpffs")
    def command(settings: Settings) -> None:
        click.echo(f"{settings.bpffs} {settings.flows_max}")

    (tmp_path / "config.yaml").write_text("flows_max: 5000\n")
    arguments = ["--bpffs", "/bpffs", "--config", str(tmp_path / "config.yaml")]
    assert run.invoke(command, arguments).output == "/bpffs 5000\n"
    assert run.invoke(command, ["--flows-max", "1"]).exit_code == 2


def test_settings_flags_forgiving_do_without_a_file_that_is_wrong(run: CliRunner, tmp_path: Path) -> None:
    """And say so; what is wrong on the command line is an error all the same."""

    @click.command()
    @cli.settings_flags("bpffs", "flows_max", forgiving=True)
    def command(settings: Settings) -> None:
        click.echo(f"{settings.bpffs} {settings.flows_max}")

    file = tmp_path / "config.yaml"
    file.write_bytes(b"bpffs: /elsewhere\nnonsense: \xff\n")
    result = run.invoke(command, ["--config", str(file), "--flows-max", "5000"])
    assert result.stdout == "/sys/fs/bpf 5000\n"
    assert str(file) in result.stderr
    assert run.invoke(command, ["--config", str(file), "--flows-max", "x"]).exit_code == 1


def test_commands_are_refused_without_root_before_they_do_anything(
    run: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One clear line, and uninstall does not ask first; help is for everybody."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for name in ("flows", "status", "uninstall", "doctor"):
        result = run.invoke(cli.main, [name])
        assert (result.exit_code, result.output.count("\n")) == (1, 1)
        assert result.output.startswith("Error: not root: ")
        assert run.invoke(cli.main, [name, "--help"]).exit_code == 0


def test_settings_flags_config_must_exist(run: CliRunner) -> None:
    """A file that was asked for by name is not passed over."""

    @click.command()
    @cli.settings_flags("bpffs")
    def command(settings: Settings) -> None:
        raise AssertionError(settings)

    assert run.invoke(command, ["--config", "/nonexistent/config.yaml"]).exit_code == 2
