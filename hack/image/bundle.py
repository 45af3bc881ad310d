# SPDX-License-Identifier: Apache-2.0
"""The bundle: our programs on their runtime, in a directory named by a digest of all that is in it.

    bin/calico-ebpf, bin/oneshot      the command line, the one-shot process
    bin/python3, bin/bpftool          run by the loader below, never by the node's
    lib/ld.so, lib/*.so*              the C library and the others, with their loader
    lib/python3.11/                   Python's library, what we import, bpf, cni, controller
    bpf/*.o                           the BPF programs
    cni/calico-ebpf, cni/loopback     what belongs in /opt/cni/bin: both static
    doc/                              the terms of use of what is not ours

It runs wherever it stands and whatever C library the system has. bpf/bundle.py is how our code knows of it.
"""

import hashlib
import shutil
import stat
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from hack.gobuild import HACK, Module
from hack.image import runtime
from hack.image.compiled import compile_tree
from hack.image.requirements import ROOT, option

# Debian's needs a C library of the node that is newer than some nodes have.
LOOPBACK = Module(
    HACK / "loopback",
    "github.com/containernetworking/plugins",
    {"loopback": "github.com/containernetworking/plugins/plugins/main/loopback"},
)
OBJECTS = ("tc.o", "cgroup.o", "sweep.o", "xdp.o")
SCRIPT = """#!/bin/sh
# Python and its C library are the bundle's, wherever that stands: by a link to this file, too.
here=$(readlink -f "$0") && here=${{here%/bin/*}} || exit
exec "$here/lib/ld.so" --library-path "$here/lib" --argv0 "$here/bin/python3" "$here/bin/python3" {arguments}
"""
# Isolated, and without site: all that is imported is in Python's own library.
SCRIPTS = {
    "bin/calico-ebpf": '-I -S -m bpf.cli "$@"',
    "bin/oneshot": "-I -S -m cni.oneshot",
}


def make(architecture: str, launcher: Path, objects: Path, parent: Path) -> Path:
    """Makes a bundle in `parent`, and returns its directory.

    Args:
        launcher: cni/launcher.c, compiled for the architecture.
        objects: the directory of the BPF programs, which are the same for all.

    Raises:
        CommandError: a package of the runtime cannot be had.
        BuildError: loopback cannot be built.
        FileNotFoundError: something is not built.
    """
    plugin = loopback(architecture)
    unnamed = parent / "bundle"
    shutil.copytree(runtime.made(architecture), unnamed, symlinks=True)
    for name, arguments in SCRIPTS.items():
        (unnamed / name).write_text(SCRIPT.format(arguments=arguments))
        (unnamed / name).chmod(0o755)
    (unnamed / "bpf").mkdir()
    for name in OBJECTS:
        shutil.copy(objects / name, unnamed / "bpf" / name)
    (unnamed / "cni").mkdir()
    shutil.copy(launcher, unnamed / "cni" / "calico-ebpf")
    shutil.copy(plugin, unnamed / "cni" / "loopback")
    _add_packages(unnamed / runtime.LIBRARY)
    _settle_modes(unnamed)
    return unnamed.rename(parent / f"bundle-{digest(unnamed)}")


def loopback(architecture: str) -> Path:
    """The CNI plugin by which container runtimes make a pod's lo, built first when it is missing.

    Raises:
        BuildError: Go failed, or a module could not be had.
    """
    built_for = "" if architecture == runtime.NATIVE else architecture
    return replace(LOOPBACK, architecture=built_for).built(["loopback"]) / "loopback"


def digest(tree: Path) -> str:
    """A short digest of a tree's paths, modes and contents."""
    whole = hashlib.sha256()
    for path in sorted(tree.rglob("*")):
        what = stat.filemode(path.lstat().st_mode)
        content = str(path.readlink()).encode() if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        whole.update(f"{path.relative_to(tree)}\0{what}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return whole.hexdigest()[:12]


def _add_packages(library: Path) -> None:
    """Our packages, without their tests, and as much of an installation's record as tells the version."""
    for name in option("packages").replace(",", " ").split():
        target = library / name.replace(".", "/")
        target.mkdir()
        for source in (ROOT / name.replace(".", "/")).glob("*.py"):
            shutil.copyfile(source, target / source.name)
        compile_tree(target, library)
    record = library / f"calico_ebpf-{version('calico-ebpf')}.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: calico-ebpf\nVersion: {version('calico-ebpf')}\n")


def _settle_modes(tree: Path) -> None:
    """Whatever umask(2) was in force where the files come from."""
    for path in tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0o644)
