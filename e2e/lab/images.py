# SPDX-License-Identifier: Apache-2.0
"""Container images for the lab, made without an engine and without a registry, into the cache that all clones share.

    pause      one static program: what a pod's sandbox runs
    agnhost    Kubernetes' own test server, in a Debian of a few tools
    glibc-dns  that Debian: upstream's tests ask names there too, by another C library than their own agnhost's
    nginx      that Debian, which has nginx

All bear the names that upstream's tests ask for, and are packed as one docker archive, which `ctr images import` reads.
`python -m e2e.lab.images` prints where it is: minutes the first time (debootstrap), then nothing.
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
GLIBC_DNS = "registry.k8s.io/e2e-test-images/glibc-dns-testing:2.0.0"
NGINX = "registry.k8s.io/e2e-test-images/nginx:1.15-4"
PAUSE = "registry.k8s.io/pause:3.10.2"
SUITE = "bookworm"
PACKAGES = ("bind9-dnsutils", "curl", "iproute2", "iputils-ping", "netcat-openbsd", "nginx-light", "wget")
# As busybox's, which agnhost's own image has. It is not Debian's busybox, whose wget crashes with a time-out.
WGETRC = "tries = 1\n"
# What each image of the Debian runs.
DEBIAN: dict[str, dict[str, list[str]]] = {
    AGNHOST: {"Entrypoint": ["/agnhost"], "Cmd": ["pause"]},
    GLIBC_DNS: {},
    NGINX: {"Cmd": ["nginx", "-g", "daemon off; error_log stderr;"]},
}
# What agnhost's command porter expects beside it, of Kubernetes' sources.
PORTER = ("test/images/agnhost/porter/localhost.crt", "test/images/agnhost/porter/localhost.key")
# What no program in a pod reads.
SURPLUS = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists")
PAUSE_SOURCE = Path(__file__).parent / "pause.c"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]


def archive() -> Path:
    """The docker archive, made first when it is missing.

    Raises:
        LabError: debootstrap is not there, or something failed; the message carries what was said.
        kubernetes.BuildError: agnhost cannot be built, or Kubernetes' sources cannot be had.
    """
    agnhost = kubernetes.command("agnhost")
    name = digest(SUITE, PACKAGES, WGETRC, PORTER, SURPLUS, repr(DEBIAN), PAUSE, str(agnhost), PAUSE_SOURCE)
    return kept(cache() / "images" / f"{name}.tar", lambda scratch: _make(scratch, agnhost))


def _make(work: Path, agnhost: Path) -> Path:
    print("making the container images (minutes the first time)", file=sys.stderr, flush=True)
    pause, debian = _layer(_pause_root(work)), _layer(_debian_root(work, agnhost))
    images = [Image(PAUSE, ARCHITECTURE, {"Entrypoint": ["/pause"]}, [pause])]
    images += [Image(name, ARCHITECTURE, config, [debian]) for name, config in DEBIAN.items()]
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
    """A minimal Debian with agnhost at /agnhost, and beside it what its commands expect there."""
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
    (root / "etc/wgetrc").write_text(WGETRC)
    for source in PORTER:
        shutil.copy(kubernetes.sources() / source, root)
    return root


def _run(*argv: str) -> None:
    process = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if process.returncode:
        raise LabError(
            f"{' '.join(argv)}: exit status {process.returncode}: {(process.stderr or process.stdout)[-2000:]}"
        )


if __name__ == "__main__":
    print(archive())
