# SPDX-License-Identifier: Apache-2.0
"""What it was measured on, and whether others used the machine meanwhile. No host names."""

import os
import subprocess
import time
from pathlib import Path

from e2e.bench.tool import BenchError

# More runnable processes than this share of the cores, before anything was started: not a quiet machine.
BUSY = 0.25
# A larger share of the cores' time, wanted and not had.
STOLEN = 0.02


def describe() -> dict[str, str]:
    """Cores, memory, kernel, operating system."""
    release = dict(line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines())
    memory_kb = int(Path("/proc/meminfo").read_text().split(maxsplit=2)[1])
    return {
        "cores": str(os.cpu_count()),
        "cpu": _cpu_model(),
        "memory": f"{memory_kb / (1 << 20):.0f} GiB",
        "kernel": os.uname().release,
        "system": release.get("PRETTY_NAME", "").strip('"'),
    }


class Quiet:
    """Whether the machine was quiet, from now until `doubts` is asked."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._stolen_s, self._began = _stolen_s(), time.monotonic()

    def doubts(self) -> list[str]:
        """What spoke against it."""
        cores = os.cpu_count() or 1
        stolen = (_stolen_s() - self._stolen_s) / (time.monotonic() - self._began) / cores
        found = []
        if self._load > BUSY * cores:
            found.append(f"the machine was busy before the start: load average {self._load:.2f}")
        if stolen > STOLEN:
            found.append(
                f"the cores were kept from running for {stolen:.0%} of the time, by other machines of the host"
            )
        return found


def _stolen_s() -> float:
    """Seconds that the cores together were kept from running, since boot."""
    return int(Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]) / os.sysconf("SC_CLK_TCK")


def package(name: str) -> str:
    """The version of a Debian package."""
    return first_line("dpkg-query", "-W", "-f", "${Version}", name)


def first_line(*command: str) -> str:
    """The first line that a command prints. Raises BenchError."""
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise BenchError(f"{' '.join(command)}: {process.stderr.strip()}")
    return process.stdout.strip().split("\n", 1)[0]


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine
