"""Channel frames at a receiver and at a sender: both ends with their initiators and links, over a network and stores in memory."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from fuzz import wire
from fuzz.target import Loop, Target, Violation, mutate_frames
from fuzz.targets.plain import batch, wire_segment
from qsg.manager.sending import Sender
from qsg.pb import channel_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules import keys
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import offer
from qsg.rules.reasons import Reason
from qsg.store.contract import Get, prefix_end
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream
from support.channel_pair import Rig, rig

ENDS_S = 60.0
"""In virtual time."""
OPEN = ("g/", "q/TARGET/", "q/DLQ/", "r/", "rp/")
"""Keys in R's store that sessions of this target may change."""


class _Pair:
    def __init__(self) -> None:
        self.loop = Loop()
        self.stack = AsyncExitStack()
        self.two: Rig
        self.number = 0
        self.loop.run(self._start())

    async def _start(self) -> None:
        self.two = await self.stack.enter_async_context(rig())

    def close(self) -> None:
        self.loop.run(self.stack.aclose())
        self.loop.close()

    async def closed_to_others(self) -> dict[bytes, int]:
        """What of R's store no session may touch: key -> revision."""
        _, (found,) = await self.two.r.structures["private"].read(Get(b"\0", b"\0", keys_only=True))
        return {kv.key: kv.mod_revision for kv in found.kvs if not kv.key.decode(errors="replace").startswith(OPEN)}


# The receiver


class _Receiver(_Pair):
    def check(self, data: bytes) -> None:
        self.loop.hold(self._check(wire.split(data)))

    async def _check(self, frames: list[bytes]) -> None:
        before = await self.closed_to_others()
        stream = await self.two.network.transport("X").connect("R:1414", "qsg.v1.Channel")
        reading = asyncio.ensure_future(_answers(stream))
        try:
            for frame in frames:
                await stream.send(frame)
            await asyncio.sleep(0.4)
            await stream.close()
        except Closed:
            pass
        async with asyncio.timeout(ENDS_S):
            answers = await reading
            while self.two.receivers.active:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        for frame in answers:
            if frame[0] == pb.FRAME_REFUSED:
                refused = pb.Refused.FromString(frame[1:])
                if refused.reason == Reason.UNEXPECTED_ERROR or not refused.detail:
                    raise Violation(f"refused with {refused.reason}: {refused.detail!r}")
        if await self.closed_to_others() != before:
            raise Violation("a session changed what is not its own")
        await self._clean()

    async def _clean(self) -> None:
        """Every input begins with an empty record, and queues that are not full."""
        private = self.two.r.structures["private"]
        _, (stages,) = await private.read(Get(keys.stages("TARGET"), prefix_end(keys.stages("TARGET")), keys_only=True))
        if stages.kvs:
            raise Violation("a session left staged parts behind")
        if any(estimate.under_way for estimate in self.two.placer._depths.values()):
            raise Violation("a session left room reserved")
        self.number += 1
        store = self.two.r.stores["private"]
        from qsg.store.contract import Delete

        await store.txn([], [Delete(p, prefix_end(p)) for p in (b"r/", b"rp/")])
        if self.number % 50 == 0:
            await self.two.placer.queues.purge("TARGET")


async def _answers(stream: Stream) -> list[bytes]:
    found = []
    try:
        while True:
            found.append(await stream.receive())
    except Closed:
        return found


