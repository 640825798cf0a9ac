"""Large messages: bodies beyond a segment's size, staged in chunks before a header publishes them.

Owns `q/<queue>/y/<stage>` (marker: who stages) and `q/<queue>/x/<stage>/<n>` (chunks). Invariants: every chunk is written comparing the
marker; publishing compares and deletes the marker in the transaction that writes the header, so a marker means *not published*; a stage
is removed by its owner, or by a cleaner that compares the marker and that its owner's incarnation is gone. The chunks of a published
message go in the transaction that takes the message.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from qsg.manager.catalog import Catalog
from qsg.manager.queue_store import Opened
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.segments import BODIES_MAX
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare, Delete, Get, Put, Relation, StoreError, Target, created_at, get_prefix, prefix_end, unchanged

log = structlog.get_logger()

CHUNK_BYTES = 256 * 1024
UNIT_CHUNKS = 4
"""Chunks written or read at once."""
CLEAN_EVERY_S = 30.0
OWN_EVERY_S = 5.0
"""How soon we look again after what we could not remove ourselves: nobody else will."""
STAGE_ID_BYTES = 12


def is_large(size: int) -> bool:
    """Whether a stored message of `size` bytes is staged."""
    return size > BODIES_MAX


@dataclass(slots=True)
class Stage:
    """A large message on its way into `queue`."""

    queue: str
    id: bytes
    marker_revision: int
    chunks: int = 0
    size: int = 0

    @property
    def marker(self) -> bytes:
        return keys.stage(self.queue, self.id)

    def publish(self, unit: Unit, entry: pb.Entry) -> None:
        """Makes `entry` refer to the chunks, and `unit`, which puts it, the publishing one."""
        entry.stage, entry.chunks, entry.size = self.id, self.chunks, self.size
        unit.compares.append(created_at(self.marker, self.marker_revision))
        unit.ops.append(Delete(self.marker))


async def begin(opened: Opened, world: World, *, compares: Sequence[Compare] = (), initiator: int = 0, channel: str = "") -> Stage:
    """Draws an id and writes the marker. `compares` (and those of `add`) are the stager's own, such as a channel's fence."""
    structure = opened.structure
    stage = Stage(opened.name, world.id(STAGE_ID_BYTES), 0)
    owner = pb.Lock(member=structure.member, incarnation=structure.incarnation, initiator=initiator, channel=channel)
    unit = Unit("stage", compares=[opened.same(), *compares], ops=[Put(stage.marker, owner.SerializeToString())])
    stage.marker_revision = (await structure.commit(unit)).revision
    return stage


async def add(structure: Structure, stage: Stage, data: bytes | memoryview, *, compares: Sequence[Compare] = ()) -> None:
    """Appends bytes; all but the last call bring a multiple of `CHUNK_BYTES`."""
    assert stage.size % CHUNK_BYTES == 0, "a short chunk is the last one"
    view = memoryview(data)
    for start in range(0, len(view), UNIT_CHUNKS * CHUNK_BYTES):
        piece = view[start : start + UNIT_CHUNKS * CHUNK_BYTES]
        parts = [bytes(piece[i : i + CHUNK_BYTES]) for i in range(0, len(piece), CHUNK_BYTES)]
        puts = [Put(keys.chunk(stage.queue, stage.id, stage.chunks + i), part) for i, part in enumerate(parts)]
        compare = created_at(stage.marker, stage.marker_revision)
        await structure.commit(Unit("stage", compares=[compare, *compares], ops=[*puts]))
        stage.chunks += len(parts)
        stage.size += len(piece)


async def stage_message(opened: Opened, world: World, body: bytes) -> Stage:
    """Stages a whole stored message; nothing is left behind when it fails."""
    stage = await begin(opened, world)
    try:
        await add(opened.structure, stage, body)
    except BaseException:
        await discard(opened.structure, stage)
        raise
    return stage


def leave(structure: Structure, *stages: Stage) -> None:
    """Leaves what was staged and not published to our cleaner."""
    structure.abandoned.update((stage.id, stage) for stage in stages)


async def discard(structure: Structure, *stages: Stage) -> None:
    """Removes what was staged and not published. What cannot be removed now (a cancelled call's, too) is left to our cleaner, or once
    this incarnation is gone to another's."""
    leave(structure, *stages)
    for stage in stages:
        try:
            await structure.commit(_removal(stage.queue, stage.id, [created_at(stage.marker, stage.marker_revision)]))
        except CompareFailed:
            pass  # published, or removed
        except (Refusal, Fenced, OutcomeUnknown) as error:
            log.debug("stage not discarded", queue=stage.queue, stage=stage.id.hex(), error=str(error))
            continue
        structure.abandoned.pop(stage.id, None)


def removal(queue: str, entry: pb.Entry) -> list[Delete]:
    """What deletes a published message's chunks, for the unit that takes the message."""
    if not entry.stage:
        return []
    prefix = keys.chunks(queue, entry.stage)
    return [Delete(prefix, prefix_end(prefix))]


async def read(structure: Structure, queue: str, entry: pb.Entry) -> bytes:
    """The stored message behind a staged entry. Raises `Refusal` LARGE_MESSAGE_INCOMPLETE when chunks are missing: somebody took it."""
    parts: list[bytes] = []
    for start in range(0, entry.chunks, UNIT_CHUNKS):
        wanted = range(start, min(start + UNIT_CHUNKS, entry.chunks))
        _, results = await structure.read(*(Get(keys.chunk(queue, entry.stage, i)) for i in wanted))
        parts += [result.first.value for result in results if result.first is not None]
        if len(parts) != wanted.stop:
            raise Refusal(Reason.LARGE_MESSAGE_INCOMPLETE, f"{queue}: stage {entry.stage.hex()}")
    body = b"".join(parts)
    if len(body) != entry.size:
        raise Refusal(Reason.LARGE_MESSAGE_INCOMPLETE, f"{queue}: {len(body)} of {entry.size} bytes")
    return body


def _removal(queue: str, stage: bytes, compares: list[Compare]) -> Unit:
    prefix = keys.chunks(queue, stage)
    return Unit("unstage", compares=compares, ops=[Delete(keys.stage(queue, stage)), Delete(prefix, prefix_end(prefix))])


async def clean_queue(structure: Structure, queue: str) -> int:
    """Removes stages of incarnations that are gone; how many."""
    _, (stages, members) = await structure.read(get_prefix(keys.stages(queue)), get_prefix(keys.MEMBERS, keys_only=True))
    live = {(kv.key, kv.create_revision) for kv in members.kvs}
    removed = 0
    for kv in stages.kvs:
        try:
            owner = read_record(pb.Lock, kv.value, kv.key)
        except Damaged as damaged:
            log.error("a stage's owner cannot be read", detail=damaged.detail)
            continue
        key = keys.member(owner.member)
        if (key, owner.incarnation) in live:
            continue
        stage = bytes.fromhex(kv.key[len(keys.stages(queue)) :].decode())
        void = Compare(key, Target.CREATE, Relation.NOT_EQUAL, owner.incarnation)
        try:
            await structure.commit(_removal(queue, stage, [unchanged(kv.key, kv.mod_revision), void]))
            removed += 1
        except CompareFailed:
            log.debug("stage is gone", queue=queue, stage=stage.hex())
    return removed


class StageCleaner:
    """Removes, now and then, what dead members staged in the local queues that this member knows, and what this one could not remove."""

    def __init__(self, catalog: Catalog, *, every_s: float = CLEAN_EVERY_S) -> None:
        self.catalog = catalog
        self.every_s = every_s

    async def run(self) -> None:
        while True:
            await self.clean()
            for _ in range(max(1, round(self.every_s / OWN_EVERY_S))):
                await asyncio.sleep(OWN_EVERY_S)
                await self._clean_own()

    async def _clean_own(self) -> None:
        for joined in self.catalog.structures.values():
            with contextlib.suppress(StoreError, TimeoutError):
                await discard(joined, *joined.abandoned.values())

    async def clean(self) -> int:
        removed = 0
        await self._clean_own()
        for queue in list(self.catalog.queues().values()):
            structure = self.catalog.structures.get(queue.structure) if queue.type == "local" else None
            if structure is None:
                continue
            try:
                removed += await clean_queue(structure, queue.name)
            except (StoreError, Refusal, Fenced, OutcomeUnknown) as error:
                log.info("staged bodies not cleaned", queue=queue.name, error=repr(error))
        return removed
