"""Where a local queue's messages lie: made, opened, altered and removed in its structure.

Owns `q/<queue>/d`, the queue's state: a random id and the definition beside the data. Invariant: every put, get and lock compares its
revision, so a queue that was altered, or deleted and made again, is noticed by every writer that has not seen it. Making is: state first,
then the definition by which names resolve; deleting is: state first (comparing that nobody uses the queue), then what is left under the
prefix, in bounded pieces that compare that the state is still absent, then the definition, unless the queue was made again. Cut off after
any step, the same call carries on.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from qsg.manager.catalog import ATTEMPTS, Catalog, require_same_place, swap
from qsg.manager.claims import Claims
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import PRIVATE, Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.unit import Cell, Change, CompareFailed, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare, Delete, Get, GetResult, Op, Relation, Target, get_prefix, nothing_changed_after, unchanged

log = structlog.get_logger()

SWEEP_KEYS = 500
"""Keys removed in one step."""
ID_BYTES = 8


@dataclass(slots=True, eq=False)
class Opened:
    """A local queue as last seen in its structure. `definition` is the authority for its attributes."""

    name: str
    structure: Structure
    state: Cell
    definition: Queue
    id: bytes

    @property
    def claims(self) -> Claims | None:
        """Where units of work claim in memory; None: in the store."""
        return None if self.definition.usage == "transmission" else self.structure.claims

    def same(self) -> Compare:
        """The queue is as it was when opened: part of every put and get."""
        return unchanged(self.state.key, self.state.mod_revision)


class QueueStore:
    """Opened queues of one member."""

    def __init__(self, catalog: Catalog, world: World) -> None:
        self.catalog = catalog
        self.world = world
        self._opened: dict[tuple[str, str], Opened] = {}

    async def open(self, queue: Queue) -> Opened:
        """The queue that a local definition means. Raises `Refusal` when it does not exist in its structure."""
        assert queue.type == "local"
        opened = self._opened.get((queue.structure, queue.name))
        return opened if opened is not None else await self._open(queue)

    def opened(self, queue: Queue) -> Opened | None:
        """The same without reading."""
        return self._opened.get((queue.structure, queue.name))

    def forget(self, opened: Opened) -> None:
        """Its state was found changed: it is read again at next use."""
        if self._opened.get((opened.structure.name, opened.name)) is opened:
            del self._opened[opened.structure.name, opened.name]

    def forget_altered(self) -> list[Opened]:
        """Forgets queues whose definition is another than when they were opened (their state was written before it)."""
        altered = [o for o in self._opened.values() if self.catalog.queue(o.name) != o.definition]
        for opened in altered:
            self.forget(opened)
        return altered

    async def _open(self, queue: Queue) -> Opened:
        structure = self.catalog.structure(queue.structure)
        cell = await structure.cell(keys.queue_state(queue.name))
        if cell.value is None and queue.structure == PRIVATE and self.catalog.queue(queue.name) == queue:
            # Defined once for the group, held by each member: made here at first use.
            await self._make(structure, queue, replace=False)
            cell = await structure.cell(keys.queue_state(queue.name))
        if cell.value is None:
            raise Refusal(Reason.Q_DELETED, queue.name)
        state = read_record(pb.QueueState, cell.value, cell.key)
        try:
            definition = Queue.model_validate_json(state.definition)
        except ValidationError as error:
            raise Damaged(f"its definition is not understood: {error.errors()[0]['msg']}", cell.key) from error
        opened = Opened(queue.name, structure, cell, definition, state.id)
        self._opened[queue.structure, queue.name] = opened
        return opened

    async def define(self, queue: Queue, *, replace: bool = True, own: bool | None = None) -> None:
        """Defines or alters a queue of any type."""
        before = self.catalog.queue(queue.name)
        if before is not None and not replace and before != queue:
            raise Refusal(Reason.OBJECT_ALREADY_EXISTS, queue.name)
        if before is not None:
            require_same_place(before, queue)
        anew = False
        if queue.type == "local":
            if queue.structure not in self.catalog.structures:
                raise Refusal(Reason.DEFINITION_ERROR, f"queue {queue.name}: structure: there is no structure {queue.structure} here")
            if before is None or before.backout_queue != queue.backout_queue:
                self._require_backout_queue(queue)
            anew = await self._make(self.catalog.structure(queue.structure), queue, replace=True)
        await self.catalog.write_queue(queue, replace=True, own=own, anew=anew)

    def _require_backout_queue(self, queue: Queue) -> None:
        """Raises `Refusal` when the backout queue can never take a message of `queue`: moving is one transaction of one structure.

        One that is not known is accepted, as queues are defined in any order; so is one that was named before: an old mistake does not
        stand in the way of other alterations. A backout says what is wrong then.
        """
        found = self.catalog.queue(queue.backout_queue) if queue.backout_queue else None
        if found is not None and found.type == "alias":
            found = self.catalog.queue(found.target)
        if found is None:
            return
        if found.type != "local" or found.usage == "transmission":
            why = f"{found.name} is not a local queue that applications get from"
        elif found.structure != queue.structure:
            why = f"{found.name} is in structure {found.structure}, {queue.name} in {queue.structure}: they must be in the same one"
        else:
            return
        raise Refusal(Reason.DEFINITION_ERROR, f"queue {queue.name}: backout_queue: {why}")

    async def _make(self, structure: Structure, queue: Queue, *, replace: bool) -> bool:
        """Makes or alters the state; whether it was made."""
        key = keys.queue_state(queue.name)
        cell = await structure.cell(key)
        if cell.value is None:
            await self._sweep(structure, queue.name)
        fresh, text = self.world.id(ID_BYTES), queue.model_dump_json(exclude_defaults=True)

        def apply(present: bytes | None) -> bytes:
            if present is None:
                return pb.QueueState(id=fresh, definition=text).SerializeToString()
            return pb.QueueState(id=read_record(pb.QueueState, present).id, definition=text).SerializeToString() if replace else present

        before = cell.mod_revision
        revision = await swap(structure, key, apply, cell)
        self._opened.pop((queue.structure, queue.name), None)
        return before != revision == cell.create_revision

    async def delete(self, name: str, *, purge: bool = False, own: bool | None = None) -> None:
        """Deletes a queue; a local one only when it is empty (or `purge`), not locked by a channel and not in doubt."""
        queue = self.catalog.queue(name)
        if queue is None:
            raise Refusal(Reason.UNKNOWN_OBJECT_NAME, name)
        structure = self.catalog.structure(queue.structure) if queue.type == "local" else None
        if structure is not None:
            await self._remove_state(structure, name, purge)
            await self._sweep(structure, name)
            self._opened.pop((queue.structure, name), None)
        await self.catalog.remove_queue(name, own=own, lay_in=structure)

    async def purge(self, name: str) -> None:
        """Removes all messages (CLEAR QLOCAL): the queue is deleted and made again with the same definition."""
        queue = self.catalog.queue(name)
        if queue is None or queue.type != "local":
            raise Refusal(Reason.UNKNOWN_OBJECT_NAME, name)
        structure = self.catalog.structure(queue.structure)
        await self._remove_state(structure, name, purge=True)
        await self._make(structure, queue, replace=True)

    async def _remove_state(self, structure: Structure, name: str, purge: bool) -> None:
        for _ in range(ATTEMPTS):
            revision, results = await structure.read(
                Get(keys.queue_state(name)),
                Get(keys.lock(name)),
                Get(keys.sender_fence(name)),
                get_prefix(keys.headers(name), limit=1, keys_only=True),
                get_prefix(keys.MEMBERS, keys_only=True),
            )
            if results[0].first is None:
                return
            unit = Unit(f"delete queue {name}", compares=[] if purge else [nothing_changed_after(keys.totals(name), revision)])
            _require_unused(name, results, unit, purge)
            cell = Cell(keys.queue_state(name))
            cell.saw(revision, results[0].first)
            unit.changes.append(Change(cell, lambda _: None))
            try:
                await structure.commit(unit)
                return
            except CompareFailed as failed:
                log.info("queue is in use, trying again to delete it", queue=name, keys=failed.keys)
        raise Refusal(Reason.OBJECT_IN_USE, name)

    async def _sweep(self, structure: Structure, name: str) -> None:
        """Removes what a deleted queue left, as long as the queue is not made again."""
        gone = unchanged(keys.queue_state(name), 0)
        while True:
            _, (page,) = await structure.read(get_prefix(keys.queue(name), limit=SWEEP_KEYS, keys_only=True))
            if not page.kvs:
                return
            piece = Delete(page.kvs[0].key, page.kvs[-1].key + b"\0")
            try:
                await structure.commit(Unit(f"sweep queue {name}", compares=[gone], ops=[piece]))
            except CompareFailed:
                return  # Somebody made the queue again, after everything had been removed.


def _require_unused(name: str, results: list[GetResult], unit: Unit, purge: bool) -> None:
    """Adds to a deleting unit what it must compare; raises `Refusal` when the queue is used."""
    _, lock, fence, header, members = results
    if header.kvs and not purge:
        raise Refusal(Reason.Q_NOT_EMPTY, name)
    ops: list[Op] = []
    unit.compares.append(unchanged(keys.lock(name), lock.first.mod_revision if lock.first else 0))
    if lock.first is not None:
        holder = read_record(pb.Lock, lock.first.value, lock.first.key)
        key = keys.member(holder.member)
        if any(kv.key == key and kv.create_revision == holder.incarnation for kv in members.kvs):
            raise Refusal(Reason.OBJECT_IN_USE, f"{name}: channel {holder.channel} on {holder.member}")
        unit.compares.append(Compare(key, Target.CREATE, Relation.NOT_EQUAL, holder.incarnation))
        ops.append(Delete(keys.lock(name)))
    unit.compares.append(unchanged(keys.sender_fence(name), fence.first.mod_revision if fence.first else 0))
    if fence.first is not None:
        if read_record(pb.SenderFence, fence.first.value, fence.first.key).open:
            raise Refusal(Reason.OBJECT_IN_USE, f"{name}: messages sent from it are in doubt")
        ops += [Delete(keys.sender_fence(name)), Delete(keys.sender_progress(name))]
    unit.ops.extend(ops)
