# SPDX-License-Identifier: Apache-2.0
"""Other people's filters on the devices that we use: beside ours, and behind them."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from bpf import bpftool
from e2e.lab.cluster import Lab
from e2e.lab.network import DEVICE
from e2e.lab.node import CNI_SERVER, CONTROLLER, Node
from e2e.tests.stage import PORT, WEB, Stage, ask, names

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

SIDES = ("ingress", "egress")
# Of our priority, with a handle of its own, it matches nothing.
BESIDE = ("prio", "1", "handle", "1", "bpf", "bytecode", "1,6 0 0 0,")
# Behind ours, it counts what comes to it, and lets it pass.
COUNTING = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
unsigned long packets;
SEC("tc") int counting(struct __sk_buff *skb)
{
	__sync_fetch_and_add(&packets, 1);
	return 0;
}
char LICENSE[] SEC("license") = "GPL";
"""


def others(node: Node, device: str) -> dict[str, int]:
    """The other people's filters on a device, and how many packets those behind ours have seen."""
    found = {}
    for side in SIDES:
        for item in json.loads(node.space.run("tc", "-j", "filter", "show", "dev", device, side).stdout):
            options = item.get("options", {})
            if options.get("bytecode"):
                found[f"beside, {side}"] = 0
            elif str(options.get("bpf_name", "")).startswith("counting"):
                found[f"behind, {side}"] = counted(options["prog"]["id"])
    return found


def counted(program_id: int) -> int:
    program = json.loads(bpftool.run("-j", "prog", "show", "id", str(program_id)))
    (variables,) = program["map_ids"]
    (entry,) = json.loads(bpftool.run("-j", "map", "dump", "id", str(variables)))
    return int.from_bytes(bytes(int(byte, 16) for byte in entry["value"]), "little")


@pytest.fixture
def counting(tmp_path: Path) -> Path:
    """A compiled program of somebody else's."""
    source, compiled = tmp_path / "counting.c", tmp_path / "counting.o"
    source.write_text(COUNTING)
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    subprocess.run(["clang", "-target", "bpf", "-O2", "-g", include, "-c", source, "-o", compiled], check=True)
    return compiled


@pytest.fixture
def shared(fresh: Lab, counting: Path) -> tuple[Stage, list[str]]:
    """A stage on whose first node somebody else has filters, on the underlay and on a pod's link; these devices."""
    stage = Stage(fresh, "directory")
    stage.set_up()
    node = stage.node(1)
    links = [one["ifname"] for one in json.loads(node.space.run("ip", "-j", "link").stdout)]
    devices = [DEVICE, next(link for link in links if link.startswith("ce"))]
    behind = ("prio", "50", "bpf", "da", "obj", str(counting), "sec", "tc")
    for device in devices:
        for side in SIDES:
            for words in (BESIDE, behind):
                node.space.run("tc", "filter", "add", "dev", device, side, *words)
    return stage, devices


def test_filters_of_others_stay_and_see_what_we_let_pass(shared: tuple[Stage, list[str]]) -> None:
    """While our programs work and are replaced, and after they are gone."""
    stage, devices = shared
    node = stage.node(1)
    before = {device: others(node, device) for device in devices}
    assert all(len(found) == 4 for found in before.values())
    node.configure(tcp_new_s=61)
    for daemon in (CONTROLLER, CNI_SERVER):
        node.stop(daemon)
        node.start(daemon)
    node.wait_ready()
    for where in (stage.place("ask-1"), stage.place("ask-2"), node.space):
        assert names(ask(where, "tcp", WEB.v4, PORT, count=20)) == {"web-1", "web-2"}
    after = others(node, DEVICE)
    assert all(after[f"behind, {side}"] > before[DEVICE][f"behind, {side}"] for side in SIDES)
    for daemon in (CONTROLLER, CNI_SERVER):
        node.stop(daemon)
    node.calico("uninstall", "--yes", "--force")
    for device in devices:
        assert others(node, device).keys() == before[device].keys()
        left = node.space.run("tc", "filter", "show", "dev", device, "ingress").stdout
        assert "calico-ebpf" not in left
