# SPDX-License-Identifier: Apache-2.0
"""Objects of one trivial program each, in the place of the real ones, which take the verifier a second."""

import os
import subprocess
from pathlib import Path

from bpf import abi, loader, syscall
from bpf.pins import Pins

CONFIG = abi.Config(0, 1, 2, 3, 4, 5, 6, 0, 7, 8, 9, 0, 10, 0, 251)

# It uses the map `state`, and returns the constant `mark`, where the kernel takes any number.
SOURCE = """
#include "config.h"
#include "maps.h"
SEC("%s") int %s(%s)
{
	__u32 key = 0;
	return bpf_map_lookup_elem(&state, &key) ? %s : 0;
}
char _license[] SEC("license") = "GPL";
"""


def build(directory: Path, name: str, program: str, section: str = "classifier") -> None:
    """Builds an object whose program has that name."""
    tc = section == "classifier"
    context, returned = ("struct __sk_buff *skb", "config.mark") if tc else ("struct bpf_sock_addr *ctx", "1")
    headers = Path(loader.__file__).parent
    system = f"/usr/include/{os.uname().machine}-linux-gnu"
    source, raw = directory / f"{name}.c", directory / f"{name}.raw"
    source.write_text(SOURCE % (section, program, context, returned))
    flags = ["-target", "bpf", "-O2", "-g", f"-I{headers}", f"-I{system}"]
    subprocess.run(["clang", *flags, "-c", source, "-o", raw], check=True)
    subprocess.run(["bpftool", "gen", "object", directory / name, raw], check=True)


def verdict(pins: Pins, name: str) -> int:
    """What a pinned program makes of a packet."""
    with pins.opened_program(name) as fd:
        return syscall.program_test_run(fd, bytes(64)).verdict
