# SPDX-License-Identifier: Apache-2.0
"""What the maps should hold of Services: pools, and which pool each frontend belongs to. Pure.

A pool is one list of backends with the frontends that lead to it: one Service port, in one address family. A Service's
cluster IPs as such are a pool too, which has no backends.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from bpf.abi import FrontendFlag, FrontendKey, SourceKey
from controller.model import Key


class PoolKey(NamedTuple):
    """Attributes:
    port, protocol: IPPROTO_*; both 0: the cluster IPs.
    family: 4 or 6.
    """

    namespace: str
    name: str
    port: int
    protocol: int
    family: int


class Pool(NamedTuple):
    """Attributes:
    frontends: (struct frontend_key, enum frontend_flag) each.
    apart: this node's backends in the Local set alone, a struct backend each, without repetition.
    local: this node's in both sets.
    others: the other nodes', in the Cluster set.
    affinity_s: for so long after its last connection a client keeps its backend; 0: not at all.
    sources: the clients for which its frontends with FRONTEND_SOURCES are: (bits that count, address) each.
    maglev_size: places of the Maglev table of its Cluster set; 0: it has none.
    """

    frontends: tuple[tuple[bytes, int], ...]
    apart: tuple[bytes, ...]
    local: tuple[bytes, ...]
    others: tuple[bytes, ...]
    affinity_s: int = 0
    sources: tuple[tuple[int, bytes], ...] = ()
    maglev_size: int = 0

    @property
    def backends(self) -> tuple[bytes, ...]:
        return self.apart + self.local + self.others

    def source_keys(self, frontend: bytes, flags: int) -> set[bytes]:
        """The clients of one of its frontends, a struct source_key each."""
        if not flags & FrontendFlag.SOURCES:
            return set()
        key = FrontendKey.unpack(frontend)
        return {SourceKey(8 * len(frontend) + bits, key, address).pack() for bits, address in self.sources}


class Touched(NamedTuple):
    """What a change concerns: pools to be looked at again, and frontends that may be nobody's now."""

    pools: set[PoolKey]
    frontends: set[bytes]


class Desired:
    """All pools. Of those that claim one frontend the one whose cluster IP it is has it, which the API server has given
    to it alone; else the one with the smaller key. Whoever came first: all nodes are to agree."""

    def __init__(self) -> None:
        self.pools: dict[PoolKey, Pool] = {}
        self._of_service: dict[Key, tuple[PoolKey, ...]] = {}
        self._owners: dict[bytes, PoolKey] = {}
        self._rivals: dict[bytes, set[PoolKey]] = {}

    def replace(self, service: Key, pools: Mapping[PoolKey, Pool]) -> Touched:
        """Makes `pools` all that there is of a Service."""
        touched = Touched(set(), set())
        for key in self._of_service.pop(service, ()):
            if key not in pools:
                self._set(key, None, touched)
        for key, pool in pools.items():
            if self.pools.get(key) != pool:
                self._set(key, pool, touched)
        if pools:
            self._of_service[service] = tuple(pools)
        return touched

    def has(self, service: Key) -> bool:
        """Whether there is anything of a Service."""
        return service in self._of_service

    def owner(self, frontend: bytes) -> PoolKey | None:
        return self._owners.get(frontend)

    def frontends(self, key: PoolKey) -> Iterable[tuple[bytes, int]]:
        """The frontends that a pool has, without those that another one has before it."""
        return (item for item in self.pools[key].frontends if self._owners[item[0]] == key)

    def contested(self) -> dict[bytes, list[PoolKey]]:
        """Frontends that several pools claim, the owner first."""
        return {frontend: self._ordered(frontend, keys) for frontend, keys in self._rivals.items()}

    def _set(self, key: PoolKey, pool: Pool | None, touched: Touched) -> None:
        before = self.pools.pop(key, None)
        if pool:
            self.pools[key] = pool
        touched.pools.add(key)
        old = dict(before.frontends) if before else {}
        new = dict(pool.frontends) if pool else {}
        touched.frontends.update(old.keys() - new.keys())
        for frontend in {one for one, _ in old.items() ^ new.items()}:
            self._claim(frontend, key, frontend in new, touched)

    def _claim(self, frontend: bytes, key: PoolKey, claims: bool, touched: Touched) -> None:
        owner = self._owners.get(frontend)
        keys = self._rivals.pop(frontend, {owner} if owner else set())
        keys = keys | {key} if claims else keys - {key}
        if not keys:
            self._owners.pop(frontend, None)
            return
        winner = next(iter(keys))
        if len(keys) > 1:
            self._rivals[frontend] = keys
            winner = self._ordered(frontend, keys)[0]
        self._owners[frontend] = winner
        touched.pools.update(one for one in (owner, winner) if one in self.pools and owner != winner)

    def _ordered(self, frontend: bytes, keys: Iterable[PoolKey]) -> list[PoolKey]:
        """Those that claim it, the owner first."""

        def rank(key: PoolKey) -> tuple[bool, PoolKey]:
            return not dict(self.pools[key].frontends)[frontend] & FrontendFlag.CLUSTER_IP, key

        return sorted(keys, key=rank)
