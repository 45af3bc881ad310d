# SPDX-License-Identifier: Apache-2.0
"""Builds the image of an architecture, and what is below it, from what `make` has built of this checkout."""

import shutil
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from hack.cache import digest
from hack.command import run
from hack.image import archive, bundle, place, requirements, rootfs
from hack.image.archive import Image
from hack.image.requirements import ROOT
from hack.image.runtime import NATIVE

NAME = "calico-ebpf:dev"
BUILD = ROOT / "build"
CONFIG = {
    "Entrypoint": [f"/{place.COMMAND}"],
    "Labels": {
        "org.opencontainers.image.title": "calico-ebpf",
        "org.opencontainers.image.version": version("calico-ebpf"),
        "org.opencontainers.image.licenses": "Apache-2.0",
    },
}


def image(architecture: str) -> Path:
    """The docker archive of an architecture, made first where it is missing or older than what it is made of.

    Raises:
        CommandError: a package cannot be had.
        BuildError: Go could not build loopback.
        FileNotFoundError: something is not built.
    """
    target = BUILD / ("image.tar" if architecture == NATIVE else f"image-{architecture}.tar")
    work = _work(architecture)
    recipe, record = _recipe(architecture), work / "recipe"
    if not (target.exists() and record.exists() and record.read_text() == recipe):
        shutil.rmtree(work, ignore_errors=True)
        (work / "root").mkdir(parents=True)
        _put_bundle(architecture, work / "root")
        archive.pack(work / "root", work / "bundle.tar")
        layers = (rootfs.layer(architecture), work / "bundle.tar")
        archive.write([Image(NAME, architecture, CONFIG, layers)], target)
        (work / "bundle.tar").unlink()
        record.write_text(recipe)
    return target


def installed(architecture: str) -> Path:
    """A directory that has the bundle alone, at its place, as it is on a node. Makes the image; raises as `image`."""
    image(architecture)
    return _work(architecture) / "root"


def lay_out(architecture: str, root: Path) -> None:
    """Lays out the image's root file system in a directory. Raises as `image`."""
    root.mkdir(parents=True, exist_ok=True)
    run("tar", "--directory", str(root), "--extract", "--file", str(rootfs.layer(architecture)))
    _put_bundle(architecture, root)


def _put_bundle(architecture: str, root: Path) -> None:
    library = root / place.LIBRARY
    library.mkdir(parents=True, exist_ok=True)
    place.put_links(root, bundle.make(architecture, _launcher(architecture), BUILD / "bpf", library).name)


def _work(architecture: str) -> Path:
    return BUILD / "image" / architecture


def _launcher(architecture: str) -> Path:
    """The CNI executable, as `make` builds it."""
    return (BUILD if architecture == NATIVE else BUILD / architecture) / "bin" / "calico-ebpf"


def _recipe(architecture: str) -> str:
    """By which is known whether an image that was built is what would be built now."""
    sources = sorted(_sources(architecture))
    return digest(CONFIG, requirements.pinned(), sources, *sources)


def _sources(architecture: str) -> Iterator[Path]:
    """All files of this checkout that are in the image, or say what is."""
    yield _launcher(architecture)
    yield from (BUILD / "bpf" / name for name in bundle.OBJECTS)
    yield from bundle.LOOPBACK.directory.iterdir()
    for name in (*requirements.option("packages").replace(",", " ").split(), "hack", "hack.image"):
        yield from (ROOT / name.replace(".", "/")).glob("*.py")
