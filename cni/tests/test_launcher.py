# SPDX-License-Identifier: Apache-2.0
"""The launcher hands calls over, has the one-shot process stand in for a server that is gone, and waits its time.

A server of a few lines stands in for ours here; test_verbs.py has the real one.
"""

import json
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cni import protocol

ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "build/bin/calico-ebpf"

Behaviour = Callable[[socket.socket], None]


@contextmanager
def serving(run_dir: Path, behave: Behaviour) -> Iterator[None]:
    """A server at the launcher's socket, which does one thing with one connection."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run_dir / "cni.sock"))
        listener.listen(1)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            thread.join(10)


def launch(
    run_dir: Path, text: str = "{}", launcher: Path = LAUNCHER, **variables: str
) -> "subprocess.CompletedProcess[str]":
    environment = {
        "PATH": os.environ["PATH"],
        "CALICO_EBPF_RUN_DIR": str(run_dir),
        "CALICO_EBPF_ONESHOT": str(run_dir / "oneshot"),
        **variables,
    }
    return subprocess.run(
        [launcher], input=text, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def put_oneshot(run_dir: Path) -> None:
    """A one-shot process that tells what it got."""
    (run_dir / "oneshot").write_text('#!/bin/sh\necho "oneshot $CNI_COMMAND: $(cat)"\nexit 7\n')
    (run_dir / "oneshot").chmod(0o755)


def test_launcher_without_command_says_where_the_command_line_is(tmp_path: Path) -> None:
    """Who calls it by hand was looking for the other file of that name."""
    process = launch(tmp_path)
    assert process.returncode == 1
    assert process.stdout == ""
    assert "/usr/local/bin/calico-ebpf" in process.stderr


def test_launcher_with_server_hands_over_all_and_copies_the_answer(tmp_path: Path) -> None:
    """Variables, input and the open namespace go over; output and status come back."""
    (tmp_path / "netns").write_text("inside")
    calls: list[protocol.Call] = []

    def behave(connection: socket.socket) -> None:
        calls.append(protocol.receive(connection, 5))
        protocol.answer(connection, 3, b"the answer")

    with serving(tmp_path, behave):
        process = launch(tmp_path, "the input", CNI_COMMAND="ADD", CNI_NETNS=str(tmp_path / "netns"), OTHER="no")
    assert (process.returncode, process.stdout) == (3, "the answer")
    assert calls[0].text == b"the input"
    assert calls[0].variables == {"CNI_COMMAND": "ADD", "CNI_NETNS": str(tmp_path / "netns")}
    assert calls[0].netns_fd is not None
    assert os.read(calls[0].netns_fd, 10) == b"inside"
    os.close(calls[0].netns_fd)


def test_launcher_with_large_input_sends_all_of_it(tmp_path: Path) -> None:
    """More than a socket's buffer goes over in pieces."""
    text = "x" * 900_000
    received: list[bytes] = []

    def behave(connection: socket.socket) -> None:
        received.append(protocol.receive(connection, 5).text)
        protocol.answer(connection, 0, received[0])

    with serving(tmp_path, behave):
        process = launch(tmp_path, text, CNI_COMMAND="ADD")
    assert process.stdout == text


def test_launcher_with_oversized_input_refuses(tmp_path: Path) -> None:
    """What the server would refuse is not sent."""
    process = launch(tmp_path, "x" * (1 << 20), CNI_COMMAND="ADD")
    assert process.returncode == 1
    assert json.loads(process.stdout)["code"] == 5


def test_launcher_without_server_becomes_the_oneshot(tmp_path: Path) -> None:
    """The same call, input and variables, carried out by the other process."""
    put_oneshot(tmp_path)
    process = launch(tmp_path, "the input", CNI_COMMAND="ADD")
    assert (process.returncode, process.stdout) == (7, "oneshot ADD: the input\n")


@pytest.mark.parametrize("answer", [b"", b"\1", struct.pack("=II", 0, 10) + b"half"])
def test_launcher_with_server_that_dies_becomes_the_oneshot(tmp_path: Path, answer: bytes) -> None:
    """A server that is killed before it has answered in full has not answered."""
    put_oneshot(tmp_path)

    def behave(connection: socket.socket) -> None:
        protocol.receive(connection, 5)
        connection.sendall(answer)

    with serving(tmp_path, behave):
        process = launch(tmp_path, "the input", CNI_COMMAND="DEL")
    assert (process.returncode, process.stdout) == (7, "oneshot DEL: the input\n")


def test_launcher_without_server_and_oneshot_says_try_again(tmp_path: Path) -> None:
    """During an installation neither may be there yet."""
    process = launch(tmp_path, CNI_COMMAND="ADD")
    assert process.returncode == 1
    assert json.loads(process.stdout)["code"] == 11


def test_launcher_with_slow_server_says_try_again_and_runs_no_second_worker(tmp_path: Path) -> None:
    """A server that is alive may still be at it: a one-shot process beside it would do the work twice."""
    put_oneshot(tmp_path)
    impatient = tmp_path / "launcher"
    command = ["cc", "-std=c11", "-O2", "-DTIMEOUT_S=1", "-o", impatient, ROOT / "cni/launcher.c"]
    subprocess.run(command, check=True)
    done = threading.Event()

    def behave(_: socket.socket) -> None:
        done.wait(20)

    with serving(tmp_path, behave):
        process = launch(tmp_path, launcher=impatient, CNI_COMMAND="ADD")
        done.set()
    assert process.returncode == 1
    assert json.loads(process.stdout)["code"] == 11
