"""A channel from member X (or Y) of a group to queue manager R, all in memory: links, initiators, receivers at R, senders by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from qsg.manager.placing import Placer
from qsg.manager.queue_store import QueueStore
from qsg.manager.receiving import ReceiverCounters, Receivers, ReceiverServices
from qsg.manager.sending import Grant, Outcome, Sender
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, segments
from qsg.rules.definitions import Channel, Queue, Settings
from qsg.rules.reasons import Reason
from qsg.rules.unit import Cell, Change, NewMessage, Unit
from qsg.store.contract import Get, get_prefix
from qsg.transport.memory import MemoryNetwork
from support.members import Group, Member, group
from support.pair import Pair, pair

XMITQ = "R"
STREAM = b"stream-1"


@dataclass
class Seen:
    """What R's observer was told."""

    started: list[tuple[str, str, str]] = field(default_factory=list)
    ended: list[tuple[Reason, str]] = field(default_factory=list)
    paused: int = 0

    def inbound_started(self, channel: str, partner: str, stream: bytes, address: str, portal: str) -> None:
        self.started.append((channel, partner, portal))

    def inbound_progress(self, channel: str, partner: str, stream: bytes, counters: ReceiverCounters) -> None:
        self.paused += counters.paused

    def inbound_ended(self, channel: str, partner: str, stream: bytes, reason: Reason, detail: str) -> None:
        self.ended.append((reason, detail))


@dataclass
class Rig:
    members: Group
    network: MemoryNetwork
    x: Member
    y: Member
    r: Member
    xp: Pair
    yp: Pair
    rp: Pair
    receivers: Receivers
    placer: Placer
    seen: Seen
    channel: Channel
    epoch: int = 0
    senders: list[asyncio.Task[Outcome]] = field(default_factory=list)

    async def grant(self, member: Member, *, instance: int = 1, epoch: int | None = None) -> Grant:
        """Lock and fence for `member`, as the taking of a channel leaves them."""
        structure = member.structures["app1"]
        lock, fence, progress = (Cell(k(XMITQ)) for k in (keys.lock, keys.sender_fence, keys.sender_progress))
        await structure.refresh(lock, fence, progress)
        self.epoch = epoch or self.epoch + 1
        before = pb.SenderFence.FromString(fence.value or b"")
        before.epoch, before.stream, before.open = self.epoch, STREAM, True
        holder = pb.Lock(member=member.name, incarnation=structure.incarnation, epoch=self.epoch, channel="X.TO.R")
        values = holder.SerializeToString(), before.SerializeToString()
        await structure.commit(Unit("take", changes=[Change(lock, lambda _: values[0]), Change(fence, lambda _: values[1])]))
        return Grant(self.channel, structure, lock, fence, progress, self.epoch, instance, STREAM, "QSG")

    async def sender(self, member: Member | None = None, **values: int) -> Sender:
        grant = await self.grant(member or self.x, **values)
        return Sender(grant, (self.xp if (member or self.x) is self.x else self.yp).link)

    def start(self, sender: Sender) -> asyncio.Task[Outcome]:
        task = asyncio.create_task(sender.run())
        self.senders.append(task)
        return task

    async def put(
        self,
        texts: Sequence[str],
        *,
        member: Member | None = None,
        priority: int = 0,
        queue: str = "TARGET",
        size: int = 0,
        expires: int = 0,
        nonpersistent: bool = False,
    ) -> None:
        """One unit of messages on the transmission queue."""
        puts: list[NewMessage] = []
        for text in texts:
            payload = text.encode().ljust(size, b" ")
            message = pb.Message(message_id=text.encode().ljust(24, b".")[:24], priority=priority, payload=payload, expires_at_ms=expires)
            message.nonpersistent = nonpersistent
            body = message.SerializeToString()
            entry = pb.Entry(message_id=message.message_id, size=len(body), payload_size=len(payload), expires_at_ms=expires)
            puts.append(NewMessage(XMITQ, priority, entry, body, (queue, "R")))
        await (member or self.x).structures["app1"].commit(Unit("put", puts=[*puts]))

    async def arrived(self, queue: str = "TARGET") -> list[str]:
        """Payloads on a queue of R, in commit order."""
        return [m.payload.decode().strip() for m in await self.messages(queue)]

    async def messages(self, queue: str) -> list[pb.Message]:
        private = self.r.structures["private"]
        _, (headers, bodies) = await private.read(get_prefix(keys.headers(queue)), get_prefix(keys.bodies(queue)))
        stored = {kv.key: kv.value for kv in bodies.kvs}
        found = []
        for kv in sorted(headers.kvs, key=lambda kv: (kv.create_revision, kv.key)):
            header = pb.SegmentHeader.FromString(kv.value)
            assert not header.destinations or queue != "TARGET"
            body_key = keys.body(queue, *keys.split_segment_key(queue, kv.key))
            for _, entry, body in segments.iterate(header, stored.get(body_key, b"")):
                if entry.stage:
                    _, chunks = await private.read(*(Get(keys.chunk(queue, entry.stage, i)) for i in range(entry.chunks)))
                    body = memoryview(b"".join(c.first.value for c in chunks if c.first is not None))
                found.append(pb.Message.FromString(bytes(body)))
        return found

    async def until(self, count: int, queue: str = "TARGET", timeout_s: float = 15.0) -> list[str]:
        """Returns what has arrived once it is `count` messages."""
        async with asyncio.timeout(timeout_s):
            while True:
                found = await self.arrived(queue)
                if len(found) >= count:
                    return found
                await asyncio.sleep(0.005)

    async def left(self) -> dict[str, int]:
        """What is left of the transmission queue: keys by kind, and the depth by its totals."""
        _, results = await self.x.structures["app1"].read(
            get_prefix(keys.headers(XMITQ)),
            get_prefix(keys.bodies(XMITQ)),
            get_prefix(keys.consumptions(XMITQ)),
            get_prefix(keys.queue(XMITQ) + b"x/"),
            get_prefix(keys.totals(XMITQ)),
        )
        totals = [pb.Totals.FromString(kv.value) for kv in results[4].kvs]
        counts = {name: len(r.kvs) for name, r in zip(("h", "b", "c", "x"), results, strict=False)}
        return {**counts, "depth": sum(t.put - t.got for t in totals), "bytes": sum(t.put_bytes - t.got_bytes for t in totals)}

    async def settled(self, timeout_s: float = 10.0) -> None:
        """Returns once nothing is left of the transmission queue."""
        async with asyncio.timeout(timeout_s):
            while True:
                if not any((await self.left()).values()):
                    return
                await asyncio.sleep(0.005)

    async def record(self) -> pb.Progress:
        cell = await self.r.structures["private"].cell(keys.receiver_progress(STREAM))
        return pb.Progress.FromString(cell.value or b"")

    async def close(self) -> None:
        for task in self.senders:
            task.cancel()
        await asyncio.gather(*self.senders, return_exceptions=True)
        for one in (self.xp, self.yp, self.rp):
            await one.close()


