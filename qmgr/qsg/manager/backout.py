"""Giving back what a unit of work claimed: released for others, or moved to the backout queue when backed out too often.

Invariant: an entry is released (its count raised), or moved (gone here, put there), in one transaction that finds it still claimed by
the unit. A moved message begins anew: on the backout queue its count is 0. When the backout queue cannot take it (not there, full, put
inhibited, in another structure), the message returns with its count; it is never lost for that. A large message is staged anew under the
backout queue first; the transaction that takes the original publishes the copy. Cut off before it, the copy is a stage like any other,
removed here or by a cleaner, and the original is where it was. Not guaranteed: that all large messages of a segment move at once
(`LARGE_MOVES`); the others return with their counts and move when they are backed out again.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from qsg.manager import large
from qsg.manager.consuming import Guarded, Segment, release_unit, returned, take
from qsg.manager.large import Stage
from qsg.manager.placing import Placement, check_size
from qsg.manager.racing import pause
from qsg.pb import records_pb2 as pb
from qsg.rules import consume, keys, segments
from qsg.rules.consume import Claimer
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, NewMessage, Unit
from qsg.store.contract import Get

if TYPE_CHECKING:
    from qsg.manager.queues import QueueService

log = structlog.get_logger()

TELL_EVERY = 50
MOVE_ATTEMPTS = 3
"""After that many lost races the messages are only given back."""
LARGE_MOVES = 16
"""Large messages moved in one transaction: each is copied while the backout waits, and takes operations of its own."""


@dataclass(slots=True)
class Claimed:
    """Entries (a bitmap, less what is found gone) of one segment that a unit of work holds."""

    guarded: Guarded
    segment: Segment
    mask: int
    claimer: Claimer


@dataclass(slots=True)
class _Attempt:
    """One attempt: the backout queue that it puts on, and what it has staged there."""

    placement: Placement | None = None
    stages: list[Stage] = field(default_factory=list)


@contextlib.asynccontextmanager
async def _attempting(service: QueueService, claimed: Claimed) -> AsyncIterator[_Attempt]:
    """What a failed attempt has staged is discarded: nobody else refers to it."""
    attempt = _Attempt()
    try:
        yield attempt
    except BaseException as problem:
        if attempt.placement is not None and isinstance(problem, CompareFailed) and attempt.placement.opened.state.key in problem.keys:
            service.store.forget(attempt.placement.opened)
        await large.discard(claimed.guarded.opened.structure, *attempt.stages)
        raise


async def give_back(service: QueueService, claimed: Claimed, *, count: bool) -> None:
    """Releases the entries; `count`: as backed out. Nobody else does that while this incarnation lives: it goes on, however often others
    are faster. Raises `Fenced` (the claims are void then), `OutcomeUnknown` and `StoreError`."""
    losses = 0
    while not await _given_back(service, claimed, count=count, move=count and losses < MOVE_ATTEMPTS):
        losses += 1
        if losses % TELL_EVERY == 0:
            log.warning("claims not given back yet", queue=claimed.guarded.opened.name, losses=losses)
        await pause(service.world, losses)


async def _given_back(service: QueueService, claimed: Claimed, *, count: bool, move: bool) -> bool:
    """One attempt; also True when the unit holds nothing here any more."""
    guarded, segment = claimed.guarded, claimed.segment
    try:
        async with _attempting(service, claimed) as attempt:
            unit = await _unit(service, claimed, count, attempt if move else None)
            # Consumption is in slot 0, where units of this process see each other's changes of a record.
            await guarded.opened.structure.commit(unit, slot=0)
        if unit.changes:
            segment.settle()
        return True
    except CompareFailed as failed:
        if keys.header(guarded.opened.name, segment.at.priority, segment.at.suffix) in failed.keys:
            segment.gone = True  # The queue was deleted or purged.
            return True
        if guarded.opened.state.key in failed.keys:
            try:
                guarded.opened = await service.reopen(guarded.opened)
            except Refusal as refusal:
                log.info("claims went with their queue", queue=guarded.opened.name, reason=refusal.reason.name)
                return True
    except Refusal as refusal:
        if refusal.reason is Reason.CHANGED_MEANWHILE:
            claimed.mask = await _held(claimed)
            return not claimed.mask
        if attempt.placement is None:
            raise
    return False


async def _held(claimed: Claimed) -> int:
    """Those of the entries that the unit has still, as read now: a commit whose outcome nobody knew may have taken them."""
    segment = claimed.segment
    await claimed.guarded.opened.structure.refresh(segment.cell)
    record = consume.parse(segment.cell.value)
    if segment.claims is not None:
        return claimed.mask & ~consume.gone_mask(record)
    return claimed.mask & consume.gathered(record, claimed.claimer).mask


async def _unit(service: QueueService, claimed: Claimed, count: bool, attempt: _Attempt | None) -> Unit:
    """Releases all, or (in an attempt to move) moves those that were backed out too often and releases the rest."""
    moved = await _moves(service, claimed, attempt) if attempt is not None else []
    gone = consume.bits(index for index, *_ in moved)
    rest = claimed.mask & ~gone
    if not gone:
        return release_unit(claimed.guarded, claimed.segment, rest, claimed.claimer, backed_out=count)
    unit = Unit(f"back out {claimed.guarded.opened.name}")
    for _, placement, message, stage in moved:
        if placement.same() not in unit.compares:
            unit.compares.append(placement.same())
        if stage is not None:
            stage.publish(unit, message.entry)
        unit.puts.append(message)
    take(unit, claimed.guarded, {claimed.segment: gone}, claimer=claimed.claimer)
    if rest:
        unit.changes.append(returned(claimed.segment, rest, claimed.claimer, backed_out=count))
    return unit


_Moved = tuple[int, Placement, NewMessage, Stage | None]


async def _moves(service: QueueService, claimed: Claimed, attempt: _Attempt) -> list[_Moved]:
    """Messages to be moved: (index, where to, the message as put there, its stage when it is large)."""
    definition = claimed.guarded.opened.definition
    if not (definition.backout_threshold and definition.backout_queue):
        return []
    backouts = claimed.segment.backouts()
    often = [i for i in consume.indexes_of(claimed.mask) if backouts.get(i, 0) + 1 >= definition.backout_threshold]
    found: list[_Moved] = []
    if not often:
        return found
    try:
        placement = await service.placer.put(definition.backout_queue, "", messages=len(often))
        if placement.structure is not claimed.guarded.opened.structure or placement.destination is not None:
            raise Refusal(Reason.DEFINITION_ERROR, f"backout queue {placement.queue} is not a local queue of the same structure")
    except Refusal as refusal:
        _not_taken(definition, refusal)
        return found
    attempt.placement = placement
    for index in often:
        if claimed.segment.entry(index).stage and len(attempt.stages) >= LARGE_MOVES:
            continue
        try:
            found.append(await _move(service, claimed, attempt, placement, index))
        except Refusal as refusal:
            _not_taken(definition, refusal)
    return found


def _not_taken(definition: Queue, refusal: Refusal) -> None:
    log.warning("backout queue does not take messages", queue=definition.name, backout_queue=definition.backout_queue, problem=str(refusal))


async def _move(service: QueueService, claimed: Claimed, attempt: _Attempt, placement: Placement, index: int) -> _Moved:
    """Raises `Refusal` when the backout queue does not take this one."""
    guarded, entry = claimed.guarded, claimed.segment.entry(index)
    check_size(placement.opened, entry.payload_size)
    copy = pb.Entry()
    copy.CopyFrom(entry)
    stage: Stage | None = None
    if entry.stage:
        async with service.copying[guarded.opened.structure.name]:
            body = await large.read(guarded.opened.structure, guarded.opened.name, entry)
            stage = await large.stage_message(placement.opened, service.world, body)
        attempt.stages.append(stage)
        body = b""
    else:
        body = await _body(claimed, index)
    return index, placement, NewMessage(placement.queue, claimed.segment.at.priority, copy, body), stage


async def _body(claimed: Claimed, index: int) -> bytes:
    guarded, segment = claimed.guarded, claimed.segment
    bodies = segment.body
    if bodies is None and segments.needs_bodies(segment.at.header):
        _, (result,) = await guarded.opened.structure.read(Get(keys.body(guarded.opened.name, segment.at.priority, segment.at.suffix)))
        if result.first is None:
            raise Refusal(Reason.BACKED_OUT, "the segment is gone")
        bodies = result.first.value
    return segments.body_at(segment.at.header, index, bodies or b"")
