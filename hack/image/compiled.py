# SPDX-License-Identifier: Apache-2.0
"""Compiles a tree of Python modules for the bundle, whose files nobody changes: so none is looked at for its date."""

import sys
from pathlib import Path

from hack.command import CommandError, run

PYTHON = "python3.11"


def compile_tree(directory: Path, library: Path | None = None) -> None:
    """Compiles every module below a directory, that of a Python's library or, with `library`, one in it.

    The byte code of a Python's minor version is the same on every machine, so the Python that runs this does it.

    Raises:
        CommandError: a module does not compile, or this is another Python.
    """
    if f"python{sys.version_info.major}.{sys.version_info.minor}" != PYTHON:
        raise CommandError(f"this Python is not {PYTHON}, which the bundle has")
    # Paths as in the library, wherever it is made: the same files make the same bundle.
    flags = ("-q", "--invalidation-mode", "unchecked-hash", "-s", str(library or directory), "-p", PYTHON)
    run(sys.executable, "-I", "-m", "compileall", *flags, str(directory))
