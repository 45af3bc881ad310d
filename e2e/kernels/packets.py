# SPDX-License-Identifier: Apache-2.0
"""The packet tests of bpf/tests on the kernel of a guest: the tests run here, and what they ask of a kernel is done
there. A plugin of pytest, and the command that runs pytest with it.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from bpf.tests import datapath, kernel
from bpf.tests.kernel import Kernel
from e2e.kernels.guest import tools
from e2e.kernels.machine import Machine
from e2e.kernels.rootfs import TREE

FILES = tuple(
    f"bpf/tests/test_{name}.py"
    for name in (
        "tc",
        "external",
        "affinity",
        "fragments",
        "host_port",
        "sctp",
        "unserved",
        "sources",
        "sweep",
        "maglev",
        "echo",
        "deny",
        "xdp",
    )
)

# An emulated CPU takes seconds for what fills the table of flows.
TIMEOUT_S = 300


def run(machine: Machine, arguments: Sequence[str] = FILES) -> "subprocess.CompletedProcess[str]":
    """Runs tests on the guest; `arguments` are pytest's. What it prints is in `stdout`."""
    options = ["-m", "root", f"--timeout={TIMEOUT_S}", "-rs", "-p", __name__, f"--guest={machine.fileno()}"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments],
        cwd=TREE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[machine.fileno()],
        text=True,
        check=False,
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--guest", type=int, required=True, help="descriptor of the connection to a guest")


def pytest_configure(config: pytest.Config) -> None:
    datapath.run_on = LoadedOnce(Machine.of_descriptor(config.getoption("--guest")))


class LoadedOnce:
    """A guest whose programs stay once they are loaded."""

    def __init__(self, guest: Kernel) -> None:
        self._guest = guest

    def __call__(self, function: Callable[..., Any], *arguments: object) -> Any:
        if function is kernel.unload:
            return None
        return self._guest(tools.load_once if function is kernel.load else function, *arguments)
