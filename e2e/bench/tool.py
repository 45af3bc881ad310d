# SPDX-License-Identifier: Apache-2.0
"""The C programs that do the timing: compiled when needed, started in a space, asked line by line.

A question is one line, and so is the answer: numbers, or `error: ` and what went wrong.
"""

import os
import select
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from e2e.lab import cgroups, space
from e2e.lab.space import Space

ROOT = Path(__file__).parent.parent.parent
SOURCES = Path(__file__).parent / "tools"
BUILD = ROOT / "build" / "bench"
ANSWER_S = 60.0
FIRST = -20


class BenchError(Exception):
    """Something could not be measured; the message says why."""


def build(name: str) -> Path:
    """Compiles tools/NAME.c, unless that is done already. Raises BenchError."""
    source, target = SOURCES / f"{name}.c", BUILD / name
    newest = max(path.stat().st_mtime for path in (source, SOURCES / "common.h", ROOT / "bpf" / "abi.h"))
    if target.exists() and target.stat().st_mtime > newest:
        return target
    BUILD.mkdir(parents=True, exist_ok=True)
    flags = f"-std=c11 -O2 -static -Wall -Wextra -Werror -I {ROOT / 'bpf'}".split()
    compiler = shutil.which("cc")
    if not compiler:
        raise BenchError("there is no C compiler (Debian package gcc)")
    process = subprocess.run(
        [compiler, *flags, "-o", str(target), str(source)], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise BenchError(f"{source}: {process.stderr.strip()}")
    return target


class Tool:
    """A tool that runs in a space, until closed or until this process ends.

    Args:
        name: of its source, without the suffix.
        cpu: the only core that it uses, before anything else that would; None: any, like everybody.
    """

    def __init__(
        self,
        where: Space,
        name: str,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        cpu: int | None = None,
    ) -> None:
        self._name = f"{where.name}: {name}"

        def prepare() -> None:
            cgroups.join(where.group)
            space.die_with_parent()
            if cpu is not None:
                os.sched_setaffinity(0, {cpu})
                os.nice(FIRST)

        self._process = subprocess.Popen(
            where.command([str(build(name)), *arguments]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            start_new_session=True,
            preexec_fn=prepare,
        )

    def __enter__(self) -> "Tool":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the tool, whatever it does."""
        self._process.kill()
        self._process.communicate()

    def ask(self, *words: str, timeout_s: float = ANSWER_S) -> list[float]:
        """Asks, and returns the numbers that it answers. Raises BenchError."""
        self.tell(*words)
        return self.answer(timeout_s)

    def tell(self, *words: str) -> None:
        """Asks without waiting for the answer."""
        assert self._process.stdin
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def answer(self, timeout_s: float = ANSWER_S) -> list[float]:
        """The numbers of the answer that is due. Raises BenchError."""
        assert self._process.stdout
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            raise BenchError(f"{self._name}: no answer after {timeout_s:.0f} s")
        line = self._process.stdout.readline()
        numbers, failed, what = line.partition("error:")
        if failed or not line:
            raise BenchError(f"{self._name}: {what.strip() or f'ended with {self._process.wait()}'}")
        return [float(word) for word in numbers.split()]
