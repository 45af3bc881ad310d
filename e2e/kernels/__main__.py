# SPDX-License-Identifier: Apache-2.0
"""One kernel by hand: `python -m e2e.kernels 5.10 [pytest arguments]` runs the packet tests on it, or those that the
arguments name; with `--shell`, it gives a shell."""

import argparse
import sys

from e2e.kernels import images, machine, packets


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="e2e.kernels",
        description="Debian's cloud kernels in QEMU.",
        epilog="What else is given goes to pytest, in place of all packet tests.",
        allow_abbrev=False,
    )
    parser.add_argument("kernel", choices=images.SUITES)
    parser.add_argument("--shell", action="store_true", help="boot it, and give a shell in it")
    options, tests = parser.parse_known_args()
    image = images.image(options.kernel)
    if options.shell:
        machine.shell(image)
        return 0
    with machine.booted(image) as guest:
        process = packets.run(guest, tests or packets.FILES)
    print(image.release, process.stdout, sep="\n")
    return process.returncode


if __name__ == "__main__":
    sys.exit(main())
