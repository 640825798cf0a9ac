"""A queue manager's back end in memory, shared by the members of a group: queues, producers' records, units of work.

Each change passes `group.gate(step, member)` before and after it becomes durable, where a test may cut, kill or delay.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import count

from qsg.bell import Once
from qsg.manager.clients import Got, Work
from qsg.manager.producers import ProducerNumber, ProducerState, Wanted, openers, superseded
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.reasons import Reason, Refusal

Gate = Callable[[str, str], Awaitable[None]]


@dataclass(frozen=True)
class FakeGot:
    raw: bytes
    backouts: int


async def _open_gate(step: str, member: str) -> None:
    return


@dataclass
class FakeGroup:
    """What is durable."""

    queues: dict[str, deque[tuple[records.Message, int]]] = field(default_factory=lambda: defaultdict(deque))
    producers: dict[tuple[str, str], records.ProducerRecord] = field(default_factory=dict)
    homes: dict[str, str] = field(default_factory=dict)
    full: dict[str, int] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)
    """Structures that no member reaches."""
    gate: Gate = _open_gate
    commits: int = 0
    frames: list[int] = field(default_factory=list)
    ids: count[int] = field(default_factory=lambda: count(1))
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def home(self, queue: str) -> str:
        if queue in self.missing:
            raise Refusal(Reason.UNKNOWN_OBJECT_NAME, queue)
        return self.homes.get(queue, "admin")

    def reach(self, structure: str) -> None:
        if structure in self.away:
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, structure)

    def payloads(self, queue: str) -> list[bytes]:
        return [message.payload for message, _ in self.queues[queue]]

    def advance(self, producer: ProducerNumber | None) -> bool:
        """False: it was applied before."""
        if producer is None:
            return True
        record = self.producers.get((producer.producer, producer.structure), records.ProducerRecord())
        if record.epoch > producer.epoch:
            raise Refusal(Reason.PRODUCER_FENCED, f"epoch {record.epoch} has replaced {producer.epoch}")
        if record.epoch < producer.epoch:
            raise Refusal(Reason.PRODUCER_GAP, f"the record of epoch {producer.epoch} is gone")
        if producer.first <= record.last:
            return False
        if producer.first != record.last + 1:
            raise Refusal(Reason.PRODUCER_GAP, f"{producer.first} follows {record.last}")
        record.last += producer.count
        return True


@dataclass(eq=False)
class FakeWork:
    group: FakeGroup
    member: str
    puts: list[tuple[str, records.Message]] = field(default_factory=list)
    got: list[tuple[str, records.Message, int]] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        return not (self.puts or self.got)

    async def commit(self, producer: ProducerNumber | None) -> None:
        await self.group.gate("before commit", self.member)
        if self.group.advance(producer):
            for queue, message in self.puts:
                self.group.queues[queue].append((message, 0))
            self.group.commits += 1
        self.group.arrived.set()
        await self.group.gate("after commit", self.member)

    async def backout(self) -> None:
        for queue, message, backouts in reversed(self.got):
            self.group.queues[queue].appendleft((message, backouts + 1))
        self.got.clear()
        self.group.arrived.set()


@dataclass(eq=False)
class FakeBackend:
    """Implements qsg.manager.clients.Backend for one member."""

    group: FakeGroup
    member: str = "X"
    commands: list[tuple[str, dict[str, object]]] = field(default_factory=list)
    objects: dict[str, object] = field(default_factory=dict)

    def begin(self) -> FakeWork:
        return FakeWork(self.group, self.member)

    async def put(self, put: pb.Put, *, work: Work | None, affinity: str, producer: ProducerNumber | None) -> list[bytes]:
        group = self.group
        home = group.home(put.queue)
        for message in put.messages:
            if not message.message_id:
                message.message_id = next(group.ids).to_bytes(24, "big")
            if len(message.payload) > 4_000_000:
                raise Refusal(Reason.MSG_TOO_BIG_FOR_Q, put.queue)
        if work is not None:
            assert isinstance(work, FakeWork)
            work.puts += [(put.queue, message) for message in put.messages]
            return [message.message_id for message in put.messages]
        await group.gate("before put", self.member)
        group.reach(producer.structure if producer is not None else home)
        if producer is not None and home != producer.structure:
            record = group.producers[producer.producer, producer.structure]
            if record.epoch != producer.epoch or producer.first != record.last + 1:
                group.advance(producer)
            raise Refusal(Reason.OBJECT_CHANGED, f"{put.queue} lies in {home} now")
        if put.queue in group.full and len(group.queues[put.queue]) + len(put.messages) > group.full[put.queue]:
            raise Refusal(Reason.Q_FULL, put.queue)
        if group.advance(producer):
            group.queues[put.queue].extend((message, 0) for message in put.messages)
            group.commits += 1
            group.frames.append(len(put.messages))
        group.arrived.set()
        await group.gate("after put", self.member)
        return [message.message_id for message in put.messages]

    async def get(self, get: pb.Get, *, work: Work | None, cancel: Once) -> list[Got]:
        self.group.home(get.queue)
        ends = asyncio.get_running_loop().time() + get.wait_ms / 1000
        cancel.listen(self.group.arrived.set)
        while not (taken := self._take(get)):
            left_s = ends - asyncio.get_running_loop().time()
            if left_s <= 0 or cancel.is_set():
                raise Refusal(Reason.NO_MSG_AVAILABLE, get.queue)
            self.group.arrived.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self.group.arrived.wait()
        if work is not None:
            assert isinstance(work, FakeWork)
            work.got += [(get.queue, message, backouts) for message, backouts in taken]
        await self.group.gate("after get", self.member)
        return [FakeGot(message.SerializeToString(), backouts) for message, backouts in taken]

    def _take(self, get: pb.Get) -> list[tuple[records.Message, int]]:
        queue = self.group.queues[get.queue]
        wanted = [
            entry
            for entry in queue
            if get.message_id in (b"", entry[0].message_id) and get.correlation_id in (b"", entry[0].correlation_id)
        ][: get.messages_max]
        for entry in wanted:
            queue.remove(entry)
        return wanted

    async def browse(self, browse: pb.Browse) -> tuple[list[Got], bytes]:
        start = int(browse.cursor or b"0")
        page = list(self.group.queues[browse.queue])[start : start + browse.messages_max]
        return [FakeGot(message.SerializeToString(), backouts) for message, backouts in page], b"%d" % (start + len(page))

    async def open_producer(self, opening: pb.OpenProducer, wanted: Wanted) -> ProducerState:
        structure = opening.structure or self.group.home(opening.queue)
        self.group.reach(structure)
        await self.group.gate("before open", self.member)
        record = self.group.producers.setdefault((opening.producer, structure), records.ProducerRecord())
        if superseded(record, opening.opener, opening.epochs_max.get(structure, 0)):
            raise Refusal(Reason.PRODUCER_FENCED, f"{opening.producer}: another connection has opened it since")
        record.epoch += 1
        record.openers[:] = openers(record, opening.opener)
        opened = ProducerState(structure, record.epoch, record.last)
        await self.group.gate("after open", self.member)
        return opened

    async def inquire(self, kind: str, name: str) -> object:
        if kind == "queue":
            self.group.home(name)
            return {"name": name, "depth": len(self.group.queues[name])}
        return self.objects.get(kind, [])

    async def command(self, name: str, arguments: dict[str, object]) -> object:
        await self.group.gate("before command", self.member)
        self.commands.append((name, arguments))
        if name == "refuse":
            raise Refusal(Reason.CHANNEL_NOT_FOUND, "no such channel")
        return {"done": name}
