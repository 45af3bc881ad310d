# SPDX-License-Identifier: Apache-2.0
"""Keeps the maps as they should be: the desired entries, a mirror of what the kernel holds, and what is still pending.

Only differences are written. After a failure nothing is assumed: the maps are read again, and everything is compared.
One thread calls it; `read_back` alone may run in another.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import NamedTuple

from controller.desired import Desired, Pool, PoolKey
from controller.maps import Maps, Op
from controller.mirror import Mirror
from controller.model import Key
from controller.plan import SERVICE_MAPS, Numbers, Plan, wrong

MAPS = (*SERVICE_MAPS, "remotes")


class Synced(NamedTuple):
    """What a sync did.

    Attributes:
        ops: operations written.
        full: whether everything was compared.
        freed: room was made where there had been too little: another sync fits more.
    """

    ops: int
    full: bool
    freed: bool


class Dataplane:
    """Attributes:
    short: pools for which a map has no room, with that map's name.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._desired = Desired()
        self._remotes: dict[bytes, bytes] | None = None
        self._mirror: Mirror | None = None
        self._numbers: Numbers | None = None
        self._capacity: dict[str, int] = {}
        self._pools: set[PoolKey] = set()
        self._frontends: set[bytes] = set()
        self._remotes_changed = False
        self._compare_all = True
        self._recorded: list[Op] | None = None
        self.short: dict[PoolKey, str] = {}
        self.remotes_short = False

    def set_service(self, service: Key, pools: Mapping[PoolKey, Pool]) -> None:
        """Makes `pools` all that there should be of a Service."""
        touched = self._desired.replace(service, pools)
        self._pools |= touched.pools
        self._frontends |= touched.frontends

    def set_remotes(self, remotes: Mapping[bytes, bytes]) -> None:
        """Makes `remotes` (struct remote_key -> struct remote) all that there should be; until then the map is left
        as it is."""
        if remotes != self._remotes:
            self._remotes = dict(remotes)
            self._remotes_changed = True

    @property
    def pending(self) -> int:
        """Changes that are not in the kernel: pools and frontends waiting, and those that do not fit."""
        return len(self._pools) + len(self._frontends) + self._remotes_changed + len(self.short)

    @property
    def dirty(self) -> bool:
        """Whether a sync would have anything to do."""
        return bool(self._pools or self._frontends or self._remotes_changed or self._compare_all)

    def sizes(self) -> dict[str, tuple[int, int]]:
        """Entries and capacity of each map, as far as they are known."""
        mirror = self._mirror
        return {name: (mirror.size(name), self._capacity[name]) for name in MAPS} if mirror else {}

    def contested(self) -> dict[bytes, list[PoolKey]]:
        """Frontends that several pools claim, the one that has it first."""
        return self._desired.contested()

    def sync(self) -> Synced:
        """Writes the difference.

        Raises:
            BpfError: it was not written, or not whole; the next sync reads the maps again and compares everything.
        """
        recorded, self._recorded = self._recorded, None
        try:
            mirror = self._mirror or self._read()
            numbers = self._numbers = self._numbers or Numbers(mirror)
            plan = Plan(self._desired, mirror, numbers, self._capacity)
            full = self._compare_all
            ops: list[Op] = []
            self._maps.write(_noted(chain(self._plan_remotes(mirror), self._plan_services(plan)), ops))
            self._maps.write(_noted(plan.removals(), ops))
        except BaseException:
            self._mirror, self._compare_all = None, True
            raise
        mirror.apply(ops)
        if recorded is not None:
            self._recorded = [*recorded, *ops]
        self._done(plan)
        return Synced(len(ops), full, bool(self.short) and any(op.value is None for op in ops))

    def retry_short(self) -> None:
        """Has the next sync try again what did not fit."""
        self._pools |= self.short.keys()
        self._remotes_changed |= self.remotes_short

    def record(self) -> None:
        """Begins an audit: from here on what is written is remembered, until `audit` or a failure."""
        self._recorded = []

    def read_back(self) -> Mirror:
        """What the kernel holds; may be called in another thread. Raises BpfError."""
        return Mirror.read(self._maps)

    def audit(self, found: Mirror) -> int | None:
        """Compares what `read_back` found with what should be there; the next sync repairs it.

        Returns:
            How many entries had drifted; None: a sync failed meanwhile, the audit says nothing.
        """
        recorded, self._recorded = self._recorded, None
        if recorded is None or self._mirror is None:
            return None
        # Reading may have come before or after each of these; having them run again makes it certain.
        found.apply(recorded)
        drifted = self._mirror.differences(found)
        if not drifted and not self.pending and self._numbers:
            # The mirror may be as wrong as the kernel: what should be there decides.
            drifted = wrong(self._desired, found, self._numbers)
        if drifted:
            self._mirror, self._compare_all = found, True
        return drifted

    def _read(self) -> Mirror:
        self._capacity = {name: self._maps.capacity(name) for name in MAPS}
        self._mirror = Mirror.read(self._maps)
        return self._mirror

    def _plan_services(self, plan: Plan) -> Iterator[Op]:
        if self._compare_all:
            yield from plan.everything()
        else:
            yield from plan.pools(self._pools)
            plan.frontends(self._frontends)

    def _plan_remotes(self, mirror: Mirror) -> list[Op]:
        if self._remotes is None or not (self._remotes_changed or self._compare_all):
            return []
        room = self._capacity["remotes"] - mirror.size("remotes")
        new = [key for key in self._remotes if key not in mirror.remotes]
        self.remotes_short = len(new) > room
        left_out = set(new[max(room, 0) :])
        writes = [
            Op("remotes", key, value)
            for key, value in self._remotes.items()
            if mirror.remotes.get(key) != value and key not in left_out
        ]
        return writes + [Op("remotes", key, None) for key in mirror.remotes if key not in self._remotes]

    def _done(self, plan: Plan) -> None:
        looked_at = self._desired.pools.keys() if self._compare_all else self._pools
        self.short = {key: name for key, name in self.short.items() if key not in looked_at} | plan.short
        self._pools, self._frontends = set(), set()
        self._remotes_changed = self._compare_all = False


def _noted(ops: Iterable[Op], notes: list[Op]) -> Iterator[Op]:
    """`ops`, each noted when it is taken."""
    for op in ops:
        notes.append(op)
        yield op
