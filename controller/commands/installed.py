# SPDX-License-Identifier: Apache-2.0
"""What an installation has put on the node besides the CNI files: systemd's units, the library directory, the command,
the settings. hack/install and `calico-ebpf install` put things at the same places."""

import hashlib
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bpf.settings import CONFIG_FILE
from controller.errors import ControllerError

UNITS_DIR = Path("/etc/systemd/system")
LIBRARY = Path("/usr/local/lib/calico-ebpf")
COMMAND = Path("/usr/local/bin/calico-ebpf")
NETWORK_FILE = CONFIG_FILE.with_name("10-calico-ebpf.conflist")

# Names in the library directory.
CURRENT, BUNDLE, DRAFT = "current", "bundle-", ".new-"
# Notes of files that were put into others' directories since there were none.
PLACED = LIBRARY / "placed"

# The first line of settings that are not the operator's own.
HEADER = "# Written by `calico-ebpf install`: a change is to be made in the ConfigMap calico-ebpf."


def is_ours(config: Path) -> bool:
    """Whether `calico-ebpf install` has written a file of settings, whatever came of it."""
    return config.read_bytes().startswith(HEADER.encode())


def note(path: Path, content: bytes) -> str:
    """The line of PLACED, as sha256sum writes it: by it our file is told from another one at its place."""
    return f"{hashlib.sha256(content).hexdigest()}  {path}"


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


def remove() -> Iterator[Path]:
    """Removes all of it, and tells what was there. What runs from the library directory is past its imports."""
    if PLACED.exists():
        for line in PLACED.read_text().splitlines():
            path = Path(line.partition("  ")[2])
            if path.is_file() and note(path, path.read_bytes()) == line:
                path.unlink()
                yield path
    yield from _settings()
    if COMMAND.is_symlink():  # one that is no link was not put there
        COMMAND.unlink()
        yield COMMAND
    if LIBRARY.is_dir():
        shutil.rmtree(LIBRARY)
        yield LIBRARY


def _settings() -> Iterator[Path]:
    """The operator's own stay."""
    ours = CONFIG_FILE.is_file() and is_ours(CONFIG_FILE)
    for path in (NETWORK_FILE, *((CONFIG_FILE,) if ours else ())):
        if path.exists():
            path.unlink()
            yield path
    if CONFIG_FILE.parent.is_dir() and not any(CONFIG_FILE.parent.iterdir()):
        CONFIG_FILE.parent.rmdir()
        yield CONFIG_FILE.parent


def _systemctl(*arguments: str) -> None:
    try:
        subprocess.run(["systemctl", *arguments], check=True, capture_output=True, text=True, timeout=60)
    except subprocess.CalledProcessError as error:
        raise ControllerError(f"systemctl {' '.join(arguments)}: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ControllerError(f"systemctl {' '.join(arguments)}: {error}") from error
