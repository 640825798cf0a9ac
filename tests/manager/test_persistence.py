"""Every message is durable, also one that is marked as not persistent: the mark only travels with it."""

from __future__ import annotations

from qsg.manager.getting import GetSpec
from qsg.pb import records_pb2 as pb
from qsg.rules.definitions import Queue
from support.channel_pair import rig
from support.members import Member, group, shared

LARGE = bytes(range(256)) * 2_000


async def marks(member: Member, queue: str) -> list[tuple[bytes, bool]]:
    got: list[pb.Message] = []
    while len(got) < 2:
        got += [g.message for g in await member.queues.get(GetSpec(queue, messages_max=2))]
    return [(message.payload, message.nonpersistent) for message in got]


async def test_a_nonpersistent_message_survives_a_restart_of_the_queue_manager() -> None:
    async with group() as g:
        x = await g.member("X")
        for queue in (Queue(name="PRIVATE"), shared("SHARED")):
            await x.queues.define(queue)
            await x.put(queue.name, b"small", LARGE, nonpersistent=True)
        await x.crash()

        again = await g.member("X")

        for name in ("PRIVATE", "SHARED"):
            assert await marks(again, name) == [(b"small", True), (LARGE, True)]


async def test_a_nonpersistent_message_crosses_a_channel_and_stays_so() -> None:
    async with rig() as rig_:
        await rig_.put(["one"], nonpersistent=True)
        await rig_.put(["two"])
        rig_.start(await rig_.sender())
        await rig_.until(2)
        await rig_.settled()

        assert await marks(rig_.r, "TARGET") == [(b"one", True), (b"two", False)]
