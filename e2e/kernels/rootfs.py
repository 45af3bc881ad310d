# SPDX-License-Identifier: Apache-2.0
"""The guest's root file system, an initramfs: busybox, this machine's Python, bpftool, ip and tc with the libraries
that they need, the project's programs, the test client, and the kernel's modules.
"""

import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pyroute2

from e2e.kernels import modules
from e2e.kernels.cpio import Archive
from e2e.kernels.images import Image

TREE = Path(__file__).parents[2]
GUEST = Path(__file__).parent / "guest"
TOOLS = ("bpftool", "ip", "tc")

# What the guest is talked to by, what the programs are attached with, and what only these kernels have.
MODULES = (
    *("virtio_pci", "virtio_console"),
    *("veth", "vxlan", "8021q", "sch_ingress", "cls_bpf"),
    *("ip_vs", "ip_vs_rr", "ipip", "sch_fq", "sctp", "udp_diag", "tun"),
)

# Parts of Python's library that are large, and that nothing in the guest asks for.
LEFT_OUT = frozenset(
    ("config-3.11-x86_64-linux-gnu", "distutils", "ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter")
)


class RootError(Exception):
    """The root file system cannot be made: a command is missing or failed."""


def make(image: Image, path: Path) -> None:
    """Writes the initramfs of a kernel.

    Raises:
        RootError: a tool is not installed, or the client does not compile.
        FileNotFoundError: `make build` has not run, or the kernel lacks a module.
    """
    with Archive(path) as archive:
        for directory in ("/proc", "/sys", "/dev", "/tmp", "/run", "/bin", "/sbin", "/etc"):
            archive.directory(directory)
        archive.copy(GUEST / "init", "/init")
        archive.copy(_tool("busybox"), "/bin/busybox")
        for name in TOOLS:
            _program(archive, _tool(name), f"/usr/sbin/{name}")
        _python(archive)
        _project(archive)
        _client(archive)
        order = []
        for name, content in modules.insertion(image.modules, MODULES):
            archive.write(f"/modules/{name}.ko", content)
            order.append(f"{name}\n")
        archive.write("/modules/order", "".join(order).encode())


def _python(archive: Archive) -> None:
    library = Path(sysconfig.get_path("stdlib"))
    _program(archive, Path(sys.executable).resolve(), "/usr/bin/python3")
    for extension in (library / "lib-dynload").iterdir():
        _libraries(archive, extension)
    archive.tree(library, str(library), LEFT_OUT)


def _project(archive: Archive) -> None:
    for path in (*(TREE / "bpf").glob("*.py"), *(TREE / "build" / "bpf").glob("*.o")):
        archive.copy(path, f"/tree/{path.relative_to(TREE)}")
    packages = ("bpf/tests/__init__.py", "e2e/__init__.py", "e2e/kernels/__init__.py")
    for name in (*packages, "bpf/tests/kernel.py", "e2e/lab/offloads.py", "e2e/lab/vpn.py"):
        archive.copy(TREE / name, f"/tree/{name}")
    for path in GUEST.glob("*.py"):
        archive.copy(path, f"/tree/{path.relative_to(TREE)}")
    archive.tree(Path(pyroute2.__file__).parent, "/site/pyroute2")


def _client(archive: Archive) -> None:
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "client"
        flags = ("-std=c11", "-D_GNU_SOURCE", "-O2", "-static", "-Wall", "-Wextra", "-Werror")
        process = subprocess.run(
            [_tool("cc"), *flags, "-o", program, GUEST / "client.c"], capture_output=True, text=True, check=False
        )
        if process.returncode:
            raise RootError(f"{GUEST / 'client.c'}: {process.stderr.strip()}")
        archive.copy(program, "/usr/bin/client")


def _program(archive: Archive, source: Path, path: str) -> None:
    archive.copy(source, path)
    _libraries(archive, source)


def _libraries(archive: Archive, program: Path) -> None:
    """The shared libraries of a program or library, where the dynamic linker looks for them."""
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    for name in re.findall(r"(/\S+) \(0x", listed):
        archive.copy(Path(name), name)


def _tool(name: str) -> Path:
    found = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if not found:
        raise RootError(f"{name} is not installed: `make kernels` installs what is needed")
    return Path(found)
