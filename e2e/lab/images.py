# SPDX-License-Identifier: Apache-2.0
"""Container images for the lab, made without an engine and without a registry, into the cache that all clones share.

    pause      one static program: what a pod's sandbox runs
    agnhost    Kubernetes' own test server, in a Debian of a few tools, under the name that upstream's tests ask for

Both are packed as one docker archive, which `ctr images import` reads. `python -m e2e.lab.images` prints where it is:
minutes the first time (debootstrap), then nothing.
"""

import platform
import shutil
import subprocess
import sys
from pathlib import Path

from e2e import kubernetes
from e2e.lab.errors import LabError
from hack.cache import cache, digest, kept
from hack.image.archive import Image, pack, write

AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
PAUSE = "registry.k8s.io/pause:3.10.2"
SUITE = "bookworm"
PACKAGES = ("bind9-dnsutils", "curl", "iproute2", "iputils-ping", "netcat-openbsd")
# What no program in a pod reads.
SURPLUS = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists", "var/log")
PAUSE_SOURCE = Path(__file__).parent / "pause.c"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def archive() -> Path:
    """The docker archive, made first when it is missing.

    Raises:
        LabError: debootstrap is not there, or something failed; the message carries what was said.
        kubernetes.BuildError: agnhost cannot be built.
    """
    agnhost = kubernetes.command("agnhost")
    name = digest(SUITE, PACKAGES, SURPLUS, AGNHOST, PAUSE, str(agnhost), PAUSE_SOURCE)
    return kept(cache() / "images" / f"{name}.tar", lambda scratch: _make(scratch, agnhost))


def _make(work: Path, agnhost: Path) -> Path:
    print("making the container images (minutes the first time)", file=sys.stderr, flush=True)
    images = [
        Image(PAUSE, ARCHITECTURE, {"Entrypoint": ["/pause"]}, [_layer(_pause_root(work))]),
        Image(
            AGNHOST,
            ARCHITECTURE,
            {"Entrypoint": ["/agnhost"], "Cmd": ["pause"]},
            [_layer(_debian_root(work, agnhost))],
        ),
    ]
    write(images, work / "archive.tar")
    return work / "archive.tar"


def _layer(root: Path) -> Path:
    """Packs a root file system, and removes it."""
    layer = root.with_suffix(".tar")
    pack(root, layer)
    shutil.rmtree(root)
    return layer


def _pause_root(work: Path) -> Path:
    root = work / "pause-root"
    root.mkdir()
    _run("cc", "-Os", "-static", "-s", "-o", str(root / "pause"), str(PAUSE_SOURCE))
    return root


def _debian_root(work: Path, agnhost: Path) -> Path:
    """A minimal Debian with agnhost at /agnhost."""
    if not shutil.which("debootstrap"):
        raise LabError("debootstrap is not installed (Debian package debootstrap)")
    root = work / "agnhost-root"
    # What it mounts is gone with it, also where it is killed.
    _run("unshare", "--mount", "debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, str(root))
    for surplus in SURPLUS:
        shutil.rmtree(root / surplus)
        (root / surplus).mkdir()
    shutil.copy(agnhost, root / "agnhost")
    (root / "uploads").mkdir()  # netexec's
    return root


def _run(*argv: str) -> None:
    process = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if process.returncode:
        raise LabError(
            f"{' '.join(argv)}: exit status {process.returncode}: {(process.stderr or process.stdout)[-2000:]}"
        )


if __name__ == "__main__":
    print(archive())
