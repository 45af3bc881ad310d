# SPDX-License-Identifier: Apache-2.0
"""The lab's wires: a bridge in the switch's space, and a veth pair from it to every other space."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from bpf.tests import kernel
from e2e.lab import addresses
from e2e.lab.addresses import Dual
from e2e.lab.runtime import tool
from e2e.lab.space import Space

BRIDGE = "br0"
DEVICE = "eth0"

# A lab is up before the kernel would have probed its addresses for duplicates.
PREFIXES = (f"/{addresses.UNDERLAY[0].prefixlen}", f"/{addresses.UNDERLAY[1].prefixlen}")


def make_switch(space: Space) -> None:
    """Makes the bridge; the switch itself has an address on it, and forwards nothing."""
    space.run(
        "ip", "link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0", "mcast_snooping", "0"
    )
    _configure(space, BRIDGE, addresses.underlay(addresses.SWITCH))


def plug(switch: Space, space: Space, address: Dual, mtu: int = 1500) -> None:
    """Joins a space to the switch, with an address and default routes through it."""
    veth = f"link add {space.name} mtu {mtu} type veth peer name {DEVICE} mtu {mtu} netns {space.pid}"
    _batch(switch, [veth, f"link set {space.name} master {BRIDGE} up"])
    _configure(space, DEVICE, address)
    gateway = addresses.underlay(addresses.SWITCH)
    _batch(space, [f"route add default via {gateway.v4}", f"route add default via {gateway.v6} dev {DEVICE}"])


def resize(switch: Space, space: Space, mtu: int) -> None:
    """Gives a space's link to the switch another MTU, at both ends."""
    for one, device in ((switch, space.name), (space, DEVICE)):
        _batch(one, [f"link set {device} mtu {mtu}"])


def finish_frames(switch: Space, space: Space) -> None:
    """Has a space's link carry frames as cables do, checksums and all, and its switch's end take what the space's sends
    by XDP, which a veth device does where it has a program itself."""
    for one, device in ((switch, space.name), (space, DEVICE)):
        one.run(*tool("offloads", device, "tx=off"))
    with tempfile.TemporaryDirectory() as scratch:
        program = str(kernel.compiled(kernel.XDP_PASS, Path(scratch)))
        switch.run("ip", "link", "set", space.name, "xdpdrv", "obj", program, "sec", "xdp")


def route(space: Space, gateway: Dual, prefixes: Iterable[str]) -> None:
    """Leads to what is behind a host: by its address of a prefix's family."""
    _batch(space, [f"route replace {prefix} via {gateway.v6 if ':' in prefix else gateway.v4}" for prefix in prefixes])


def _configure(space: Space, device: str, address: Dual) -> None:
    commands = [f"link set {device} up"]
    for text, prefix, extra in zip(address, PREFIXES, ("", " nodad"), strict=True):
        commands.append(f"addr add {text}{prefix} dev {device}{extra}")
    _batch(space, commands)


def _batch(space: Space, commands: list[str]) -> None:
    space.run("ip", "-batch", "-", stdin="\n".join(commands) + "\n")
