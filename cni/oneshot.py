# SPDX-License-Identifier: Apache-2.0
"""The one-shot process: carries out one call, read from its environment and standard input as a runtime gives it.

    python -I -m cni.oneshot

The launcher runs it where there is no CNI server. Its start is most of its time, so it imports what it needs and no
more: neither the command line's packages, nor a log, nor pyroute2 (see cni.netlink). A test holds it to that.
"""

import os
import sys

from bpf.errors import SettingsError
from bpf.settings import Settings
from cni.errors import NodeError
from cni.plugin import Answer, Plugin, broken, failed
from cni.protocol import LIMIT_BYTES


def main() -> int:
    """Answers on standard output; returns the exit status."""
    text = sys.stdin.buffer.read(LIMIT_BYTES)
    answer = _carry_out(text)
    sys.stdout.buffer.write(answer.output)
    sys.stdout.flush()
    return answer.status


def _carry_out(text: bytes) -> Answer:
    """Whatever happens, the runtime gets the specification's object."""
    try:
        plugin = Plugin(Settings.load({}))
        netns_fd = _open(os.environ.get("CNI_NETNS", ""))
        return plugin.answer(os.environ, text, netns_fd)
    except SettingsError as error:
        return failed(NodeError(str(error)), text)
    except Exception as error:
        return broken(error, text)


def _open(path: str) -> int | None:
    """As the launcher does: what it means that there is none is for the verb to judge."""
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


if __name__ == "__main__":
    raise SystemExit(main())
