"""Interleavings at the receiving end: binds that race, batches that come twice, messages that go to several structures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qsg.manager.link import SessionFailed
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel, Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Cell, Change, Unit
from qsg.store.contract import Delete, get_prefix
from support.channel_pair import STREAM, Rig, rig
from support.channel_script import connect, request
from support.senders import died_before_its_delete
from support.simulated import simulated
from support.whole import DLQ, Universe, queue, receiver, sender, universe, xmitq


async def raise_fence_elsewhere(two: Rig, epoch: int) -> None:
    """Another member of R's group takes a bind of the stream."""
    private = two.r.structures["private"]
    cell = await private.cell(keys.receiver_fence(STREAM))
    fence = pb.ReceiverFence.FromString(cell.value or b"")
    fence.epoch, fence.member = epoch, "R2"
    await private.commit(Unit("bind elsewhere", changes=[Change(cell, lambda _: fence.SerializeToString())]))


@simulated
async def test_m1_a_batch_of_the_old_instance_is_in_the_record_that_a_bind_answers() -> None:
    """The record moves between the answer at bind and the first batch (an old receiver instance still commits). Wrong: duplicate.
    Prevented: the bind raises the fence in one transaction and answers the record behind it; an old commit fails its compare."""
    async with rig() as two:
        old = await connect(two)
        private = two.r.structures["private"]
        refresh, held = private.refresh, asyncio.Event()

        async def late(*cells: Cell) -> int:
            revision = await refresh(*cells)
            if len(cells) == 2 and not held.is_set():
                held.set()
                await old.send(old.batch(old.segment(["a"])))
                await old.confirm()
            return revision

        private.refresh = late  # type: ignore[method-assign]
        new = await connect(two, request(2))
        assert held.is_set()
        assert (new.session.bound.record.sequence, new.session.bound.record.luwid) == (1, "L1")
        new.counter, new.sequence = 1, 1
        await new.send(new.batch(new.segment(["b"])))
        await new.confirm()
        assert await two.arrived() == ["a", "b"]


@simulated
async def test_m1_a_record_is_there_as_soon_as_its_batch_is() -> None:
    """The messages of a batch are stored and their record is not yet; the sender binds again, elsewhere. Wrong: sent again, duplicate.
    Prevented: messages and record are one transaction."""
    async with rig() as two:
        await two.put(["1", "2"])
        first = await two.sender()
        first._confirmed = lambda confirm: None  # type: ignore[method-assign]
        running = two.start(first)
        await two.until(2)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

        two.start(await two.sender(two.y))
        await two.settled()
        assert await two.arrived() == ["1", "2"]


@simulated
async def test_n2_nothing_is_confirmed_and_nothing_deleted_before_it_is_stored() -> None:
    """R's store is slow; batches are on their way; R dies. Wrong: confirmed when received, or deleted when sent, hence lost (the mark that
    `resolve commit` would take runs ahead of what was stored). Prevented: a confirmation follows the commit, a delete the confirmation."""
    async with rig(silence_ms=60_000) as two:
        store = two.r.stores["private"]
        first = await two.sender()
        running = two.start(first)
        await first.bound.wait()
        store.cut()
        await two.put(["1", "2"])
        await asyncio.sleep(1.0)

        assert first.counters.messages == 0
        assert await _stored_at(two) == 0 and (await two.left())["h"] == 1
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        store.heal()
        await asyncio.sleep(1.0)
        two.start(await two.sender(two.y))
        assert await two.until(2) == ["1", "2"]


async def _stored_at(two: Rig) -> int:
    return len(two.members.server("private R").get(get_prefix(keys.headers("TARGET"))).kvs)


@simulated
async def test_c3_a_batch_that_comes_again_is_refused_by_its_positions() -> None:
    """A sender resumes at the wrong place and sends what the partner has, under numbers that fit. Wrong: duplicate. Prevented: positions
    decide; at or below the record nothing is accepted."""
    async with rig() as two:
        script = await connect(two)
        batch = script.batch(script.segment(["a"]))
        await script.send(batch)
        await script.confirm()
        again = await connect(two, request(1, 2, sequence=1))
        repeated = channel_pb2.Batch.FromString(batch.SerializeToString())
        repeated.first_sequence = 2
        await again.send(repeated)

        assert await again.refusal() is Reason.BATCH_OUT_OF_ORDER
        assert await two.arrived() == ["a"]


@simulated
async def test_c3_a_takeover_in_the_middle_of_a_segment_goes_on_exactly_there() -> None:
    """A confirmation is lost in the middle of a segment, and another member takes over. Wrong: off by one, either way. Prevented: the
    partner's record names the segment and the index; its position never changes."""
    async with rig(batch_messages=7, batch_window=1, silence_ms=600) as two:
        texts = [f"m{i}" for i in range(50)]
        await two.put(texts)
        first = await two.sender()
        first._confirmed = lambda confirm: None  # type: ignore[method-assign]
        outcome = await two.start(first)
        assert (outcome.kind, outcome.reason, first.counters.in_doubt) == ("failed", Reason.PARTNER_SILENT, True)
        assert len(await two.arrived()) == 7

        two.start(await two.sender(two.y))
        assert await two.until(50) == texts
        await two.settled()


@simulated
async def test_n10_the_home_of_a_receiver_cannot_be_altered() -> None:
    """Y has the old definition (home A), Z the new (home B); R binds at Y, then at Z. Wrong: two records of one stream, duplicate.
    Prevented: a receiver's home is for ever."""
    async with rig() as two:
        await two.x.catalog.define_channel(Channel(name="R.TO.X", type="receiver", structure="app1"))
        with pytest.raises(Refusal) as refusal:
            await two.x.catalog.define_channel(Channel(name="R.TO.X", type="receiver", structure="admin"))
        assert refusal.value.reason is Reason.DEFINITION_ERROR and "for ever" in refusal.value.detail


