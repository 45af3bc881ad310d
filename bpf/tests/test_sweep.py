# SPDX-License-Identifier: Apache-2.0
"""The sweep: what has expired goes, what lives stays, shard by shard."""

from collections.abc import Iterator

import pytest

from bpf.abi import FlowTable
from bpf.tests.datapath import V4, V6, Datapath, key, loaded, shard_of, tcp

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def programs() -> Iterator[Datapath]:
    with loaded() as programs:
        yield programs


@pytest.fixture
def datapath(programs: Datapath) -> Datapath:
    if not programs.can_sweep():
        pytest.skip("kernel lacks bpf_for_each_map_elem")
    programs.reset()
    return programs


def test_sweep_removes_the_expired_and_leaves_the_rest(datapath: Datapath) -> None:
    """Of a thousand flows every other one has expired: all shards together remove those, and see all."""
    datapath.run("from_pod", tcp(V4, (V4.client, 999), (V4.server, 80)))
    flow = datapath.flow(key((V4.client, 999), (V4.server, 80)))
    assert flow is not None
    keys = [key((V4.client, port), (V4.server, 80)) for port in range(1000, 2000)]
    expired = flow._replace(expires_ns=1)
    datapath.write_flows((one, expired if index % 2 else flow) for index, one in enumerate(keys))
    swept = [datapath.sweep(shard) for shard in range(datapath.shards)]
    assert sum(removed for removed, _ in swept) == 500
    assert sum(seen for _, seen in swept) == 1002  # and both entries of the first
    assert [datapath.flow(one) is not None for one in keys] == [index % 2 == 0 for index in range(1000)]


def test_sweep_of_many_expired_removes_so_many_in_a_run(datapath: Datapath) -> None:
    """A run holds its CPU: it stops at the limit, and further ones remove the rest and leave what lives."""
    limit, live = FlowTable.SWEEP_LIMIT, 100
    datapath.run("from_pod", tcp(V6, (V6.client, 999), (V6.server, 80)))
    first = key((V6.client, 999), (V6.server, 80))
    flow = datapath.flow(first)
    assert flow is not None
    # By the third word of an address, which no shard depends on.
    keys = [
        first._replace(saddr=first.saddr[:8] + n.to_bytes(4) + first.saddr[12:]) for n in range(live + 2 * limit + 5)
    ]
    expired = flow._replace(expires_ns=1)
    datapath.write_flows((one, flow if index < live else expired) for index, one in enumerate(keys))
    shard = shard_of(first)
    removed, seen = zip(*(datapath.sweep(shard) for _ in range(4)), strict=True)
    assert removed == (limit, limit, 5, 0)
    assert seen[0] <= limit + live
    assert seen[3] == live
    assert [datapath.flow(one) is not None for one in keys] == [index < live for index in range(len(keys))]


def test_shards_are_filled_evenly() -> None:
    """Ten thousand clients of one Service spread over all shards: none has twice its share."""
    counts = [0] * FlowTable.SHARDS
    for host in range(100):
        for port in range(32768, 32868):
            counts[shard_of(key((f"10.244.3.{host}", port), ("10.96.0.10", 80)))] += 1
    assert max(counts) < 2 * 10_000 / FlowTable.SHARDS


def test_shards_are_filled_evenly_by_many_addresses() -> None:
    """So are they by one port of as many addresses, of both families."""
    for clients in (
        [f"10.244.{n >> 8}.{n & 255}" for n in range(10_000)],
        [f"fd00:10:{n:x}::2" for n in range(10_000)],
    ):
        counts = [0] * FlowTable.SHARDS
        for client in clients:
            counts[shard_of(key((client, 40000), ("2001:db8::1" if ":" in client else "192.0.2.1", 443)))] += 1
        assert max(counts) < 2 * 10_000 / FlowTable.SHARDS
