"""Units of work (syncpoint): puts held until commit, gets claimed for the unit, all in one transaction of one structure.

Owns what one unit of work holds. Invariants: a commit is one `Unit`: all puts, all gone marks and the producer's record, or nothing; what
it will cost is counted as the unit grows, and the call that would exceed a transaction is refused; a backout gives every claim back with
its count raised, and moves a message whose count has reached the queue's threshold to its backout queue in the same transaction. Claims
carry this incarnation and the unit's id, so they are void when the member is gone. Not guaranteed: that the backout as a whole is atomic
(each segment's is).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import structlog

from qsg.failpoint import task_failpoint
from qsg.manager import large
from qsg.manager.backout import Claimed, give_back
from qsg.manager.consuming import Guarded, Segment, take
from qsg.manager.large import Stage
from qsg.manager.placing import Placement, release
from qsg.manager.producers import Applied, ProducerNumber
from qsg.manager.racing import pause
from qsg.manager.structure import Structure
from qsg.rules import consume, keys, segments
from qsg.rules.consume import Claimer
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, NewMessage, Unit
from qsg.store.contract import Limits

if TYPE_CHECKING:
    from qsg.manager.queues import QueueService

log = structlog.get_logger()

COMMIT_S = 30.0
"""How long a commit goes on against members that are faster."""
ENTRY_BYTES = 256
"""Allowed for a message beside its body."""
SEGMENT_OPS = 3
SEGMENT_COMPARES = 2
RESERVE = 8
"""Operations and compares left for guard, member key and producer."""
RESERVE_BYTES = 32 << 10


@dataclass(slots=True)
class Held:
    """A put held until commit."""

    placement: Placement
    message: NewMessage
    stage: Stage | None = None


@dataclass(slots=True)
class _Cost:
    ops: int = RESERVE
    compares: int = RESERVE
    bytes: int = RESERVE_BYTES


class UnitOfWork:
    """One unit of work of an application. After `commit` or `backout` it is empty and may be used again."""

    def __init__(self, service: QueueService) -> None:
        self.id = service.world.id(12)
        self._service = service
        self._structure: Structure | None = None
        self._puts: list[Held] = []
        self._parts: dict[Guarded, dict[Segment, int]] = {}
        self._staged = 0
        self._lock = asyncio.Lock()

    @property
    def empty(self) -> bool:
        return not self._puts and not self._parts

    def adopt(self, structure: Structure) -> None:
        """A unit of work lies in one structure. Raises `Refusal` for a second one."""
        if self._structure is not None and self._structure is not structure and not self.empty:
            told = f"this unit of work is in structure {self._structure.name}, the queue in {structure.name}: a unit has one structure"
            raise Refusal(Reason.OPTIONS_ERROR, told)
        self._structure = structure

    # Growing

    def require_room(self, placements: list[Placement], sizes: list[int]) -> None:
        """Raises `Refusal` SYNCPOINT_LIMIT_REACHED when these puts would exceed what one transaction takes; `sizes` of stored messages."""
        cost = self._cost([(p.queue, large.is_large(s), s) for p, s in zip(placements, sizes, strict=True)])
        limits = self._limits()
        if max(cost.ops - limits.operations, cost.compares - limits.compares, cost.bytes - limits.bytes) > 0:
            raise Refusal(Reason.SYNCPOINT_LIMIT_REACHED, f"{len(self._puts)} puts and {self._messages_got()} gets are held: commit first")

    def add(self, held: list[Held]) -> None:
        self._puts += held

    def room_for_segments(self, guarded: Guarded) -> int:
        cost, limits = self._cost([]), self._limits()
        queues = 0 if guarded in self._parts else 3
        ops = (limits.operations - cost.ops - queues) // SEGMENT_OPS
        compares = (limits.compares - cost.compares - queues) // SEGMENT_COMPARES
        return max(0, min(ops, compares, (limits.bytes - cost.bytes) // 2048))

    def holds(self, segment: Segment) -> bool:
        return any(segment in parts for parts in self._parts.values())

    def hold(self, guarded: Guarded, parts: dict[Segment, int]) -> None:
        self._structure = guarded.opened.structure
        mine = self._parts.setdefault(guarded, {})
        for segment, mask in parts.items():
            mine[segment] = mine.get(segment, 0) | mask

    def _messages_got(self) -> int:
        return sum(mask.bit_count() for parts in self._parts.values() for mask in parts.values())

    def _limits(self) -> Limits:
        assert self._structure is not None
        return self._structure.store.limits

    def _cost(self, more: list[tuple[str, bool, int]]) -> _Cost:
        """What the commit would take, at worst, with further puts (queue, large, size)."""
        cost = _Cost()
        if not (more or self._puts or self._parts):
            return cost
        queues: set[str] = set()
        filled: dict[tuple[str, int], int] = {}
        puts = [(h.placement.queue, h.stage is not None, len(h.message.body)) for h in self._puts]
        for queue, is_large, size in [*puts, *more]:
            queues.add(queue)
            body = 0 if is_large else size
            cost.bytes += body + ENTRY_BYTES
            cost.ops += is_large
            cost.compares += is_large
            place = (queue, 0)
            filled[place] = filled.get(place, 0) + body
        # Each priority may open a segment of its own.
        opened = {(h.placement.queue, h.message.priority) for h in self._puts}
        cost.ops += 2 * (len(opened) + len(more and {q for q, _, _ in more}))
        cost.ops += sum(2 * (size // segments.BODIES_MAX) * 2 for size in filled.values())
        for guarded, parts in self._parts.items():
            queues.add(guarded.opened.name)
            cost.compares += 1 + guarded.transmission
            cost.ops += SEGMENT_OPS * len(parts)
            cost.compares += SEGMENT_COMPARES * len(parts)
            for segment, mask in parts.items():
                cost.bytes += 1024 + segment.count
                cost.ops += sum(1 for i in consume.indexes_of(mask) if segment.entry(i).stage)
        cost.ops += len(queues)
        cost.compares += 2 * len(queues)
        return cost

    # Ending

    async def commit(self, producer: ProducerNumber | None = None) -> None:
        """Raises `Refusal` (nothing was changed; what is held stays for `backout`), `Fenced` or `OutcomeUnknown`."""
        async with self._lock:
            structure = self._structure
            if producer is not None:
                named = self._service.catalog.structure(producer.structure)
                if structure is not None and structure is not named and not self.empty:
                    raise Refusal(Reason.OBJECT_CHANGED, f"the unit is in structure {structure.name}, its producer in {named.name}")
                structure = named
            if structure is None or (self.empty and producer is None):
                return
            try:
                await self._commit(structure, producer)
            except Applied:
                # It was committed before, by a call whose answer was lost: what this one holds is not wanted.
                await self._backout(structure, count=False)
                return
            self._done(committed=True)

    async def _commit(self, structure: Structure, producer: ProducerNumber | None) -> None:
        loop, losses = asyncio.get_running_loop(), 0
        until = loop.time() + COMMIT_S
        while True:
            unit = await self._unit(structure, producer)
            try:
                # Consumption is in slot 0, where units of this process see each other's changes of a record.
                await structure.commit(unit, slot=0 if self._parts else None, affinity=producer.producer if producer else "")
                await task_failpoint("unit.after_commit_before_answer")
                return
            except CompareFailed as failed:
                await self._changed(failed)
                if loop.time() >= until:
                    raise Refusal(Reason.CHANGED_MEANWHILE, str(failed)) from failed
                losses += 1
                await pause(self._service.world, losses)
            except consume.LastEntries:
                if loop.time() >= until:
                    raise

    async def _unit(self, structure: Structure, producer: ProducerNumber | None) -> Unit:
        unit = Unit("commit")
        for held in self._puts:
            same = held.placement.same()
            if same not in unit.compares:
                unit.compares.append(same)
            if held.stage is not None:
                held.stage.publish(unit, held.message.entry)
            unit.puts.append(held.message)
        for guarded, parts in self._parts.items():
            take(unit, guarded, parts, claimer=self._claimer(structure))
        if producer is not None:
            unit.changes.append(await self._service.producers.change(structure, producer))
        return unit

    def _claimer(self, structure: Structure) -> Claimer:
        return Claimer(structure.member, structure.incarnation, self.id)

    async def _changed(self, failed: CompareFailed) -> None:
        """Looks what a failed compare means: a queue that was only altered is no reason to fail."""
        changed = set(failed.keys)
        for held in self._puts:
            if held.placement.opened.state.key in changed:
                held.placement = replace(held.placement, opened=await self._service.reopen(held.placement.opened))
            if held.stage is not None and held.stage.marker in changed:
                raise Refusal(Reason.BACKED_OUT, f"a large message for {held.placement.queue} was removed before it was published")
        for guarded, parts in self._parts.items():
            if guarded.opened.state.key in changed:
                guarded.opened = await self._service.reopen(guarded.opened)
            if keys.sender_fence(guarded.opened.name) in changed:
                _, results = await guarded.opened.structure.read(*guarded.gets())
                guarded.read(results[0])
            for segment in parts:
                if keys.header(guarded.opened.name, segment.at.priority, segment.at.suffix) in changed:
                    raise Refusal(Reason.BACKED_OUT, f"messages got from {guarded.opened.name} are gone")

    async def backout(self) -> None:
        """Gives everything back. Messages that were got return with their backout count raised by one."""
        async with self._lock:
            if self._structure is not None:
                await self._backout(self._structure, count=True)

    async def _backout(self, structure: Structure, *, count: bool) -> None:
        claimer = self._claimer(structure)
        jobs = [self._give_back(guarded, segment, claimer, count) for guarded, parts in self._parts.items() for segment in parts]
        # All end before one that failed is told: who tries again must find nothing under way, and only what is left to be given back.
        for outcome in await asyncio.gather(*jobs, return_exceptions=True):
            if outcome is not None:
                raise outcome
        for held in self._puts:
            if held.stage is not None:
                await large.discard(structure, held.stage)
        queues = [g.opened for g in self._parts]
        self._done(committed=False)
        for opened in queues:
            self._service.ring(opened)

    async def _give_back(self, guarded: Guarded, segment: Segment, claimer: Claimer, count: bool) -> None:
        parts = self._parts[guarded]
        await give_back(self._service, Claimed(guarded, segment, parts[segment], claimer), count=count)
        del parts[segment]
        if segment.claims is not None:
            segment.claims.release(segment.key, self.id)

    def _done(self, *, committed: bool) -> None:
        for parts in self._parts.values():
            for segment in parts:
                if committed:
                    segment.settle()
                if segment.claims is not None:
                    segment.claims.release(segment.key, self.id)
        release([h.placement for h in self._puts], committed=committed)
        self._puts, self._parts, self._structure = [], {}, None
        self.id = self._service.world.id(12)
