"""Forgets producers whose lifetime is over: removes their records `p/`, which nothing else ever would.

Each connection that commits units of work has producers of its own, so without this their records would pile up. Invariant: a record goes
only by a transaction that compares it unchanged, and `GRACE_MS` after its lifetime ended, so that a wall clock that is wrong by less takes
nothing from a producer that lives. What remains is what an absent record means anyway (`qsg.manager.producers`): numbers of before are
refused, and whoever opens the name begins anew under an epoch that nobody had. Not guaranteed: that only one member does it at a time
(around a member's end two may; the compare makes that harmless), nor when exactly.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import structlog

from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Get, KeyValue, StoreError, get_prefix, prefix_end, unchanged

log = structlog.get_logger()

EVERY_S = 600.0
GRACE_MS = 24 * 3600 * 1000
PAGE_KEYS = 500
UNIT_KEYS = 32
"""Removed in one transaction: each costs a compare and an operation."""


class ProducerCleaner:
    """In each structure the first member by name does it."""

    def __init__(self, structures: Mapping[str, Structure], member: str, world: World, *, every_s: float = EVERY_S) -> None:
        self.structures, self.member, self.world, self.every_s = structures, member, world, every_s

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self.every_s)
            await self.clean()

    async def clean(self) -> int:
        """How many were removed."""
        removed = 0
        for structure in list(self.structures.values()):
            try:
                removed += await self._clean(structure)
            except (StoreError, Refusal, Fenced, OutcomeUnknown) as error:
                log.info("producers not forgotten", structure=structure.name, error=repr(error))
        return removed

    async def _clean(self, structure: Structure) -> int:
        removed, start = 0, keys.PRODUCERS
        while True:
            page = Get(start, prefix_end(keys.PRODUCERS), limit=PAGE_KEYS)
            _, (members, found) = await structure.read(get_prefix(keys.MEMBERS, limit=1, keys_only=True), page)
            if members.first is None or members.first.key != keys.member(self.member):
                return removed
            over = [kv for kv in found.kvs if self._is_over(kv)]
            for some in _parts(over):
                removed += await _remove(structure, some)
            if not found.more:
                return removed
            start = found.kvs[-1].key + b"\0"

    def _is_over(self, kv: KeyValue) -> bool:
        try:
            record = read_record(pb.ProducerRecord, kv.value, kv.key)
        except Damaged as damaged:
            log.error("a producer's record cannot be read", detail=damaged.detail)
            return False
        return record.expires_at_ms + GRACE_MS < self.world.wall_ms()


def _parts(kvs: Sequence[KeyValue]) -> Iterator[Sequence[KeyValue]]:
    for at in range(0, len(kvs), UNIT_KEYS):
        yield kvs[at : at + UNIT_KEYS]


async def _remove(structure: Structure, kvs: Sequence[KeyValue]) -> int:
    unit = Unit("forget producers", compares=[unchanged(kv.key, kv.mod_revision) for kv in kvs], ops=[Delete(kv.key) for kv in kvs])
    try:
        await structure.commit(unit)
    except CompareFailed as failed:
        log.debug("a producer came back, the next round looks again", keys=failed.keys)
        return 0
    return len(kvs)
