"""Where a local queue's messages lie: made, opened, altered and removed in its structure.

Owns `q/<queue>/d`, the queue's state: a random id and the definition beside the data. Invariant: every put, get and lock compares its
revision, so a queue that was altered, or deleted and made again, is noticed by every writer that has not seen it. Making is: state first,
then the definition by which names resolve, and both again when that was not there and the state is gone by now; deleting is: state first
(comparing that nobody uses the queue), then what is left under the prefix, in bounded pieces that compare that the state is still absent,
then the definition, unless the queue was made again. Cut off after any step, the same call carries on; done at once by several, the two
agree in the end.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from qsg.manager.catalog import ATTEMPTS, Catalog, require_same_place
from qsg.manager.claims import Claims
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import PRIVATE, Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record
from qsg.rules.steps import swap
from qsg.rules.unit import Cell, CompareFailed, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare, Delete, Get, GetResult, KeyValue, Op, Relation, Target, get_prefix, nothing_changed_after, unchanged

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
        """The queue that a local definition means. Raises `Refusal` when it does not exist in its structure.

        One that was opened as something else is read again: it was altered just as it was opened, or only its state was, and back.
        """
        assert queue.type == "local"
        opened = self._opened.get((queue.structure, queue.name))
        if opened is not None and (opened.definition is queue or opened.definition == queue):
            return opened
        return await self._open(queue)

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
        definition, queue_id = _read_state(cell.key, cell.value)
        # The same object, where they are equal: comparing it is cheap then.
        opened = Opened(queue.name, structure, cell, queue if definition == queue else definition, queue_id)
        self._opened[queue.structure, queue.name] = opened
        return opened

    async def define(self, queue: Queue, *, replace: bool = True, own: bool | None = None) -> None:
        """Defines or alters a queue of any type."""
        before = self.catalog.queue(queue.name)
        if before is not None and not replace and before != queue:
            raise Refusal(Reason.OBJECT_ALREADY_EXISTS, queue.name)
        if before is not None:
            require_same_place(before, queue)
        if queue.type != "local":
            await self.catalog.write_queue(queue, replace=True, own=own)
            return
        if queue.structure not in self.catalog.structures:
            raise Refusal(Reason.DEFINITION_ERROR, f"queue {queue.name}: structure: there is no structure {queue.structure} here")
        if before is None or before.backout_queue != queue.backout_queue:
            self._require_backout_queue(queue)
        await self._establish(queue, replace=True, own=own)

    async def _establish(self, queue: Queue, *, replace: bool, own: bool | None) -> None:
        """State, then definition. Who deletes the queue between the two may have ended when the definition comes: then both again."""
        structure = self.catalog.structure(queue.structure)
        for _ in range(ATTEMPTS):
            await self._make(structure, queue, replace=replace)
            written_first = await self.catalog.write_queue(queue, replace=replace, own=own)
            if not written_first or (await structure.cell(keys.queue_state(queue.name))).value is not None:
                return
        raise Refusal(Reason.CHANGED_MEANWHILE, queue.name)

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

    async def _make(self, structure: Structure, queue: Queue, *, replace: bool) -> None:
        """Makes or alters the state. It is made only where nothing is left of a queue that was deleted."""
        name, key = queue.name, keys.queue_state(queue.name)
        text = queue.model_dump_json(exclude_defaults=True)
        for _ in range(ATTEMPTS):
            revision, (state, left) = await structure.read(Get(key), get_prefix(keys.queue(name), limit=1, keys_only=True))
            cell = Cell(key)
            cell.saw(revision, state.first)
            after = pb.QueueState(id=self.world.id(ID_BYTES), definition=text)
            unit = Unit(f"make queue {name}")
            if cell.value is None:
                clean = await self._sweep(structure, name) if left.kvs else revision
                unit.compares.append(nothing_changed_after(keys.queue(name), clean))
            else:
                after.id = read_record(pb.QueueState, cell.value, key).id
            value = after.SerializeToString()
            try:
                if value != cell.value and (replace or cell.value is None):
                    unit.changes.append(swap(cell, value))
                    await structure.commit(unit)
                self._opened.pop((queue.structure, name), None)
                return
            except CompareFailed:
                log.debug("changed meanwhile, looking again", queue=name)
        raise Refusal(Reason.CHANGED_MEANWHILE, name)

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
        await self.catalog.remove_queue(queue, own=own)

    async def purge(self, name: str) -> None:
        """Removes all messages (CLEAR QLOCAL): the queue is deleted and made again with the same definition."""
        queue = self.catalog.queue(name)
        if queue is None or queue.type != "local":
            raise Refusal(Reason.UNKNOWN_OBJECT_NAME, name)
        own = self.catalog.is_own_queue(name)
        removed = await self._remove_state(self.catalog.structure(queue.structure), name, purge=True)
        with suppress(Damaged):
            queue = _read_state(removed.key, removed.value)[0] if removed is not None else queue
        # What others define meanwhile stays as they define it.
        await self._establish(queue, replace=False, own=own)

    async def _remove_state(self, structure: Structure, name: str, purge: bool) -> KeyValue | None:
        """What it was; None: it was removed before."""
        for _ in range(ATTEMPTS):
            revision, results = await structure.read(
                Get(keys.queue_state(name)),
                Get(keys.lock(name)),
                Get(keys.sender_fence(name)),
                get_prefix(keys.headers(name), limit=1, keys_only=True),
                get_prefix(keys.MEMBERS, keys_only=True),
            )
            if results[0].first is None:
                return None
            unit = Unit(f"delete queue {name}", compares=[] if purge else [nothing_changed_after(keys.totals(name), revision)])
            _require_unused(name, results, unit, purge)
            cell = Cell(keys.queue_state(name))
            cell.saw(revision, results[0].first)
            unit.changes.append(swap(cell, None))
            try:
                await structure.commit(unit)
                return results[0].first
            except CompareFailed as failed:
                log.info("queue is in use, trying again to delete it", queue=name, keys=failed.keys)
        raise Refusal(Reason.OBJECT_IN_USE, name)

    async def _sweep(self, structure: Structure, name: str) -> int:
        """Removes what a deleted queue left, as long as the queue is not made again (then 0); at which revision nothing was left."""
        gone = unchanged(keys.queue_state(name), 0)
        while True:
            revision, (page,) = await structure.read(get_prefix(keys.queue(name), limit=SWEEP_KEYS, keys_only=True))
            if not page.kvs:
                return revision
            piece = Delete(page.kvs[0].key, page.kvs[-1].key + b"\0")
            try:
                await structure.commit(Unit(f"sweep queue {name}", compares=[gone], ops=[piece]))
            except CompareFailed:
                return 0  # Somebody made the queue again, after everything had been removed.


def _read_state(key: bytes, value: bytes) -> tuple[Queue, bytes]:
    state = read_record(pb.QueueState, value, key)
    try:
        return Queue.model_validate_json(state.definition), state.id
    except ValidationError as error:
        raise Damaged(f"its definition is not understood: {error.errors()[0]['msg']}", key) from error


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
