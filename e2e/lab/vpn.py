# SPDX-License-Identifier: Apache-2.0
"""Joins two TUN devices, one in this network namespace, the other in another: what goes into one comes out of the
other, IP packets without any header before. Ends when one of them is gone. Imports the standard library alone.
"""

import argparse
import ctypes
import errno
import fcntl
import os
import select
import struct

CLONE_NEWNET = 0x40000000
# linux/if_tun.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000


def opened(device: str) -> int:
    """A descriptor of a TUN device of the namespace in which this process is."""
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    return tun


def enter(namespace: str) -> None:
    descriptor = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), f"setns {namespace}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("device")
    parser.add_argument("namespace", help="a file that stands for the other one")
    parser.add_argument("other", help="the device there")
    arguments = parser.parse_args()
    here = opened(arguments.device)
    enter(arguments.namespace)
    there = opened(arguments.other)
    far = {here: there, there: here}
    print("ready", flush=True)
    while True:
        for ready in select.select(list(far), (), ())[0]:
            packet = os.read(ready, 65536)
            try:
                os.write(far[ready], packet)
            except OSError as error:
                if error.errno != errno.EIO:  # that one is not up yet
                    raise


if __name__ == "__main__":
    main()
