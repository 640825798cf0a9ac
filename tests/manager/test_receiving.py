"""The receiver against a scripted sender: binds, repeats, undeliverable messages, limits, adoption."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from qsg.manager.getting import GetSpec
from qsg.manager.link import SessionFailed
from qsg.manager.placing import Placer
from qsg.manager.queue_store import QueueStore
from qsg.manager.receiving import Receivers, ReceiverServices
from qsg.pb import channel_pb2, initiator_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel, Queue, Settings
from qsg.rules.reasons import Reason
from qsg.rules.unit import Change, Committed, Unit
from qsg.store.contract import Delete, get_prefix
from support.channel_pair import STREAM, Rig, rig
from support.channel_script import Script, connect, refused, request


async def test_batches_commit_with_their_record_and_several_share_a_confirmation(two: Rig) -> None:
    script = await connect(two)
    for number in range(4):
        await script.send(script.batch(script.segment([f"{number}a", f"{number}b"])))
    confirmed = 0
    while confirmed < 4:
        confirmed = (await script.confirm()).number
    assert await two.arrived() == ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"]
    record = await two.record()
    assert (record.sequence, record.luwid, record.batches, record.messages) == (8, "L4", 4, 8)


async def test_a_repeated_batch_ends_the_session_and_changes_nothing(two: Rig) -> None:
    script = await connect(two)
    batch = script.batch(script.segment(["a"]))
    await script.send(batch)
    await script.confirm()
    await script.send(batch)
    assert await script.refusal() is Reason.BATCH_OUT_OF_ORDER
    again = await connect(two, request(1, 2, sequence=1))
    repeated = channel_pb2.Batch()
    repeated.CopyFrom(batch)
    repeated.first_sequence = 2
    await again.send(repeated)
    assert await again.refusal() is Reason.BATCH_OUT_OF_ORDER
    assert await two.arrived() == ["a"]


async def test_reordered_batches_end_the_session(two: Rig) -> None:
    script = await connect(two)
    first, second = script.batch(script.segment(["a"])), script.batch(script.segment(["b"]))
    await script.send(second)
    await script.send(first)
    assert await script.refusal() is Reason.BATCH_OUT_OF_ORDER
    assert await two.arrived() == []


async def test_bind_query_ping(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await script.confirm()
    failed = await refused(two, request(1, 1))
    assert (failed.reason, failed.epoch_seen, failed.instance_seen) == (Reason.EPOCH_TOO_LOW, 1, 1)
    asked = (await connect(two, request(1, 1), query=True)).session.bound
    assert (asked.epoch, asked.record.sequence, asked.receiver, asked.member) == (1, 1, "R", "R")
    assert (await connect(two, ping=True)).session.address == "R:1414"
    await script.send(script.batch(script.segment(["b"])))
    assert (await script.confirm()).number == 2
    wrong = request()
    wrong.channel = "OTHER"
    assert (await refused(two, wrong, ping=True)).reason is Reason.UNKNOWN_CHANNEL_NAME


async def test_of_two_binds_that_go_into_one_transaction_the_older_is_refused(two: Rig) -> None:
    """Simulation seed 86704: a stop's bind was out with that of the paused owner behind it; both were told that they were bound, the
    older stood, and its owner sent when it woke, though the channel was STOPPED."""
    private = two.r.structures["private"]
    commit, binding, both = private.commit, list[Unit](), asyncio.Event()

    async def together(unit: Unit, **how: Any) -> Committed:
        if unit.label == "bind" and not both.is_set():
            binding.append(unit)
            if len(binding) == 2:
                both.set()  # who came second goes first
            await both.wait()
        return await commit(unit, **how)

    private.commit = together  # type: ignore[method-assign]
    older = asyncio.create_task(refused(two, request(2)))
    while not binding:  # noqa: ASYNC110
        await asyncio.sleep(0)
    newer = await connect(two, request(3))
    assert ((await older).reason, (await older).epoch_seen) == (Reason.EPOCH_TOO_LOW, 3)
    fence = pb.ReceiverFence.FromString((await private.cell(keys.receiver_fence(STREAM))).value or b"")
    assert fence.epoch == 3
    await newer.send(newer.batch(newer.segment(["a"])))
    assert (await newer.confirm()).number == 1


async def test_parameters_must_agree(two: Rig) -> None:
    bind = request()
    bind.parameters.sequence_wrap = 5000
    assert (await refused(two, bind)).reason is Reason.SEQUENCE_WRAP_MISMATCH
    assert (await refused(two, request(receiver="OTHER"))).reason is Reason.WRONG_PARTNER
    bind = request()
    bind.parameters.batch_window = 2
    assert (await connect(two, bind)).session.bound.parameters.batch_window == 2


async def test_a_newer_bind_adopts_the_stream_at_once(two: Rig) -> None:
    old = await connect(two)
    await old.send(old.batch(old.segment(["a"])))
    await old.confirm()
    new = await connect(two, request(2, 1, sequence=1))
    assert new.session.bound.record.sequence == 1
    assert await old.refusal() is Reason.PARTNER_CLOSED
    assert len(two.receivers.active) == 1
    new.counter, new.sequence = 1, 1
    await new.send(new.batch(new.segment(["b"])))
    await new.confirm()
    assert await two.arrived() == ["a", "b"]
    assert [reason for reason, _ in two.seen.ended] == [Reason.NO_INITIATOR]


async def test_an_instance_fenced_off_elsewhere_commits_nothing(two: Rig) -> None:
    """Another member took the bind: this one's next commit fails its compare."""
    script = await connect(two)
    private = two.r.structures["private"]
    cell = await private.cell(keys.receiver_fence(STREAM))
    fence = pb.ReceiverFence.FromString(cell.value or b"")
    fence.epoch, fence.member = 2, "R2"
    await private.commit(Unit(changes=[Change(cell, lambda _: fence.SerializeToString())]))
    with capture_logs() as logs:
        await script.send(script.batch(script.segment(["a"])))
        with pytest.raises(SessionFailed) as failed:
            await script.confirm()
    assert (failed.value.reason, failed.value.epoch_seen) == (Reason.EPOCH_TOO_LOW, 2)
    assert [line["units"] for line in logs if line["event"] == "writes refused"] == [1]
    assert await two.arrived() == []


