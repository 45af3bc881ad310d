# SPDX-License-Identifier: Apache-2.0
"""Runs the commands of others that make things: apt, dpkg-deb, pip, readelf."""

import subprocess
from pathlib import Path


class CommandError(Exception):
    """A command failed or is not installed, or gave what nothing can be made of; the message says which, and what."""


def run(*argv: str, cwd: Path | None = None) -> str:
    """What a command prints.

    Raises:
        CommandError: it is not installed, or failed; the message carries what it said.
    """
    try:
        process = subprocess.run(argv, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CommandError(f"{argv[0]} is not installed") from error
    if process.returncode:
        said = (process.stderr.strip() or process.stdout.strip())[-2000:]
        raise CommandError(f"{argv[0]}: exit status {process.returncode}: {said}")
    return process.stdout
