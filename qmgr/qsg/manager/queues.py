"""Queues as the queue manager offers them: put, get, browse, units of work, definitions.

Owns the opened queues, the getter loops and the producers' records of one member's incarnation. Invariants: a put is one unit (all of
its messages or none) that compares the state of each queue; a message is acknowledged only after that unit was committed. Not guaranteed:
order between puts of different affinity, and `max_depth` to the message (see `qsg.manager.placing`).
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import structlog

from qsg.bell import Once
from qsg.failpoint import task_failpoint
from qsg.manager import large
from qsg.manager.browsing import Browser, BrowseSpec
from qsg.manager.catalog import Catalog
from qsg.manager.forgetting import ProducerCleaner
from qsg.manager.getting import GetSpec, GetterLoop, GotMessage
from qsg.manager.large import Stage, StageCleaner
from qsg.manager.placing import Depth, Placement, Placer, check_message, check_size, depth_of, entry_of, release
from qsg.manager.producers import Applied, ProducerNumber, Producers, ProducerState, Wanted, always
from qsg.manager.queue_store import Opened, QueueStore
from qsg.manager.structure import Structure
from qsg.manager.units import Held, UnitOfWork
from qsg.pb import records_pb2 as pb
from qsg.rules.definitions import PRIVATE, Queue
from qsg.rules.names import resolve_get, resolve_home
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, NewMessage, Unit
from qsg.rules.world import World
from qsg.store.contract import StoreError

log = structlog.get_logger()

ATTEMPTS = 10
ID_BYTES = 24


@dataclass(slots=True)
class PutRequest:
    """A message for a queue. An empty `message.message_id` is drawn, an absent priority is the queue's default; `expires_in_ms` above 0
    sets when it expires."""

    queue: str
    message: pb.Message
    queue_manager: str = ""
    expires_in_ms: int = 0


def _bodies(requests: Sequence[PutRequest], placements: Sequence[Placement]) -> list[bytes]:
    """The messages as they are stored. Who names no priority gets the default of the queue that the message is put on."""
    for request, placement in zip(requests, placements, strict=True):
        if not request.message.HasField("priority"):
            request.message.priority = placement.opened.definition.default_priority
    return [request.message.SerializeToString() for request in requests]


class QueueService:
    """`close()` ends the loops; the structures belong to the caller."""

    def __init__(self, catalog: Catalog, world: World) -> None:
        self.catalog = catalog
        self.world = world
        self.store = QueueStore(catalog, world)
        self.placer = Placer(catalog, self.store)
        self.producers = Producers(world)
        self.copying: dict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        """By structure, held while a large message is copied to a backout queue: of all that are backed out at once, one is in memory. One
        structure does not wait for another: a copy takes as long as its own is out of reach."""
        self._loops: dict[tuple[str, str], GetterLoop] = {}
        self._cleaners: list[asyncio.Task[None]] = []
        self._bells: list[tuple[Structure, Callable[[int, frozenset[str]], None]]] = []

    def start(self) -> None:
        for structure in self.catalog.structures.values():
            self._listen(structure)
        self.catalog.on_change.append(self._altered)
        loop = asyncio.get_running_loop()
        producers = ProducerCleaner(self.catalog.structures, self.catalog.member, self.world)
        self._cleaners = [
            loop.create_task(StageCleaner(self.catalog).run(), name="cleaner of staged bodies"),
            loop.create_task(producers.run(), name="cleaner of producers"),
        ]

    def _listen(self, structure: Structure) -> None:
        def bell(revision: int, queues: frozenset[str]) -> None:
            for queue in sorted(queues):  # a set's own order differs from process to process
                loop = self._loops.get((structure.name, queue))
                if loop is not None:
                    loop.told(revision)

        structure.on_commit.append(bell)
        self._bells.append((structure, bell))

    def _altered(self) -> None:
        """Whoever waits on an altered queue looks at it again."""
        for opened in self.store.forget_altered():
            self.ring(opened)

    def member_gone(self, member: str, incarnation: int, cause: str, detect_ms: float) -> None:
        """Getters that wait look again: what a dead member had claimed is free."""
        for loop in self._loops.values():
            loop.given_back()

    async def close(self) -> None:
        for structure, bell in self._bells:
            structure.on_commit.remove(bell)
        self._bells.clear()
        if self._altered in self.catalog.on_change:
            self.catalog.on_change.remove(self._altered)
        cleaners, self._cleaners = self._cleaners, []
        for cleaner in cleaners:
            cleaner.cancel()
        if cleaners:
            await asyncio.wait(cleaners)
        loops, self._loops = self._loops, {}
        for loop in loops.values():
            await loop.close()

    # Putting

    async def put(
        self, requests: Sequence[PutRequest], *, unit: UnitOfWork | None = None, affinity: str = "", producer: ProducerNumber | None = None
    ) -> list[bytes]:
        """Puts all or none; the message ids. With `unit` they are held until it is committed.

        Raises `Refusal` (nothing was put), `Fenced`, `OutcomeUnknown`.
        """
        ids = [self._complete(request) for request in requests]
        if unit is not None:
            if producer is not None:
                raise Refusal(Reason.OPTIONS_ERROR, "in a unit of work the commit carries the producer number")
            await self._hold(requests, unit)
            return ids
        if producer is not None:
            structure = self.catalog.structure(producer.structure)
            affinity = affinity or f"producer {producer.producer}"
        else:
            structure = None
        try:
            await self._put(requests, structure, affinity, producer)
        except Applied as applied:
            assert producer is not None
            done = applied.last - producer.first + 1
            if done < len(requests):
                # A call that was cut differently committed the first of them.
                rest = ProducerNumber(producer.producer, producer.structure, producer.epoch, applied.last + 1, len(requests) - done)
                await self.put(requests[done:], affinity=affinity, producer=rest)
        return ids

    def _complete(self, request: PutRequest) -> bytes:
        """Checks the descriptor and fills in what the queue manager sets."""
        message = request.message
        check_message(message)
        now_ms = self.world.wall_ms()
        if not message.message_id:
            message.message_id = self.world.id(ID_BYTES)
        if not message.put_at_ms:
            message.put_at_ms = now_ms
        if request.expires_in_ms:
            message.expires_at_ms = now_ms + request.expires_in_ms
        if not message.origin:
            message.origin = self.catalog.member
        if message.reply_to_queue and not message.reply_to_queue_manager:
            reply = self.catalog.queue(message.reply_to_queue)
            shared = reply is not None and self.catalog.group and not (reply.type == "local" and reply.structure == PRIVATE)
            message.reply_to_queue_manager = self.catalog.group if shared else self.catalog.member
        return message.message_id

    async def _place(self, requests: Sequence[PutRequest]) -> list[Placement]:
        """One look-up per distinct destination."""
        counts: dict[tuple[str, str], int] = {}
        for request in requests:
            where = request.queue, request.queue_manager
            counts[where] = counts.get(where, 0) + 1
        found: dict[tuple[str, str], Placement] = {}
        try:
            for where, count in counts.items():
                found[where] = await self.placer.put(*where, messages=count, reserve=True)
            for request in requests:
                check_size(found[request.queue, request.queue_manager].opened, len(request.message.payload))
        except BaseException:
            release(found.values(), committed=False)
            raise
        return [found[request.queue, request.queue_manager] for request in requests]

    async def _hold(self, requests: Sequence[PutRequest], unit: UnitOfWork) -> None:
        placements = await self._place(requests)
        try:
            for placement in placements:
                unit.adopt(placement.structure)
            bodies = _bodies(requests, placements)
            unit.require_room(placements, [len(body) for body in bodies])
            unit.add(await self._held(requests, placements, bodies))
        except BaseException:
            release(placements, committed=False)
            raise

    async def _held(self, requests: Sequence[PutRequest], placements: list[Placement], bodies: list[bytes]) -> list[Held]:
        """Messages ready to be put; large ones are staged."""
        held: list[Held] = []
        try:
            for request, placement, body in zip(requests, placements, bodies, strict=True):
                stage: Stage | None = None
                entry = entry_of(request.message, len(body))
                if large.is_large(len(body)):
                    stage, body = await self._stage(placement, body), b""
                held.append(
                    Held(placement, NewMessage(placement.queue, request.message.priority, entry, body, placement.destination), stage)
                )
        except BaseException:
            await self.discard(held)
            raise
        return held

    async def _stage(self, placement: Placement, body: bytes) -> Stage:
        try:
            return await large.stage_message(placement.opened, self.world, body)
        except CompareFailed as failed:
            self.store.forget(placement.opened)
            raise Refusal(Reason.OBJECT_CHANGED, f"{placement.queue} was changed while a large message was staged") from failed

    async def discard(self, held: Sequence[Held]) -> None:
        """Removes what was staged for puts that will not be made."""
        for h in held:
            if h.stage is not None:
                await large.discard(h.placement.structure, h.stage)

    async def _put(
        self, requests: Sequence[PutRequest], structure: Structure | None, affinity: str, producer: ProducerNumber | None
    ) -> None:
        placements = await self._resolved(requests, structure, producer)
        committed = False
        try:
            home = placements[0].structure
            if any(p.structure is not home for p in placements):
                raise Refusal(Reason.OPTIONS_ERROR, "the queues of one put lie in several structures")
            held = await self._held(requests, placements, _bodies(requests, placements))
            try:
                await self._commit_puts(home, held, affinity, producer)
                committed = True
            except (Refusal, CompareFailed):
                await self.discard(held)
                raise
            except BaseException:
                # The store does not answer, or nobody waits any more: left to our cleaner, which lets alone what was published.
                for h in held:
                    if h.stage is not None:
                        large.leave(home, h.stage)
                raise
        finally:
            release(placements, committed=committed)

    async def _resolved(
        self, requests: Sequence[PutRequest], structure: Structure | None, producer: ProducerNumber | None
    ) -> list[Placement]:
        try:
            placements = await self._place(requests)
        except Refusal:
            if structure is not None and producer is not None:
                await self._settled_before(structure, producer)
            raise
        if structure is not None and producer is not None and placements[0].structure is not structure:
            release(placements, committed=False)
            await self._settled_before(structure, producer)
            where = placements[0].structure.name
            raise Refusal(Reason.OBJECT_CHANGED, f"{requests[0].queue} now leads to structure {where}: open the producer again")
        return placements

    async def _settled_before(self, structure: Structure, producer: ProducerNumber) -> None:
        """Before a numbered put is refused for where it leads: it may have been committed there. Raises `Applied` when it was."""
        state = await self.producers.state(structure, producer.producer)
        if state.epoch == producer.epoch and state.last >= producer.first:
            raise Applied(state.last)

    async def _commit_puts(self, structure: Structure, held: list[Held], affinity: str, producer: ProducerNumber | None) -> None:
        problem: Exception = Refusal(Reason.CHANGED_MEANWHILE)
        for _ in range(ATTEMPTS):
            unit = Unit("put")
            for opened in {h.placement.opened: None for h in held}:
                unit.compares.append(opened.same())
            for h in held:
                if h.stage is not None:
                    h.stage.publish(unit, h.message.entry)
                unit.puts.append(h.message)
            if producer is not None:
                unit.changes.append(await self.producers.change(structure, producer))
            try:
                await structure.commit(unit, affinity=affinity)
                await task_failpoint("put.after_commit_before_answer")
                return
            except CompareFailed as failed:
                problem = failed
                await self._reopened(held, set(failed.keys))
        raise Refusal(Reason.CHANGED_MEANWHILE, str(problem))

    async def _reopened(self, held: list[Held], changed: set[bytes]) -> None:
        """Queues found changed are opened again; those that only were altered take the put if they still may."""
        for h in held:
            opened = h.placement.opened
            if opened.state.key in changed:
                again = await self.reopen(opened)
                if not again.definition.put_enabled:
                    raise Refusal(Reason.PUT_INHIBITED, again.name)
                h.placement = replace(h.placement, opened=again)
            if h.stage is not None and h.stage.marker in changed:
                raise Refusal(Reason.OBJECT_CHANGED, f"{opened.name} was changed while a large message was staged")

    async def reopen(self, opened: Opened) -> Opened:
        """The same queue as it is now. Raises `Refusal` Q_DELETED when it was deleted, even if made again."""
        if self.store.opened(opened.definition) is opened:
            self.store.forget(opened)
        queue = self.catalog.queue(opened.name)
        if queue is None or queue.type != "local" or queue.structure != opened.structure.name:
            raise Refusal(Reason.Q_DELETED, opened.name)
        again = await self.store.open(queue)
        if again.id != opened.id:
            raise Refusal(Reason.Q_DELETED, f"{opened.name} was deleted and made again")
        return again

    async def place(
        self, structure: str, queue: str, queue_manager: str, *, hops: int = 0, messages: int = 1, payload_bytes: int = 0
    ) -> Placement:
        """Where messages go that arrive by a channel whose home is `structure`; see `Placer.place`."""
        return await self.placer.place(structure, queue, queue_manager, hops=hops, messages=messages, payload_bytes=payload_bytes)

    # Getting

    async def get(self, spec: GetSpec, *, unit: UnitOfWork | None = None, cancel: Once | None = None) -> list[GotMessage]:
        """At least one message; in a unit of work it is claimed until commit.

        Raises `Refusal` NO_MSG_AVAILABLE when there is none within `wait_ms`, or once `cancel` is set.
        """
        if spec.messages_max < 1:
            raise Refusal(Reason.OPTIONS_ERROR, "a get asks for at least one message")
        opened = await self.open_for_get(spec.queue, spec.queue_manager)
        if unit is not None:
            unit.adopt(opened.structure)
        where = opened.structure.name, opened.name
        loop = self._loops.get(where)
        if loop is None:
            loop = self._loops[where] = GetterLoop(opened, self.store)
        return await loop.get(spec, unit, cancel)

    async def browse(self, spec: BrowseSpec) -> tuple[list[GotMessage], bytes]:
        """A page and the cursor behind it. Raises `Refusal` NO_MSG_AVAILABLE when there is nothing (more)."""
        opened = await self.open_for_get(spec.queue, spec.queue_manager)
        try:
            return await Browser(opened, spec, self.world.wall_ms()).page()
        except StoreError as error:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, str(error)) from error

    async def open_for_get(self, queue: str, queue_manager: str = "") -> Opened:
        resolved = resolve_get(self.catalog.names(), queue, queue_manager)
        try:
            return await self.store.open(resolved.queue)
        except StoreError as error:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, str(error)) from error

    def begin(self) -> UnitOfWork:
        return UnitOfWork(self)

    def ring(self, opened: Opened) -> None:
        """Messages were given back to a queue."""
        loop = self._loops.get((opened.structure.name, opened.name))
        if loop is not None:
            loop.given_back()

    # Producers

    async def open_producer(
        self,
        producer: str,
        queue: str = "",
        queue_manager: str = "",
        *,
        structure: str = "",
        lifetime_ms: int = 0,
        wanted: Wanted = always,
        epochs_max: Mapping[str, int] | None = None,
        opener: bytes = b"",
    ) -> ProducerState:
        """Raises the producer's epoch in `structure`, or in the one that the queue's name leads to, while it is `wanted`.

        Whether the queue takes a put does not matter: the number may be that of a unit of work that only gets.
        """
        where = structure or resolve_home(self.catalog.names(), queue, queue_manager)
        epoch_max = (epochs_max or {}).get(where, 0)
        return await self.producers.open(self.catalog.structure(where), producer, lifetime_ms, wanted, epoch_max, opener)

    # Administration

    async def depth(self, name: str) -> Depth:
        queue = self.catalog.queue(name)
        if queue is None:
            raise Refusal(Reason.UNKNOWN_OBJECT_NAME, name)
        if queue.type != "local":
            raise Refusal(Reason.OPTIONS_ERROR, f"{name} holds no messages: it is of type {queue.type}")
        return await depth_of(await self.store.open(queue))

    async def inquire(self, name: str) -> dict[str, object]:
        """A queue's definition, and of a local one its depth."""
        queue = self.catalog.queue(name)
        if queue is None:
            raise Refusal(Reason.UNKNOWN_OBJECT_NAME, name)
        told: dict[str, object] = queue.model_dump(mode="json")
        if queue.type == "local":
            depth = await self.depth(name)
            told |= {"depth": depth.messages, "depth_bytes": depth.bytes}
        return told

    async def define(self, queue: Queue, *, replace: bool = True, own: bool | None = None) -> None:
        await self.store.define(queue, replace=replace, own=own)

    async def delete(self, name: str, *, purge: bool = False) -> None:
        await self.store.delete(name, purge=purge)

    async def purge(self, name: str) -> None:
        await self.store.purge(name)
