# SPDX-License-Identifier: Apache-2.0
"""Layers and docker archives, without a container engine: the same bytes from the same files.

Layout: `manifest.json`, and for each image a configuration and its layers, which `ctr images import`, `docker load` and
`podman load` read.
"""

import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# The beginning of time, in place of the time at which something was made.
CREATED = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Image:
    """An image.

    Attributes:
        architecture: amd64, arm64.
        config: of its containers: Entrypoint, Labels.
        layers: tar files, the lowest first.
    """

    name: str
    architecture: str
    config: Mapping[str, Any]
    layers: Sequence[Path]


def pack(tree: Path, target: Path) -> None:
    """Packs a directory as a layer: sorted, without times, owned by root, without set-user-ID."""
    with tarfile.open(target, "w", format=tarfile.GNU_FORMAT) as layer:
        for path in sorted(tree.rglob("*")):
            info = _plain(layer.gettarinfo(path, str(path.relative_to(tree))))
            if info.isreg():
                with path.open("rb") as content:
                    layer.addfile(info, content)
            else:
                layer.addfile(info)


def write(images: Sequence[Image], target: Path) -> None:
    """Writes a docker archive. A layer of several images is in it once."""
    manifest = []
    unfinished = target.with_name(f"{target.name}.new")
    with tarfile.open(unfinished, "w", format=tarfile.GNU_FORMAT) as archive:
        held: set[str] = set()
        for image in images:
            digests = [_digest(layer) for layer in image.layers]
            for layer, digest in zip(image.layers, digests, strict=True):
                if digest not in held:
                    held.add(digest)
                    _add_file(archive, f"{digest}.tar", layer)
            config = json.dumps(_described(image, digests), sort_keys=True).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(archive, name, config)
            layers = [f"{digest}.tar" for digest in digests]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": layers})
        _add(archive, "manifest.json", json.dumps(manifest).encode())
    unfinished.rename(target)


def _described(image: Image, digests: Sequence[str]) -> dict[str, Any]:
    """An image's configuration, as of the OCI image specification 1.0."""
    return {
        "architecture": image.architecture,
        "os": "linux",
        "created": CREATED,
        "config": {"Env": [PATH], "WorkingDir": "/", **image.config},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}" for digest in digests]},
        "history": [{"created": CREATED, "created_by": "hack/image"} for _ in digests],
    }


def _plain(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    info.mode = _mode(info)
    return info


def _mode(info: tarfile.TarInfo) -> int:
    """Whatever umask(2) was in force where the file was made."""
    if info.isdir() and info.mode & stat.S_ISVTX:
        return 0o1777
    return 0o755 if info.isdir() or info.mode & stat.S_IXUSR else 0o644


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def _add_file(archive: tarfile.TarFile, name: str, path: Path) -> None:
    info = tarfile.TarInfo(name)
    info.size = os.stat(path).st_size
    with path.open("rb") as content:
        archive.addfile(info, content)


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
