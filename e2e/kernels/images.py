# SPDX-License-Identifier: Apache-2.0
"""Debian's cloud kernels, taken from its packages into the cache that all clones share.

apt runs with lists and a cache of its own, on the mirror that this machine's apt asks for Debian. What is cached stays:
a newer kernel of a suite is had by removing the suite's directory there. `python -m e2e.kernels.images` fetches all.
"""

import fcntl
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from e2e.kubernetes import cache

# What tests call a kernel, and the suite that has it: forky's is whatever is newest there.
SUITES = {"5.10": "bullseye", "6.1": "bookworm", "6.12": "bookworm-backports", "forky": "forky"}

PACKAGE = "linux-image-cloud-amd64"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


class ImageError(Exception):
    """A kernel cannot be had; the message says which, and what apt or dpkg said."""


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
        ImageError: it could not be downloaded.
    """
    directory = cache() / "kernels" / SUITES[name]
    if not directory.is_dir():
        with _locked(cache() / "kernels.lock"):
            if not directory.is_dir():
                directory.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=directory.parent, prefix=".new-") as scratch:
                    _download(name, Path(scratch)).rename(directory)
    return Image(name, (directory / "release").read_text(), directory / "vmlinuz", directory / "modules")


def _download(name: str, scratch: Path) -> Path:
    """A new directory with the kernel of a suite: vmlinuz, modules, release, packages (what it was made of)."""
    apt = _Apt(name, scratch)
    apt.update()
    packages = apt.kernel_packages()
    (scratch / "packages").mkdir()
    apt.run("apt-get", "download", *packages, cwd=scratch / "packages")
    (scratch / "root").mkdir()
    archives = sorted((scratch / "packages").glob("*.deb"))
    for archive in archives:
        _run(name, "dpkg-deb", "-x", str(archive), str(scratch / "root"))
    kernels = [path for path in (scratch / "root").rglob("vmlinuz*") if not path.is_symlink()]
    indexes = list((scratch / "root").rglob("modules.builtin"))
    if len(kernels) != 1 or len(indexes) != 1:
        raise ImageError(f"kernel {name}: no kernel and modules in {', '.join(packages)}")
    target = scratch / "image"
    target.mkdir()
    kernels[0].rename(target / "vmlinuz")
    indexes[0].parent.rename(target / "modules")
    (target / "release").write_text(indexes[0].parent.name)
    (target / "packages").write_text("".join(f"{archive.name}\n" for archive in archives))
    return target


class _Apt:
    """apt with a configuration of its own, which knows one suite and no installed package."""

    def __init__(self, name: str, scratch: Path) -> None:
        self._name = name
        state = scratch / "apt"
        for directory in ("lists/partial", "cache/archives/partial"):
            (state / directory).mkdir(parents=True)
        (state / "sources.list").write_text(f"deb [signed-by={KEYRING}] {self._mirror()} {SUITES[name]} main\n")
        options = {
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Dir::Cache": str(state / "cache"),
            "Dir::Etc::sourcelist": str(state / "sources.list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::State::lists": str(state / "lists"),
            "Dir::State::status": "/dev/null",
        }
        self._options = [f"--option={key}={value}" for key, value in options.items()]

    def run(self, command: str, *arguments: str, cwd: Path | None = None) -> str:
        return _run(self._name, command, *self._options, *arguments, cwd=cwd)

    def update(self) -> None:
        # Without the option an index that cannot be had is a warning.
        self.run("apt-get", "--option=APT::Update::Error-Mode=any", "update", "--quiet")

    def kernel_packages(self) -> list[str]:
        """The packages that the newest kernel of the suite consists of, with their versions."""
        found: dict[str, str] = {}
        wanted = [PACKAGE]
        while wanted:
            package = wanted.pop()
            control = self.run("apt-cache", "show", "--no-all-versions", package)
            found[package] = _field(control, "Version")
            depends = re.findall(r"linux-(?:base|binary|image|modules)-\d[^\s,]*", _field(control, "Depends"))
            wanted += [name for name in depends if name not in found]
        del found[PACKAGE]
        return [f"{package}={version}" for package, version in found.items()]

    def _mirror(self) -> str:
        """Where this machine's apt gets Debian itself, as against its security updates, or others' packages."""
        targets = _run(
            self._name,
            *("apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(REPO_URI)", "Created-By: Packages"),
        )
        for line in targets.splitlines():
            origin, codename, *uri = line.split()
            if origin == "Debian" and "-" not in codename and uri:
                return uri[0]
        raise ImageError(f"kernel {self._name}: apt has no source of Debian, or no lists (apt-get update)")


def _field(control: str, name: str) -> str:
    found = re.search(rf"^{name}: (.*)$", control, re.MULTILINE)
    return found[1] if found else ""


def _run(name: str, *command: str, cwd: Path | None = None) -> str:
    process = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if process.returncode:
        raise ImageError(f"kernel {name}: {' '.join(command[:1])}: {process.stderr.strip()[-2000:]}")
    return process.stdout


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    if platform.machine() == "x86_64":
        for suite in SUITES:
            print(image(suite).release)