async def test_a_fence_only_bind_raises_the_epoch_and_ends(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await script.confirm()
    fence = await connect(two, request(5, 1, sequence=1, fence_only=True))
    assert fence.session.bound.record.sequence == 1
    assert await fence.refusal() is Reason.PARTNER_CLOSED
    assert await script.refusal() is Reason.PARTNER_CLOSED
    assert (await refused(two, request(4, 9))).epoch_seen == 5


async def test_a_fence_only_bind_that_is_refused_for_lost_data_fences_all_the_same(two: Rig) -> None:
    script = await connect(two)
    assert (await refused(two, request(5, 1, sequence=1, fence_only=True))).reason is Reason.SEQUENCE_ERROR
    await script.send(script.batch(script.segment(["a"])))
    assert await script.refusal() is Reason.EPOCH_TOO_LOW
    assert await two.arrived() == []


async def test_undeliverable_messages_go_to_the_dead_letter_queue(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a", "b"], ("NOWHERE", "R")), script.segment(["c"])))
    assert (await script.confirm()).dead_letter_used
    assert await two.arrived() == ["c"]
    dead = await two.messages("DLQ")
    assert [m.payload for m in dead] == [b"a", b"b"]
    letter = dead[0].dead_letter
    assert (letter.reason, letter.queue, letter.queue_manager, letter.channel) == (Reason.UNKNOWN_OBJECT_NAME, "NOWHERE", "R", "X.TO.R")
    await script.send(script.batch(script.segment(["d"])))
    assert not (await script.confirm()).dead_letter_used


async def test_without_a_dead_letter_queue_nothing_is_confirmed(two: Rig) -> None:
    await two.r.catalog.define_settings(Settings(dead_letter_queue=""))
    script = await connect(two)
    await script.send(script.batch(script.segment(["c"]), script.segment(["a"], ("NOWHERE", "R"))))
    assert await script.refusal() is Reason.UNKNOWN_OBJECT_NAME
    assert await two.arrived() == [] and (await two.record()).sequence == 0


NO_LETTERS = pytest.mark.parametrize("settings", [False, True], ids=["use_dead_letter_queue: false", "no dead-letter queue"])


async def no_letters(two: Rig, settings: bool) -> None:
    """R has no dead-letter queue, or its receiver is not to use it."""
    if settings:
        await two.r.catalog.define_settings(Settings(dead_letter_queue=""))
        return
    channel = two.r.catalog.channel("X.TO.R")
    assert channel is not None and channel.use_dead_letter_queue
    await two.r.catalog.define_channel(channel.model_copy(update={"use_dead_letter_queue": False}))


async def test_a_channel_that_is_not_to_use_the_dead_letter_queue_confirms_nothing_undelivered(two: Rig) -> None:
    await no_letters(two, settings=False)
    script = await connect(two)
    await script.send(script.batch(script.segment(["good"]), script.segment(["a", "b"], ("NOWHERE", "R"))))
    assert await script.refusal() is Reason.UNKNOWN_OBJECT_NAME
    assert await two.messages("DLQ") == []
    assert await two.arrived() == [] and (await two.record()).sequence == 0

    await two.placer.queues.define(Queue(name="NOWHERE"))
    again = await connect(two, request(2, 1))
    await again.send(again.batch(again.segment(["good"]), again.segment(["a", "b"], ("NOWHERE", "R"))))
    assert not (await again.confirm()).dead_letter_used
    assert (await two.arrived(), await two.arrived("NOWHERE")) == (["good"], ["a", "b"])


@NO_LETTERS
async def test_without_dead_letters_a_full_queue_takes_what_it_can_and_the_rest_is_retried(two: Rig, settings: bool) -> None:
    """A segment of more messages than the queue has room for comes in by and by; what has no room after all retries ends the channel."""
    await no_letters(two, settings)
    script = await connect(two)
    await script.send(script.batch(script.segment(["good"]), script.segment(["a", "b", "c"], ("FULL", "R"))))
    assert await script.refusal() is Reason.Q_FULL
    assert (await two.arrived(), await two.arrived("FULL"), await two.messages("DLQ")) == (["good"], ["a", "b"], [])
    assert two.seen.paused >= 1

    again = await connect(two, request(2, 1, sequence=3))
    again.counter, again.sequence = script.counter, (await two.record()).sequence
    assert again.sequence == 3
    await again.send(again.batch(again.segment(["c"], ("FULL", "R"))))
    assert [g.message.payload for g in await two.r.queues.get(GetSpec("FULL", messages_max=2))] == [b"a", b"b"]
    assert not (await again.confirm()).dead_letter_used
    assert await two.arrived("FULL") == ["c"]


async def test_a_full_queue_is_retried_then_the_rest_are_dead_letters(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a", "b", "c"], ("FULL", "R"))))
    await script.confirm()
    assert await two.arrived("FULL") == ["a", "b"]
    dead = await two.messages("DLQ")
    assert [(m.payload, m.dead_letter.reason) for m in dead] == [(b"c", Reason.Q_FULL)]
    assert two.seen.paused >= 1


async def test_a_batch_waits_for_room_with_what_came_before_committed(two: Rig) -> None:
    """The queue is full of the batch's own first messages: only when these are committed can anybody make room for the rest."""
    channel = two.r.catalog.channel("X.TO.R")
    assert channel is not None
    await two.r.catalog.define_channel(channel.model_copy(update={"message_retry_count": 500}))
    await two.placer.queues.define(Queue(name="TARGET", max_depth=1))
    script = await connect(two)
    await script.send(script.batch(script.segment(["a", "b", "c"], ("TARGET", "R"))))
    await script.send(script.batch(script.segment(["d"], ("TARGET", "R"))))
    got: list[bytes] = []
    async with asyncio.timeout(10):
        while len(got) < 4:
            got += [g.message.payload for g in await two.r.queues.get(GetSpec("TARGET", wait_ms=5_000))]
    assert got == [b"a", b"b", b"c", b"d"]
    while (await script.confirm()).number < 2:
        pass
    assert await two.messages("DLQ") == []


async def test_message_retry_ends_when_the_queue_takes_messages_again(two: Rig) -> None:
    inhibited = Queue(name="TARGET", put_enabled=False)
    await two.placer.queues.define(inhibited)
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await asyncio.sleep(0.02)
    await two.placer.queues.define(Queue(name="TARGET"))
    assert not (await script.confirm()).dead_letter_used
    assert await two.arrived() == ["a"] and two.seen.paused >= 1


async def test_progress_is_reported_while_a_message_is_retried() -> None:
    async with rig() as two:
        slow = two.r.catalog.channel("X.TO.R")
        assert slow is not None
        await two.r.catalog.define_channel(slow.model_copy(update={"message_retry_ms": 400, "message_retry_count": 2}))
        await two.placer.queues.define(Queue(name="TARGET", put_enabled=False))
        script = await connect(two)
        await script.send(script.batch(script.segment(["a"])))
        kinds = []
        while channel_pb2.FRAME_CONFIRM not in kinds:
            kinds.append((await asyncio.wait_for(script.session.receive(), 3))[0])
        assert kinds.count(channel_pb2.FRAME_PROGRESS) >= 2


async def test_a_queue_altered_meanwhile_is_looked_at_again(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await script.confirm()
    private = two.r.structures["private"]
    other = type(two.placer.queues)(two.r.catalog, two.r.world)
    # The definition, of which the receiver would hear, is still to come.
    await other._make(private, Queue(name="TARGET", description="altered behind the receiver's back"), replace=True)
    for text in "bcd":
        await script.send(script.batch(script.segment([text])))
    while (await script.confirm()).number < 4:
        pass
    assert await two.arrived() == list("abcd")
    assert private.counters.failed >= 1


async def test_several_destinations_in_one_segment(two: Rig) -> None:
    script = await connect(two)
    at = script.segment(["t1", "o1", "t2", "d1", "o2"])
    at.header.destinations.add(queue="OTHER", queue_manager="R")
    at.header.destinations.add(queue="NOWHERE", queue_manager="R")
    for index, destination in ((1, 1), (4, 1), (3, 2)):
        at.header.entries[index].destination = destination
    await script.send(script.batch(at))
    await script.confirm()
    assert await two.arrived() == ["t1", "t2"]
    assert await two.arrived("OTHER") == ["o1", "o2"]
    assert await two.arrived("DLQ") == ["d1"]


async def test_messages_for_elsewhere_go_on_with_one_more_hop_up_to_the_limit(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"], ("FAR", "ONWARD"))))
    await script.confirm()
    far = script.segment(["b"], ("FAR", "ONWARD"))
    message = pb.Message.FromString(far.header.bodies)
    message.hops = 3
    far.header.bodies = message.SerializeToString()
    far.header.entries[0].size = far.header.bodies_size = len(far.header.bodies)
    await script.send(script.batch(far))
    await script.confirm()
    _, (headers,) = await two.r.structures["private"].read(get_prefix(keys.headers("ONWARD")))
    header = pb.SegmentHeader.FromString(headers.kvs[0].value)
    assert (header.destinations[0].queue, header.destinations[0].queue_manager) == ("FAR", "ONWARD")
    assert [m.hops for m in await two.messages("ONWARD")] == [1]
    assert [m.dead_letter.reason for m in await two.messages("DLQ")] == [Reason.HOP_LIMIT]


async def test_a_batch_beyond_one_transaction_is_committed_in_prefixes() -> None:
    async with rig(batch_bytes=8 << 20) as two:
        script = await connect(two)
        batch = script.batch(*(script.segment([f"{n}.{i}" for i in range(20)], size=10_000) for n in range(15)))
        await script.send(batch)
        confirm = await script.confirm()
        assert (confirm.number, confirm.sequence) == (1, 300)
        assert await two.arrived() == [f"{n}.{i}" for n in range(15) for i in range(20)]
        assert (await two.record()).batches == 1


async def test_a_segment_for_very_many_queues_is_cut(two: Rig) -> None:
    script = await connect(two)
    for number in range(60):
        await two.placer.queues.define(Queue(name=f"Q{number}"))
    at = script.segment([f"{n}" for n in range(60)])
    del at.header.destinations[:]
    for number in range(60):
        at.header.destinations.add(queue=f"Q{number}", queue_manager="R")
        at.header.entries[number].destination = number
    await script.send(script.batch(at))
    assert (await script.confirm()).sequence == 60
    for number in (0, 29, 30, 59):
        assert await two.arrived(f"Q{number}") == [f"{number}"]
    assert (await two.record()).confirmed[0].index == 59


async def test_messages_that_cannot_be_read_are_refused(two: Rig) -> None:
    script = await connect(two)
    at = script.segment(["abc"])
    at.header.bodies = b"\xff" * at.header.bodies_size
    await script.send(script.batch(at))
    assert await script.refusal() is Reason.PROTOCOL_ERROR
    again = await connect(two, request(1, 2))
    await again.session.send(channel_pb2.FRAME_BATCH, b"\xff\xff\xff")
    assert await again.refusal() is Reason.PROTOCOL_ERROR
    assert await two.arrived() == []


async def test_more_batches_than_agreed_are_refused(two: Rig) -> None:
    await two.placer.queues.define(Queue(name="TARGET", put_enabled=False))
    bind = request()
    bind.parameters.batch_window = 2
    script = await connect(two, bind)
    for text in "abc":
        await script.send(script.batch(script.segment([text])))
    assert await script.refusal() is Reason.PROTOCOL_ERROR


def part(index: int, chunks: int, data: bytes, stage: bytes = b"stage") -> channel_pb2.Part:
    return channel_pb2.Part(
        stage=stage, index=index, chunks=chunks, data=data, destination=pb.Destination(queue="TARGET", queue_manager="R")
    )


async def stages(two: Rig, queue: str = "TARGET") -> int:
    _, results = await two.r.structures["private"].read(get_prefix(keys.stages(queue)), get_prefix(keys.queue(queue) + b"x/"))
    return sum(len(r.kvs) for r in results)


async def test_parts_that_are_never_published_are_removed(two: Rig) -> None:
    script = await connect(two)
    for index in range(8):
        await script.session.send(channel_pb2.FRAME_PART, part(index, 20, bytes(256 << 10)))
    async with asyncio.timeout(3):
        while True:
            if await stages(two) >= 8:
                break
            await asyncio.sleep(0.01)
    await script.session.close()
    async with asyncio.timeout(3):
        while True:
            if not await stages(two):
                break
            await asyncio.sleep(0.01)
    assert not two.receivers.active


@pytest.mark.parametrize("wrong", ["order", "unannounced", "short"])
async def test_parts_that_do_not_fit_are_refused(two: Rig, wrong: str) -> None:
    script = await connect(two)
    at = script.segment(["x"])
    at.header.entries[0].stage, at.header.entries[0].chunks = b"stage", 2
    at.header.entries[0].size, at.header.entries[0].offset = 1000, 0
    at.header.ClearField("bodies")
    at.header.bodies_size = 0
    if wrong == "order":
        await script.session.send(channel_pb2.FRAME_PART, part(1, 2, b"data"))
    elif wrong == "short":
        await script.session.send(channel_pb2.FRAME_PART, part(0, 2, bytes(500)))
    if wrong != "order":
        await script.send(script.batch(at))
    assert await script.refusal() is (Reason.PROTOCOL_ERROR if wrong == "order" else Reason.LARGE_MESSAGE_INCOMPLETE)
    await asyncio.sleep(0.05)
    assert await stages(two) == 0


async def test_a_receiver_of_the_group_portal_uses_its_home_structure() -> None:
    async with rig() as two:
        queues = QueueStore(two.x.catalog, two.x.world)
        await queues.define(Queue(name="SHARED", structure="app1"))
        home = Channel(name="R.TO.X", type="receiver", structure="app1")
        await two.x.catalog.define_channel(home)
        placer = Placer(two.x.catalog, queues)
        receivers = Receivers(ReceiverServices(two.x.world, two.x.structures, placer, two.x.catalog.channel, "X", "QSG"))
        two.xp.link.on_accept = receivers.accept
        bind = request(receiver="QSG")
        bind.channel, bind.sender = "R.TO.X", "R"
        order = initiator_pb2.Open(channel="R.TO.X", addresses=["X:1415"], bind=bind, silence_ms=1500)
        script = Script(await two.rp.link.open(order))
        assert (script.session.bound.receiver, script.session.bound.member) == ("QSG", "X")
        await script.send(script.batch(script.segment(["a"], ("SHARED", "QSG"))))
        await script.confirm()
        app1 = two.x.structures["app1"]
        _, results = await app1.read(get_prefix(keys.headers("SHARED")), get_prefix(keys.receiver_fence(STREAM)))
        assert [len(r.kvs) for r in results] == [1, 1]
        private = bind
        private.receiver = "X"
        order.bind.CopyFrom(private)
        order.addresses[:] = ["X:1414"]
        assert (await two.rp.link.open(order)).bound.receiver == "X"


async def test_a_lost_record_of_a_bound_stream_is_refused(two: Rig) -> None:
    await connect(two)
    await two.r.structures["private"].commit(Unit(ops=[Delete(keys.receiver_fence(STREAM))]))
    assert (await refused(two, request(2, bound_before=True))).reason is Reason.NO_RECORD


async def test_p13_an_old_instance_stages_nothing_after_a_newer_bind_elsewhere(two: Rig) -> None:
    script = await connect(two)
    private = two.r.structures["private"]
    cell = await private.cell(keys.receiver_fence(STREAM))
    fence = pb.ReceiverFence.FromString(cell.value or b"")
    fence.epoch += 1
    await private.commit(Unit(changes=[Change(cell, lambda _: fence.SerializeToString())]))
    for index in range(4):
        await script.session.send(channel_pb2.FRAME_PART, part(index, 8, bytes(256 << 10)))
    assert await script.refusal() is Reason.EPOCH_TOO_LOW
    assert await stages(two) == 0


async def test_two_binds_at_once_leave_the_newer_one(two: Rig) -> None:
    results = await asyncio.gather(connect(two, request(1, 1)), connect(two, request(1, 2)), return_exceptions=True)
    last = results[1]
    assert isinstance(last, Script)
    await last.send(last.batch(last.segment(["a"])))
    await last.confirm()
    assert len(two.receivers.active) == 1 and two.receivers.active[0].order == (1, 2)
