# SPDX-License-Identifier: Apache-2.0
"""Writes build/image.tar, a docker archive of the image calico-ebpf:dev: `make image`.

    python -m hack.image [--arch arm64] [--tree DIRECTORY]

What is up to date is left as it is. With --tree the root file system is laid out in a directory instead.
"""

import argparse
import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from hack.cache import digest
from hack.command import CommandError, run
from hack.gobuild import BuildError
from hack.image import archive, bundle, place, requirements, rootfs
from hack.image.archive import Image
from hack.image.requirements import ROOT
from hack.image.runtime import MACHINES, NATIVE

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


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.image")
    parser.add_argument("--arch", choices=MACHINES, default=NATIVE)
    parser.add_argument("--tree", type=Path, help="lay the root file system out here, and write no archive")
    options = parser.parse_args()
    try:
        if options.tree:
            run("tar", "--directory", str(options.tree), "--extract", "--file", str(rootfs.layer(options.arch)))
            put_bundle(options.arch, options.tree)
        else:
            print(image(options.arch))
    except (BuildError, CommandError, FileNotFoundError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


def image(architecture: str) -> Path:
    """The docker archive of an architecture, made first where it is missing or older than what it is made of.

    Raises:
        CommandError: a package cannot be had.
        BuildError: Go could not build loopback.
        FileNotFoundError: something is not built.
    """
    native = architecture == NATIVE
    target = BUILD / ("image.tar" if native else f"image-{architecture}.tar")
    work = BUILD / "image" / architecture
    recipe, record = digest(requirements.pinned(), *_sources(architecture)), work / "recipe"
    if not (target.exists() and record.exists() and record.read_text() == recipe):
        shutil.rmtree(work, ignore_errors=True)
        (work / "root").mkdir(parents=True)
        put_bundle(architecture, work / "root")
        archive.pack(work / "root", work / "bundle.tar")
        layers = (rootfs.layer(architecture), work / "bundle.tar")
        archive.write([Image(NAME, architecture, CONFIG, layers)], target)
        (work / "bundle.tar").unlink()
        record.write_text(recipe)
    return target


def put_bundle(architecture: str, root: Path) -> None:
    """Makes the bundle at its place below a root. Raises as `image`."""
    library = root / place.LIBRARY
    library.mkdir(parents=True, exist_ok=True)
    place.put_links(root, bundle.make(architecture, launcher(architecture), BUILD / "bpf", library).name)


def launcher(architecture: str) -> Path:
    """The CNI executable, as `make` builds it."""
    return (BUILD if architecture == NATIVE else BUILD / architecture) / "bin" / "calico-ebpf"


def _sources(architecture: str) -> Iterator[Path]:
    """All files of this checkout that are in the image, or say what is."""
    yield launcher(architecture)
    yield from (BUILD / "bpf" / name for name in bundle.OBJECTS)
    yield from sorted(bundle.LOOPBACK.directory.iterdir())
    for name in (*requirements.option("packages").replace(",", " ").split(), "hack", "hack.image"):
        yield from sorted((ROOT / name.replace(".", "/")).glob("*.py"))


if __name__ == "__main__":
    raise SystemExit(main())
