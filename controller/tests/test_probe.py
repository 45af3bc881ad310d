# SPDX-License-Identifier: Apache-2.0
"""The programs let probes through to the controller: no drop, no flow, though addresses are foreign."""

from collections.abc import Iterator

import pytest

from bpf.abi import Counter, DropReason
from bpf.address import packed
from bpf.tests import datapath as dp
from bpf.tests.datapath import V4, V6, Datapath, Family, loaded
from controller import probe

pytestmark = pytest.mark.root

# The device of a test run.
LO_MAC = bytes(6)


@pytest.fixture(scope="module")
def datapath() -> Iterator[Datapath]:
    with loaded() as programs:
        programs.reset()
        yield programs


@pytest.mark.parametrize("family", [V4, V6], ids=["ipv4", "ipv6"])
def test_probes_between_nodes_pass_untouched(datapath: Datapath, family: Family) -> None:
    """Another node's request, its answer to ours, and both on their way out."""
    peer_mac, node, other = dp.mac(dp.PEER_MAC), packed(family.node), packed(family.other_node)
    theirs = probe.request(LO_MAC, peer_mac, other, bytes(8), node)
    ours = probe.parse(probe.request(peer_mac, LO_MAC, node, bytes(8), other))
    assert ours
    answer = probe.answer(ours, peer_mac)
    for frame, program in (
        (theirs, "from_netdev"),
        (answer, "from_netdev"),
        (probe.request(peer_mac, LO_MAC, node, bytes(8), other), "to_netdev"),
    ):
        result = datapath.run(program, frame)
        assert result.verdict == dp.PASS
        assert bytes(result.packet)[12:] == frame[12:]
    assert [reason for reason in DropReason if datapath.dropped(reason)] == []
    assert datapath.counter(Counter.FLOWS_CREATED) == 0