@asynccontextmanager
async def rig(**channel: object) -> AsyncIterator[Rig]:
    """`channel`: attributes of both ends' definitions."""
    async with group("admin", "app1") as members:
        network = MemoryNetwork()
        x, y = await members.member("X", group="QSG"), await members.member("Y", group="QSG")
        r = await members.member("R", group="")
        pairs = [await pair(m.name, network, m.structures["private"], m.world, group=g) for m, g in ((x, "QSG"), (y, "QSG"), (r, ""))]
        both = {"name": "X.TO.R", **channel}
        receiver = Channel.model_validate({**both, "type": "receiver", "partner": "QSG", "message_retry_count": 3, "message_retry_ms": 30})
        sender = Channel.model_validate(
            {"silence_ms": 3000, **both, "type": "sender", "transmission_queue": XMITQ, "connection_names": ["R:1414"], "partner": "R"}
        )
        queues = QueueStore(r.catalog, r.world)
        for queue in (Queue(name="TARGET"), Queue(name="OTHER"), Queue(name="FULL", max_depth=2), Queue(name="DLQ")):
            await queues.define(queue)
        await queues.define(Queue(name="ONWARD", usage="transmission"))
        await r.catalog.define_channel(receiver)
        await r.catalog.define_settings(Settings(dead_letter_queue="DLQ", hop_limit=3))
        placer = Placer(r.catalog, queues)
        seen = Seen()
        services = ReceiverServices(r.world, r.structures, placer, r.catalog.channel, "R", "", seen)
        receivers = Receivers(services)
        pairs[2].link.on_accept = receivers.accept
        made = Rig(members, network, x, y, r, pairs[0], pairs[1], pairs[2], receivers, placer, seen, sender)
        try:
            yield made
        finally:
            await made.close()