def receiver() -> Target:
    def bind(**values: object) -> bytes:
        made = pb.Bind(channel="X.TO.R", sender="QSG", stream=b"fuzz", epoch=1, instance=1)
        made.parameters.CopyFrom(offer(Channel(name="X.TO.R", type="receiver")))
        made.MergeFrom(pb.Bind(**values))  # type: ignore[arg-type]
        return encode(pb.FRAME_BIND, made)

    one, two = batch(1, 1, wire_segment(["a", "b"])), batch(2, 3, wire_segment(["c"], 101), wire_segment(["d"], 102, "NOWHERE"))
    part = pb.Part(stage=b"st", index=0, chunks=2, data=bytes(300), destination=records.Destination(queue="TARGET"))
    last = pb.Part(stage=b"st", index=1, chunks=2, data=bytes(20), destination=records.Destination(queue="TARGET"))
    staged = batch(1, 1, wire_segment(["x"]))
    header = records.SegmentHeader.FromString(staged.segments[0].header)
    header.entries[0].stage, header.entries[0].chunks, header.entries[0].size, header.bodies_size = b"st", 2, 320, 0
    staged.segments[0].header, staged.segments[0].bodies = header.SerializeToString(), b""
    seeds = [
        wire.join([bind(), encode(pb.FRAME_BATCH, one), encode(pb.FRAME_BATCH, two), encode(pb.FRAME_CLOSE, pb.Close())]),
        wire.join([bind(), encode(pb.FRAME_PART, part), encode(pb.FRAME_PART, last), encode(pb.FRAME_BATCH, staged)]),
        wire.join([bind(fence_only=True)]),
        wire.join([bytes((pb.FRAME_QUERY,)) + bind()[1:]]),
        wire.join([encode(pb.FRAME_PING, pb.Ping(channel="X.TO.R", data=bytes(16)))]),
    ]
    made = _Receiver()
    return Target("receiver", seeds, made.check, mutate_frames(1), made.close)


# The sender


class _Sender(_Pair):
    """The partner answers the bind and each batch with what it is given."""

    async def _start(self) -> None:
        await super()._start()
        self.frames: list[bytes] = []
        await self.two.network.transport("EVIL").listen("EVIL:1414", {"qsg.v1.Channel": self._answer})
        self.two.channel = self.two.channel.model_copy(update={"connection_names": ("EVIL:1414",), "silence_ms": 1500})

    async def _answer(self, stream: Stream) -> None:
        try:
            for frame in self.frames:
                await stream.receive()
                await stream.send(frame)
            await asyncio.sleep(0.5)
        except Closed:
            return

    def check(self, data: bytes) -> None:
        self.frames = wire.split(data)
        self.loop.hold(self._check())

    async def _check(self) -> None:
        if (await self.two.left())["depth"] < 4:
            await self.two.put(["a", "b"])
            await self.two.put(["c", "d"])
        sender: Sender = await self.two.sender()
        async with asyncio.timeout(ENDS_S):
            outcome = await sender.run()
        if outcome.kind not in ("failed", "stopped", "fenced"):
            raise Violation(f"ended as {outcome}")
        left = await self.two.left()
        if left["depth"] < 0 or left["depth"] > 100:
            raise Violation(f"counts are wrong: {left}")
        private = await self.closed_to_others()
        if any(key.startswith(b"q/R/") for key in private):
            raise Violation("the sender wrote where it has nothing to write")
        # The record that the partner made up is forgotten, so that the next one may begin anew.
        progress = keys.sender_progress("R")
        from qsg.store.contract import Delete

        await self.two.x.stores["app1"].txn([], [Delete(progress)])
        await asyncio.sleep(0.01)


def sender() -> Target:
    parameters = offer(Channel(name="X.TO.R", type="receiver"))
    bound = encode(pb.FRAME_BOUND, pb.Bound(receiver="R", member="R", record=records.Progress(), parameters=parameters))
    confirm = [encode(pb.FRAME_CONFIRM, pb.Confirm(number=n, luwid=f"L{n}", sequence=2 * n)) for n in (1, 2)]
    known = records.Progress(sequence=3, confirmed={0: records.Position(create_revision=2**40, suffix=b"X.0/1", index=1)}, luwid="L")
    ahead = encode(pb.FRAME_BOUND, pb.Bound(receiver="R", member="R", record=known, parameters=parameters))
    seeds = [
        wire.join([bound, *confirm]),
        wire.join([bound, encode(pb.FRAME_PROGRESS, pb.Beat(number=1, note="paused")), encode(pb.FRAME_CLOSE, pb.Close(reason=9021))]),
        wire.join([encode(pb.FRAME_REFUSED, pb.Refused(reason=9002, detail="old", epoch_seen=7, instance_seen=2))]),
        wire.join([ahead, confirm[0]]),
        wire.join([encode(pb.FRAME_HEARTBEAT), bound, encode(pb.FRAME_HEARTBEAT), confirm[0]]),
    ]
    made = _Sender()
    return Target("sender", seeds, made.check, mutate_frames(1), made.close)
