# SPDX-License-Identifier: Apache-2.0
"""A release of this project whose maps have another layout: its sources, changed and built in a directory of their own.

A flow has a new field before all others, a frontend has others' places for its own, and there is one more thing to
remember.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from bpf.abi import AbiVersion
from e2e.lab.errors import LabError
from e2e.lab.node import ROOT

VERSION = AbiVersion.VERSION + 1
PACKAGES = ("bpf", "cni", "controller", "conf", "hack")

CHANGES = (
    (r"ABI_VERSION = \d+", f"ABI_VERSION = {VERSION}"),
    (r"struct flow \{", "struct flow {\n\t__u64 novelty;"),
    (r"ABI_LAYOUT\(flow, 96\)", "ABI_LAYOUT(flow, 104)"),
    (r"__u32 slot_count;", "__u32 pad;\n\t__u32 slot_count;"),
    (r"ABI_LAYOUT\(frontend, 24\)", "ABI_LAYOUT(frontend, 28)"),
    (r"\tSTATES,", "\tSTATE_NOVELTY,\n\tSTATES,"),
)


def make(tree: Path) -> Path:
    """Makes it in a directory that is not there yet, and returns that. Raises LabError."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tree / package, ignore=shutil.ignore_patterns("__pycache__", "tests"))
    shutil.copy(ROOT / "Makefile", tree)
    header = tree / "bpf" / "abi.h"
    text = header.read_text()
    for pattern, replacement in CHANGES:
        text, found = re.subn(pattern, replacement, text)
        if found != 1:
            raise LabError(f"abi.h has {pattern} {found} times")
    header.write_text(text)
    # set-up has been done, and the executable is the same
    make_of = ["make", "-C", str(tree), "-o", "setup", "-o", "build/bin/calico-ebpf", f"VENV={sys.prefix}", "layout"]
    process = subprocess.run(make_of, capture_output=True, text=True, check=False)
    if process.returncode:
        raise LabError(f"building another release: {process.stdout}{process.stderr}")
    return tree
