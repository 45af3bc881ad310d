# SPDX-License-Identifier: Apache-2.0
"""The sweep: what has expired goes, what lives stays, slice by slice."""

from collections.abc import Iterator

import pytest

from bpf.tests.datapath import V4, V6, Datapath, key, loaded, tcp

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def programs() -> Iterator[Datapath]:
    with loaded() as programs:
        yield programs


@pytest.fixture
def datapath(programs: Datapath) -> Datapath:
    if not programs.can_sweep():
        pytest.skip("kernel lacks BTF")
    programs.reset()
    return programs


@pytest.mark.parametrize("size", [1, 64, 4096])
def test_sweep_removes_the_expired_and_leaves_the_rest(datapath: Datapath, size: int) -> None:
    """Of a thousand flows every other one has expired: those go. What a slice's end lets slip goes the next time."""
    family = V6 if size == 64 else V4
    datapath.run("from_pod", tcp(family, (family.client, 999), (family.server, 80)))
    flow = datapath.flow(key((family.client, 999), (family.server, 80)))
    assert flow is not None
    keys = [key((family.client, port), (family.server, 80)) for port in range(1000, 2000)]
    expired = flow._replace(expires_ns=1)
    datapath.write_flows((one, expired if index % 2 else flow) for index, one in enumerate(keys))
    first, second, third = (datapath.sweep(size) for _ in range(3))
    assert {len(one) for one in first[:-1]} <= {size}
    assert 990 <= len(b"".join(first)) <= 1002  # with both entries of the first
    assert b"".join(first + second).count(1) == 500
    assert b"".join(third) == bytes(502)
    assert [datapath.flow(one) is not None for one in keys] == [index % 2 == 0 for index in range(1000)]


def test_sweep_of_an_empty_table_meets_nothing(datapath: Datapath) -> None:
    """And ends."""
    assert datapath.sweep(64) == []
