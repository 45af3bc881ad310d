# SPDX-License-Identifier: Apache-2.0
"""A kernel that runs in QEMU, under software emulation: booted, asked to call functions, and switched off.

The guest ends when its connection does, hence with the process that holds it, however that ends.
"""

import pickle
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from e2e.kernels import rootfs
from e2e.kernels.images import Image

QEMU = "qemu-system-x86_64"
MEMORY_MB = 1024
BOOT_S = 300
CALL_S = 300

# QEMU 7.2 does cmpxchg16b wrongly, and 6.12 panics. A panic ends QEMU, since it may not reboot.
OPTIONS = (
    "-machine",
    "q35,accel=tcg",
    "-cpu",
    "Nehalem,cx16=off",
    "-smp",
    "1",
    "-nographic",
    "-no-reboot",
    "-nodefaults",
)
COMMAND_LINE = "console=ttyS0 panic=-1 quiet"

T = TypeVar("T")


class MachineError(Exception):
    """The guest did not boot, died, or does not answer; the message ends with the last lines of its console."""


class CallError(Exception):
    """A function that was called in the guest failed; the message is its traceback."""


class Machine:
    """A running guest; itself a kernel as bpf.tests.kernel has it."""

    def __init__(self, connection: socket.socket, console: Path | None = None) -> None:
        self._connection = connection
        self._console = console

    @classmethod
    def of_descriptor(cls, descriptor: int) -> "Machine":
        """A guest that another process has booted, and leaves alone meanwhile."""
        return cls(socket.socket(fileno=descriptor))

    def fileno(self) -> int:
        return self._connection.fileno()

    def __call__(self, function: Callable[..., T], *arguments: object) -> T:
        """Calls a function in the guest, where its module must be: the library's, bpf's, or one of guest/.

        Raises:
            CallError: it failed.
            MachineError: the guest is gone, or does not answer within CALL_S.
        """
        data = pickle.dumps((function, arguments))
        try:
            self._connection.sendall(struct.pack(">I", len(data)) + data)
        except OSError as error:
            raise self._died(str(error)) from error
        result: T = self.answer(CALL_S)
        return result

    def answer(self, timeout_s: float) -> Any:
        """What the guest says next. Raises as a call does."""
        self._connection.settimeout(timeout_s)
        try:
            (size,) = struct.unpack(">I", self._read(4))
            result, wrong = pickle.loads(self._read(size))
        except OSError as error:
            raise self._died(str(error)) from error
        if wrong:
            raise CallError(wrong)
        return result

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = self._connection.recv(size - len(data))
            if not piece:
                raise ConnectionError("the guest is gone")
            data += piece
        return bytes(data)

    def _died(self, why: str) -> MachineError:
        said = self._console.read_text(errors="replace") if self._console else ""
        return MachineError("\n".join([why, *said.splitlines()[-30:]]))


@contextmanager
def booted(image: Image) -> Iterator[Machine]:
    """The kernel, once it answers.

    Raises:
        MachineError: it does not within BOOT_S, or QEMU is not installed.
    """
    _require_qemu()
    with tempfile.TemporaryDirectory(prefix="calico-ebpf-kernel-") as name:
        directory = Path(name)
        console = directory / "console"
        rootfs.make(image, directory / "initramfs")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(directory / "agent"))
            listener.listen(1)
            process = subprocess.Popen(
                [
                    *_command(image, directory),
                    *("-chardev", f"file,id=console,path={console}", "-serial", "chardev:console"),
                    *("-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={directory / 'agent'}"),
                    *("-device", "virtserialport,chardev=agent"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                listener.settimeout(BOOT_S)
                connection, _ = listener.accept()
                with connection:
                    machine = Machine(connection, console)
                    machine.answer(BOOT_S)
                    yield machine
            finally:
                process.kill()
                process.communicate()


def shell(image: Image) -> None:
    """A shell in the guest, on this terminal; its end is the guest's."""
    _require_qemu()
    with tempfile.TemporaryDirectory(prefix="calico-ebpf-kernel-") as name:
        rootfs.make(image, Path(name) / "initramfs")
        command = _command(image, Path(name), "calico-ebpf.shell")
        subprocess.run([*command, "-serial", "mon:stdio"], check=False)


def _command(image: Image, directory: Path, *words: str) -> list[str]:
    files = ["-kernel", str(image.kernel), "-initrd", str(directory / "initramfs")]
    append = ["-append", " ".join((COMMAND_LINE, *words))]
    return [QEMU, *OPTIONS, "-m", str(MEMORY_MB), *files, *append]


def _require_qemu() -> None:
    if not shutil.which(QEMU):
        raise MachineError(f"{QEMU} is not installed: `make kernels` installs what is needed")
