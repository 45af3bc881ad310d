# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernels, taken from its packages into the cache that all clones share.

What is cached stays: a newer kernel of a suite is had by removing the suite's directory there.
`python -m e2e.kernels.images` fetches all.
"""

import platform
import re
from pathlib import Path
from typing import NamedTuple

from hack.cache import cache, kept
from hack.command import CommandError
from hack.image.apt import Apt, unpack

# What tests call a kernel, and the suite that has it: forky's is whatever is newest there.
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "bookworm-backports", "forky": "forky"}

PACKAGE = "linux-image-cloud-amd64"


class Image(NamedTuple):
    """A kernel.

    Attributes:
        release: as uname(1) tells it.
        kernel: what QEMU boots.
        modules: the directory that has modules.builtin.
    """

    name: str
    release: str
    kernel: Path
    modules: Path


def image(name: str) -> Image:
    """The kernel of one of SUITES, downloaded first when it is missing.

    Raises:
        CommandError: it could not be downloaded; the message carries what apt or dpkg said.
    """
    directory = kept(cache() / "kernels" / SUITES[name], lambda scratch: _download(name, scratch))
    return Image(name, (directory / "release").read_text(), directory / "vmlinuz", directory / "modules")


def _download(name: str, scratch: Path) -> Path:
    """A new directory with the kernel of a suite: vmlinuz, modules, release, packages (what it was made of)."""
    apt, packages, root = Apt(SUITES[name], "amd64", scratch), scratch / "packages", scratch / "root"
    wanted = _kernel_packages(apt)
    packages.mkdir()
    apt.download(wanted, packages)
    unpack(packages, root)
    kernels = [path for path in root.rglob("vmlinuz*") if not path.is_symlink()]
    indexes = list(root.rglob("modules.builtin"))
    if len(kernels) != 1 or len(indexes) != 1:
        raise CommandError(f"kernel {name}: no kernel and modules in {', '.join(wanted)}")
    target = scratch / "image"
    target.mkdir()
    kernels[0].rename(target / "vmlinuz")
    indexes[0].parent.rename(target / "modules")
    (target / "release").write_text(indexes[0].parent.name)
    (target / "packages").write_text("".join(f"{archive.name}\n" for archive in sorted(packages.iterdir())))
    return target


def _kernel_packages(apt: Apt) -> list[str]:
    """The packages that the newest kernel of the suite consists of, with their versions."""
    found: dict[str, str] = {}
    wanted = [PACKAGE]
    while wanted:
        package = wanted.pop()
        control = apt.run("apt-cache", "show", "--no-all-versions", package)
        found[package] = _field(control, "Version")
        depends = re.findall(r"linux-(?:base|binary|image|modules)-\d[^\s,]*", _field(control, "Depends"))
        wanted += [name for name in depends if name not in found]
    del found[PACKAGE]
    return [f"{package}={version}" for package, version in found.items()]


def _field(control: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", control, re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    if platform.machine() == "x86_64":
        for suite in SUITES:
            print(image(suite).release)
