# SPDX-License-Identifier: Apache-2.0
"""Container images for the lab, made without an engine and without a registry, into the cache that all clones share.

    pause      one static program: what a pod's sandbox runs
    agnhost    Kubernetes' own test server, in a Debian of a few tools, under the name that upstream's tests ask for

Both are packed as one docker archive, which `ctr images import` reads. `python -m e2e.lab.images` prints where it is:
minutes the first time (debootstrap), then nothing.
"""

import hashlib
import json
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

from e2e import kubernetes
from e2e.lab.errors import LabError

AGNHOST = "registry.k8s.io/e2e-test-images/agnhost:2.63.0"
PAUSE = "registry.k8s.io/pause:3.10.2"
SUITE = "bookworm"
PACKAGES = ("bind9-dnsutils", "curl", "iproute2", "iputils-ping", "netcat-openbsd")
# What no program in a pod reads.
SURPLUS = ("usr/share/doc", "usr/share/locale", "usr/share/man", "var/cache/apt", "var/lib/apt/lists", "var/log")
PAUSE_SOURCE = Path(__file__).parent / "pause.c"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
ENVIRONMENT = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]


def archive() -> Path:
    """The docker archive, made first when it is missing.

    Raises:
        LabError: debootstrap is not there, or something failed; the message carries what was said.
        kubernetes.BuildError: agnhost cannot be built.
    """
    agnhost = kubernetes.command("agnhost")
    recipe = repr((SUITE, PACKAGES, SURPLUS, AGNHOST, PAUSE, str(agnhost))).encode()
    digest = hashlib.sha256(recipe + PAUSE_SOURCE.read_bytes())
    path = kubernetes.cache() / "images" / f"{digest.hexdigest()[:12]}.tar"
    if not path.exists():
        with kubernetes.locked("images"):
            path.parent.mkdir(exist_ok=True)
            if not path.exists():
                _make(path, agnhost)
    return path


def _make(path: Path, agnhost: Path) -> None:
    print("making the container images (minutes the first time)", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        work = Path(scratch)
        images = [
            _image(work / "pause", _pause_root(work), [PAUSE], {"Entrypoint": ["/pause"]}),
            _image(
                work / "agnhost", _debian_root(work, agnhost), [AGNHOST], {"Entrypoint": ["/agnhost"], "Cmd": ["pause"]}
            ),
        ]
        (work / "manifest.json").write_text(json.dumps(images))
        with tarfile.open(work / "archive.tar", "w") as packed:
            for part in ("manifest.json", "pause", "agnhost"):
                packed.add(work / part, part)
        (work / "archive.tar").rename(path)


def _image(directory: Path, root: Path, names: list[str], config: dict[str, Any]) -> dict[str, Any]:
    """Packs a root file system as an image's only layer; the image's entry in the manifest."""
    directory.mkdir()
    layer = directory / "layer.tar"
    _run("tar", "--numeric-owner", "-C", str(root), "-cf", str(layer), ".")
    shutil.rmtree(root)
    with layer.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    described = {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Env": ENVIRONMENT, "WorkingDir": "/", **config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    (directory / "config.json").write_text(json.dumps(described))
    parts = f"{directory.name}/config.json", f"{directory.name}/layer.tar"
    return {"Config": parts[0], "RepoTags": names, "Layers": [parts[1]]}


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
