"""Bad frames at the listeners of channels: each is refused with a reason, the log has a line, the traffic beside is not touched."""

from __future__ import annotations

import pytest

from qsg.pb import channel_pb2
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed
from support.bad_frames import BEHIND, FIRST, FIRST_COMMITS
from support.group import ConfiguredGroup, Flow, connected, eventually
from support.hostile import TARGET, all_of, answer, batch, bind, bound, confirmed, is_logged, partner, refusal, wire

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]


@pytest.mark.parametrize("at", ["R", "X"])
async def test_a_first_frame_that_is_no_good_bind(group: ConfiguredGroup, flow: Flow, at: str) -> None:
    async def case(what: str, frame: bytes, reason: Reason) -> None:
        async with partner(group, at) as stream:
            await stream.send(frame)
            refused = await refusal(stream)
            assert refused.reason == reason, (what, Reason(refused.reason).name, refused.detail)
            assert refused.detail, what
            await eventually(is_logged(group, at, refused.detail.removeprefix("not a bind: ")[:40]), what=what)

    await all_of(case(what, frame, reason) for what, (frame, reason) in FIRST.items())
    await flow.moves()


@pytest.mark.parametrize(("at", "channel"), [("R", "R.TO.QSG"), ("X", "QSG.TO.R")])
async def test_the_name_of_a_sender_channel(group: ConfiguredGroup, flow: Flow, at: str, channel: str) -> None:
    for kind, request in ((channel_pb2.FRAME_BIND, bind(channel=channel)), (channel_pb2.FRAME_PING, channel_pb2.Ping(channel=channel))):
        async with partner(group, at) as stream:
            await stream.send(encode(kind, request))
            assert (await refusal(stream)).reason == Reason.CHANNEL_TYPE_ERROR
    await flow.moves()


async def test_an_old_epoch_and_an_old_instance_are_told_what_was_seen(group: ConfiguredGroup, flow: Flow) -> None:
    async with partner(group, "R") as first:
        await bound(first, bind(b"epochs", epoch=5, instance=3))
        for epoch, instance in ((4, 9), (5, 3), (5, 2)):
            async with partner(group, "R") as stream:
                await stream.send(encode(channel_pb2.FRAME_BIND, bind(b"epochs", epoch=epoch, instance=instance)))
                refused = await refusal(stream)
                assert (refused.reason, refused.epoch_seen, refused.instance_seen) == (Reason.EPOCH_TOO_LOW, 5, 3)
        await first.send(encode(channel_pb2.FRAME_BATCH, batch(wire(["still bound"]))))
        await confirmed(first, 1)
        async with partner(group, "R") as newer:
            record = (await bound(newer, bind(b"epochs", epoch=5, instance=4, sequence=1))).record
            assert record.sequence == 1
            with pytest.raises(Closed):
                await answer(first, channel_pb2.FRAME_CONFIRM)
    await flow.moves()


@pytest.mark.parametrize("at", ["R", "X"])
async def test_bad_frames_behind_a_good_bind(group: ConfiguredGroup, flow: Flow, at: str) -> None:
    async def case(what: str, frames: list[bytes], reasons: set[Reason]) -> None:
        async with partner(group, at) as stream:
            await bound(stream, bind(what.encode()))
            rest = frames
            if what in FIRST_COMMITS:
                await stream.send(frames[0])
                await confirmed(stream, 1)
                rest = frames[1:]
            for frame in rest:
                await stream.send(frame)
            refused = await refusal(stream)
            assert Reason(refused.reason) in reasons, (what, Reason(refused.reason).name, refused.detail)
            assert refused.detail, what
            await eventually(is_logged(group, at, refused.detail[:50]), what=what)

    async with connected(group, at) as queue_manager:
        before = (await queue_manager.inquire_queue(TARGET))["depth"]
        await all_of(case(what, frames, reasons) for what, (frames, reasons) in BEHIND.items())
        depth = (await queue_manager.inquire_queue(TARGET))["depth"]
        assert depth - before == len(FIRST_COMMITS), "only what was right was put"
        assert (await queue_manager.inquire_queue("SYSTEM.DEAD.LETTER.QUEUE"))["depth"] == 0
    await flow.moves()
