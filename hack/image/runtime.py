# SPDX-License-Identifier: Apache-2.0
"""What the bundle stands on: a Python with its C library, bpftool, and what we import.

Debian's, from packages, with pip's wheels: nothing is compiled, so another architecture is no other work. It is made
once for each choice of versions, and kept in the cache.
"""

import platform
import shutil
from pathlib import Path

from hack.cache import cache, digest, kept
from hack.command import CommandError, run
from hack.image import elf, requirements
from hack.image.apt import Selection, unpack
from hack.image.compiled import PYTHON, compile_tree
from hack.image.rootfs import SUITE, terms_alone

PACKAGES = (
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
    *("libbz2-1.0", "libc6", "libexpat1", "libffi8", "liblzma5", "libsqlite3-0", "libssl3", "libuuid1", "zlib1g"),
    *("bpftool", "libcap2", "libelf1", "libgcc-s1"),
)
MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
NATIVE = {machine: architecture for architecture, machine in MACHINES.items()}[platform.machine()]
# The C library loads it, by name, where a thread ends itself.
ALSO = ("libgcc_s.so.1",)
# Wheels that the bundle's own C library, 2.36, can run.
GLIBCS = ("manylinux_2_34", "manylinux_2_28", "manylinux2014")

LIBRARY = f"lib/{PYTHON}"
PROGRAMS = {"usr/bin/python3.11": "bin/python3", "usr/sbin/bpftool": "bin/bpftool"}
# Of Python's library, what nothing here imports: tools, tests, and modules whose libraries would come along.
SURPLUS = (
    *("EXTERNALLY-MANAGED", "config-3.11-*", "sitecustomize.py"),
    *("distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtle*"),
    *("lib-dynload/_crypt.*", "lib-dynload/_curses*", "lib-dynload/_dbm.*", "lib-dynload/_gdbm.*"),
    *("lib-dynload/*_test*", "lib-dynload/_xxtestfuzz.*", "lib-dynload/nis.*", "lib-dynload/readline.*"),
)
# Of the Kubernetes client, what is generated from the API: ours speaks to it in its own words, controller/apiserver.py.
UNUSED = (
    *("kubernetes/aio", "kubernetes/client/api/[!_]*.py", "kubernetes/client/models/[!_]*.py"),
    *("bin", "*.dist-info/RECORD"),
)


def made(architecture: str) -> Path:
    """The directory, in the cache.

    Raises:
        CommandError: a package cannot be had.
    """
    packages, wheels = Selection(SUITE, architecture, PACKAGES, security=True), requirements.pinned()
    here = Path(__file__).parent
    sources = (here / name for name in ("runtime.py", "compiled.py", "elf.py"))
    target = cache() / "runtime" / f"{architecture}-{digest(packages, wheels, *sources)}"
    return kept(target, lambda scratch: _make(packages, wheels, scratch))


def _make(packages: Selection, wheels: list[str], scratch: Path) -> Path:
    debian, target = scratch / "debian", scratch / "runtime"
    unpack(packages.fetched(), debian)
    for source, name in PROGRAMS.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(debian / source, target / name)
    shutil.copytree(debian / "usr/lib/python3.11", target / LIBRARY, symlinks=True)
    _remove(target / LIBRARY, SURPLUS)
    _install(wheels, packages.architecture, scratch / "wheels")
    _remove(scratch / "wheels", UNUSED)
    shutil.copytree(scratch / "wheels", target / LIBRARY, dirs_exist_ok=True)
    elf.gather(debian, target, ALSO)
    shutil.copytree(debian / "usr/share/doc", target / "doc", symlinks=True)
    terms_alone(target / "doc")
    compile_tree(target / LIBRARY)
    return target


def _install(wheels: list[str], architecture: str, target: Path) -> None:
    """pip's, for another Python than the one that it runs in."""
    machine = MACHINES[architecture]
    platforms = [f"--platform={glibc}_{machine}" for glibc in GLIBCS]
    chosen = ("--only-binary=:all:", "--implementation=cp", "--python-version=3.11", *platforms)
    pip = str(requirements.ROOT / ".venv/bin/pip")
    run(pip, "install", "--quiet", "--no-deps", "--no-compile", *chosen, "--target", str(target), *wheels)
    for name in target.iterdir():
        if not name.name.endswith(".dist-info") and name.name in ("bpf", "cni", "controller"):
            raise CommandError(f"a package of the name {name.name} is ours")


def _remove(directory: Path, patterns: tuple[str, ...]) -> None:
    for pattern in patterns:
        for path in directory.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
