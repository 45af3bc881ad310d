# SPDX-License-Identifier: Apache-2.0
"""Writes build/image.tar, a docker archive of the image calico-ebpf:dev: `make image`.

    python -m hack.image [--arch arm64] [--tree DIRECTORY]

What is up to date is left as it is. With --tree the root file system is laid out in a directory instead.
"""

import argparse
import sys
from pathlib import Path

from hack.command import CommandError
from hack.gobuild import BuildError
from hack.image import build
from hack.image.runtime import MACHINES, NATIVE


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m hack.image")
    parser.add_argument("--arch", choices=MACHINES, default=NATIVE)
    parser.add_argument("--tree", type=Path, help="lay the root file system out here, and write no archive")
    options = parser.parse_args()
    try:
        if options.tree:
            build.lay_out(options.arch, options.tree)
        else:
            print(build.image(options.arch))
    except (BuildError, CommandError, FileNotFoundError) as error:
        print(f"image: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