@simulated
async def test_p12_the_record_outlives_the_receivers_definition_and_name() -> None:
    """The sender is renamed, or the receiver's definition deleted: no record is found. Wrong: sent again. Prevented: the record is keyed by
    the stream alone."""
    async with rig() as two:
        await two.put(["1"])
        await died_before_its_delete(two, 1)
        definition = two.r.catalog.channel("X.TO.R")
        assert definition is not None
        await two.r.catalog.define_channel(definition.model_copy(update={"name": "RENAMED"}))
        await two.r.catalog.delete_channel("X.TO.R")
        two.channel = two.channel.model_copy(update={"name": "RENAMED"})
        await two.put(["2"])

        two.start(await two.sender())
        assert await two.until(2) == ["1", "2"]
        await two.settled()


@simulated
async def test_p13_an_old_instance_stages_nothing_behind_the_bind_of_a_new_one() -> None:
    """An old receiver instance stages chunks after the bind of the new one. Wrong: they stay for ever. Prevented: staging compares the
    fence of its bind too, and the new bind's session removes what is left."""
    async with rig() as two:
        script = await connect(two)
        await raise_fence_elsewhere(two, 2)
        destination = pb.Destination(queue="TARGET", queue_manager="R")
        for index in range(4):
            part = channel_pb2.Part(stage=b"S" * 12, index=index, chunks=8, data=bytes(256 << 10), destination=destination)
            await script.session.send(channel_pb2.FRAME_PART, part)

        assert await script.refusal() is Reason.EPOCH_TOO_LOW
        _, (stages,) = await two.r.structures["private"].read(get_prefix(keys.stages("TARGET")))
        assert stages.count == 0


@simulated
async def test_p14_a_delayed_bind_of_an_older_instance_displaces_nobody() -> None:
    """A delayed bind of the same epoch displaces the newer one. Wrong: stuck, or flapping. Prevented: (epoch, instance), numbered by the
    sender, must exceed what was seen."""
    async with rig() as two:
        new = await connect(two, request(3, 2))
        for late in (request(3, 1), request(3, 2), request(2, 9)):
            with pytest.raises(SessionFailed) as failed:
                await connect(two, late)
            assert (failed.value.reason, failed.value.epoch_seen, failed.value.instance_seen) == (Reason.EPOCH_TOO_LOW, 3, 2)

        await new.send(new.batch(new.segment(["a"])))
        await new.confirm()


@simulated
async def test_m6_a_stream_that_was_bound_before_and_has_no_record_is_refused() -> None:
    """The partner has lost its record. Wrong: it binds as if for the first time, and takes everything again. Prevented: the sender says
    *bound before*."""
    async with rig() as two:
        await connect(two)
        await two.r.structures["private"].commit(Unit("lost", ops=[Delete(keys.receiver_fence(STREAM))]))
        with pytest.raises(SessionFailed) as failed:
            await connect(two, request(2, bound_before=True))
        assert failed.value.reason is Reason.NO_RECORD


@asynccontextmanager
async def over_two_structures() -> AsyncIterator[Universe]:
    """R sends to group G (X, Y), whose receiver's home is admin; queue A lies there, B in app1."""
    async with universe("admin", "app1") as u:
        shared: list[Queue | Channel] = [queue("A", structure="admin"), queue("B", structure="app1"), queue(DLQ, structure="admin")]
        for name in ("X", "Y"):
            await u.host(name, "G", *shared, receiver("R.TO.G"), dead_letter_queue=DLQ)
        road = sender("R.TO.G", "G", "X:1415", "Y:1415", partner="G")
        await u.host("R", "", xmitq("G"), queue(DLQ), road, dead_letter_queue=DLQ)
        yield u


@simulated
async def test_c4_a_batch_for_two_structures_is_one_transaction_whatever_changes_before_it_is_sent_again() -> None:
    """A batch goes to queues in two structures; A commits, B does not; on resend name resolution or queue-full differs from the first time.
    Wrong: duplicate or loss. Prevented: what is for elsewhere is put, in the same transaction, on an internal transmission queue of the
    home structure."""
    async with over_two_structures() as u:
        r, x = u["R"], u["X"]
        await r.put("A", "a0", queue_manager="G")
        await x.until("A", ["a0"])
        for i in range(10):
            await r.put("A", f"a{i + 1}", queue_manager="G")
            await r.put("B", f"b{i}", queue_manager="G")
            if i == 3:
                u.network.reset("R", "X")
                u.network.reset("R", "Y")
            if i == 5:
                await x.manager.queues.define(queue("B", structure="app1", max_depth=6))
            if i == 7:
                await u["Y" if any(e.owner == "Y" for e in u.entries()) else "X"].kill()
        alive = next(h for h in (u["X"], u["Y"]) if h.alive)

        await alive.until("A", [f"a{i}" for i in range(11)])
        try:
            async with asyncio.timeout(60):
                while len(await alive.texts("B")) + len(await alive.texts(DLQ)) < 10:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            raise AssertionError(f"{await alive.texts('B')} {await alive.troubles()}") from None
        await asyncio.sleep(2.0)
        got = await alive.texts("B") + await alive.texts(DLQ)
        assert sorted(got) == [f"b{i}" for i in range(10)]
