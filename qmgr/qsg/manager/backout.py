"""Giving back what a unit of work claimed: released for others, or moved to the backout queue when backed out too often.

Invariant: an entry is released (its count raised), or moved (gone here, put there), in one transaction that finds it still claimed by
the unit. A moved message begins anew: on the backout queue its count is 0. When the backout queue cannot take it (not there, full, put
inhibited, in another structure), the message returns with its count; it is never lost for that. Large messages return too: moving one
would mean copying all of its chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog

from qsg.manager.consuming import Guarded, Segment, release_unit, returned, take
from qsg.manager.placing import Placement, check_size
from qsg.pb import records_pb2 as pb
from qsg.rules import consume, keys, segments
from qsg.rules.consume import Claimer
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, NewMessage, Unit
from qsg.store.contract import Get

if TYPE_CHECKING:
    from qsg.manager.queues import QueueService

log = structlog.get_logger()

ATTEMPTS = 10
MOVE_ATTEMPTS = 3
"""After that many lost races the messages are only given back."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """Entries (a bitmap) of one segment that a unit of work holds."""

    guarded: Guarded
    segment: Segment
    mask: int
    claimer: Claimer


async def give_back(service: QueueService, claimed: Claimed, *, count: bool) -> None:
    """Releases the entries; `count`: as backed out. Raises `Fenced` (the claims are void then) and `OutcomeUnknown`."""
    guarded, segment = claimed.guarded, claimed.segment
    problem: Exception = Refusal(Reason.CHANGED_MEANWHILE)
    for attempt in range(ATTEMPTS):
        unit = await _unit(service, claimed, count, move=count and attempt < MOVE_ATTEMPTS)
        try:
            # Consumption is in slot 0, where units of this process see each other's changes of a record.
            await guarded.opened.structure.commit(unit, slot=0)
            if unit.changes:
                segment.settle()
            return
        except CompareFailed as failed:
            problem = failed
            if keys.header(guarded.opened.name, segment.at.priority, segment.at.suffix) in failed.keys:
                segment.gone = True  # The queue was deleted or purged.
                return
            if guarded.opened.state.key in failed.keys:
                try:
                    guarded.opened = await service.reopen(guarded.opened)
                except Refusal as refusal:
                    log.info("claims went with their queue", queue=guarded.opened.name, reason=refusal.reason.name)
                    return
        except Refusal as refusal:
            if refusal.reason is not Reason.CHANGED_MEANWHILE and not unit.puts:
                raise
            problem = refusal
    log.warning("claims not given back", queue=guarded.opened.name, problem=str(problem))


async def _unit(service: QueueService, claimed: Claimed, count: bool, *, move: bool) -> Unit:
    """Releases all, or moves those that were backed out too often and releases the rest."""
    moved = await _moves(service, claimed) if move else []
    gone = consume.bits(index for index, _, _ in moved)
    rest = claimed.mask & ~gone
    if not gone:
        return release_unit(claimed.guarded, claimed.segment, rest, claimed.claimer, backed_out=count)
    unit = Unit(f"back out {claimed.guarded.opened.name}")
    for _, placement, message in moved:
        if placement.same() not in unit.compares:
            unit.compares.append(placement.same())
        unit.puts.append(message)
    take(unit, claimed.guarded, {claimed.segment: gone}, claimer=claimed.claimer)
    if rest:
        unit.changes.append(returned(claimed.segment, rest, claimed.claimer, backed_out=count))
    return unit


async def _moves(service: QueueService, claimed: Claimed) -> list[tuple[int, Placement, NewMessage]]:
    """Messages to be moved: (index, where to, the message as put there)."""
    definition = claimed.guarded.opened.definition
    if not (definition.backout_threshold and definition.backout_queue):
        return []
    backouts = claimed.segment.backouts()
    often = [i for i in consume.indexes_of(claimed.mask) if backouts.get(i, 0) + 1 >= definition.backout_threshold]
    found: list[tuple[int, Placement, NewMessage]] = []
    if not often:
        return found
    try:
        placement = await service.placer.put(definition.backout_queue, "", messages=len(often))
        if placement.structure is not claimed.guarded.opened.structure or placement.destination is not None:
            raise Refusal(Reason.DEFINITION_ERROR, f"backout queue {placement.queue} is not a local queue of the same structure")
        for index in often:
            entry = claimed.segment.entry(index)
            if entry.stage:
                continue
            check_size(placement.opened, entry.payload_size)
            copy = pb.Entry()
            copy.CopyFrom(entry)
            body = await _body(claimed, index)
            found.append((index, placement, NewMessage(placement.queue, claimed.segment.at.priority, copy, body)))
    except Refusal as refusal:
        log.warning(
            "backout queue does not take messages", queue=definition.name, backout_queue=definition.backout_queue, problem=str(refusal)
        )
        return []
    return found


async def _body(claimed: Claimed, index: int) -> bytes:
    guarded, segment = claimed.guarded, claimed.segment
    bodies = segment.body
    if bodies is None and segments.needs_bodies(segment.at.header):
        _, (result,) = await guarded.opened.structure.read(Get(keys.body(guarded.opened.name, segment.at.priority, segment.at.suffix)))
        if result.first is None:
            raise Refusal(Reason.BACKED_OUT, "the segment is gone")
        bodies = result.first.value
    return segments.body_at(segment.at.header, index, bodies or b"")
