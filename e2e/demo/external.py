# SPDX-License-Identifier: Apache-2.0
"""The demo's view of one outside connection: the headers of its first packet and of the answer, on every hop."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from e2e.demo.report import Figure, Step, StepError
from e2e.lab import runtime
from e2e.lab.network import DEVICE
from e2e.lab.node import Node
from e2e.lab.runtime import Pod, tool
from e2e.lab.space import Space
from e2e.lab.taps import Packet, captured

CLIENT, ENTRY, FAR, POD = "client", "node1", "node2", "the pod"
IN, OUT = "in", "out"

# (hop, which way it passes there), in the order of the packet's way.
Way = Sequence[tuple[str, str]]
REQUEST: Way = ((CLIENT, OUT), (ENTRY, IN), (ENTRY, OUT), (FAR, IN), (POD, IN))
ANSWER: Way = ((POD, OUT), (FAR, OUT), (ENTRY, IN), (ENTRY, OUT), (CLIENT, IN))
DIRECT_ANSWER: Way = ((POD, OUT), (FAR, OUT), (CLIENT, IN))

COLUMNS = ("at", "frame", "VXLAN", "from", "to", "TTL")


class Scene(NamedTuple):
    """Who takes part: the client talks to the entry node's NodePort, the pod is on the far node."""

    client: Space
    entry: Node
    far: Node
    pod: Pod
    node_port: int


def show(step: Step, scene: Scene, direct: bool, tunnel: bool) -> None:
    """Makes one connection, and shows where its first packet and the answer to it were seen.

    Raises:
        StepError: they went another way, or wore other headers than they should.
    """
    talked_to = f"{scene.entry.address.v4}:{scene.node_port}"
    step.did.append(f"# in client: connect {talked_to}, the only backend being {scene.pod.name} on {scene.far.name}")
    hops = {CLIENT: scene.client, ENTRY: scene.entry.space, FAR: scene.far.space, POD: scene.pod.space}
    with captured(hops, (scene.node_port, runtime.PORT)) as seen:
        command = tool("ask", "tcp", scene.entry.address.v4, str(scene.node_port))
        answer = json.loads(scene.client.run(*command).stdout)
    if answer.get("name") != scene.pod.name:
        raise StepError(f"the client was answered {answer}")
    names = {_mac(space): hop for hop, space in hops.items()}
    back = DIRECT_ANSWER if direct else ANSWER
    step.figures.append(_figure("the client's SYN at", seen, REQUEST, "S", names))
    step.figures.append(_figure("the answer at", seen, back, "SA", names))
    _check_tunnel(seen, tunnel)
    step.seen.append(f"{scene.pod.name} saw the client as {answer['peer']}; the client was answered by {talked_to}")
    passed = [packet for packet in seen[ENTRY] if packet["dport"] == answer["peer_port"]]
    if direct and passed:
        raise StepError(f"{ENTRY} saw {len(passed)} packets of the answer")
    if direct:
        step.seen.append(f"of the answer {ENTRY} saw nothing")


def _figure(title: str, seen: Mapping[str, list[Packet]], way: Way, flags: str, names: Mapping[str, str]) -> Figure:
    rows = []
    for hop, direction in way:
        found = [packet for packet in seen[hop] if packet["flags"] == flags and packet["way"] == direction]
        if len(found) != 1:
            raise StepError(f"{title} {hop}, {direction}: seen {len(found)} times")
        rows.append((f"{hop}, {direction}", *_headers(found[0], names)))
    return Figure((title, *COLUMNS[1:]), rows)


def _headers(packet: Packet, names: Mapping[str, str]) -> tuple[str, ...]:
    outer = packet.get("outer")
    frame = "" if outer else f"{_name(packet['src_mac'], names)} → {_name(packet['dst_mac'], names)}"
    return (
        frame,
        f"{outer['src']} → {outer['dst']}, {outer['vni']}" if outer else "",
        f"{packet['src']}:{packet['sport']}",
        f"{packet['dst']}:{packet['dport']}",
        str(packet["ttl"]),
    )


def _name(mac: str, names: Mapping[str, str]) -> str:
    return names.get(mac, "pod link")


def _check_tunnel(seen: Mapping[str, list[Packet]], tunnel: bool) -> None:
    handed_over = [packet for packet in seen[FAR] if packet["flags"] == "S"]
    if any(("outer" in packet) != tunnel for packet in handed_over):
        raise StepError(f"handed over {'without' if tunnel else 'in'} a tunnel")


def _mac(space: Space) -> str:
    (link,) = json.loads(space.run("ip", "-json", "link", "show", DEVICE).stdout)
    return str(link["address"])
