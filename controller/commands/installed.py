# SPDX-License-Identifier: Apache-2.0
"""What hack/install has put on the node besides the CNI files: systemd's units, the library directory, the command."""

import shutil
import subprocess
from pathlib import Path

from controller.errors import ControllerError

UNITS_DIR = Path("/etc/systemd/system")
LIBRARY = Path("/usr/local/lib/calico-ebpf")
COMMAND = Path("/usr/local/bin/calico-ebpf")


def units() -> list[Path]:
    return sorted(UNITS_DIR.glob("calico-ebpf-*.service"))


def remove_unit(unit: Path) -> None:
    """Stops a unit, and keeps it from starting at the next boot.

    Raises:
        ControllerError: systemd did not do so; its file stays.
    """
    _systemctl("disable", "--now", unit.name)
    unit.unlink()
    _systemctl("daemon-reload")


def remove_library() -> bool:
    """Whether it was there."""
    there = LIBRARY.is_dir()
    if there:
        shutil.rmtree(LIBRARY)
    return there


def remove_command() -> bool:
    """Whether the link was there; a command that is no link was not put there by hack/install."""
    there = COMMAND.is_symlink()
    if there:
        COMMAND.unlink()
    return there


def _systemctl(*arguments: str) -> None:
    try:
        subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        raise ControllerError(f"systemctl {' '.join(arguments)}: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ControllerError(f"systemctl {' '.join(arguments)}: {error}") from error
