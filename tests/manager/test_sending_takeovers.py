"""A sender after another: takeovers, cuts of the path, stores that fail; exactly once, and the older one is fenced."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from random import Random

import pytest
from structlog.testing import capture_logs

from qsg.manager.flight import Mark
from qsg.manager.sending import Sender
from qsg.pb import records_pb2 as pb
from qsg.rules.batches import Piece
from qsg.rules.reasons import Reason
from qsg.rules.unit import Committed, Unit
from qsg.store.contract import Delete, Put
from qsg.store.faults import Fault, Faults, RandomFaults
from qsg.store.memory import MemoryStore
from support.channel_pair import Rig, rig
from support.senders import cut, died_before_its_delete, put_slowly
from support.simulated import simulated


async def test_takeover_after_the_first_died_between_commit_and_delete(two: Rig) -> None:
    """R has committed and X has not deleted: Y deletes what R's record covers and goes on behind it."""
    texts = [f"m{i}" for i in range(60)]
    await two.put(texts[:30])
    await died_before_its_delete(two, 30)
    assert (await two.left())["depth"] == 30
    await two.put(texts[30:], member=two.y)
    two.start(await two.sender(two.y))
    assert await two.until(60) == texts
    await two.settled()


async def test_who_is_known_to_have_lost_its_lock_sends_nothing_and_deletes_nothing(two: Rig) -> None:
    """Simulation seed 84757: the take's first answer was lost; the second showed lock and fence as a stop had left them meanwhile, and
    these were what the sender compared. It sent, though the channel was STOPPED."""
    await two.put(["a"])
    sender = await two.sender()
    grant, app = sender.grant, two.x.structures["app1"]
    fence = pb.SenderFence.FromString(grant.fence.value or b"")
    fence.epoch, fence.open = fence.epoch + 1, False
    stopped = Unit("stopped", ops=[Delete(grant.lock.key), Put(grant.fence.key, fence.SerializeToString())])
    await two.y.structures["app1"].commit(stopped)
    await app.refresh(grant.lock, grant.fence)
    outcome = await two.start(sender)
    assert (outcome.kind, outcome.reason) == ("fenced", Reason.CHANGED_MEANWHILE)
    assert await two.arrived() == [] and (await two.left())["depth"] == 1


@simulated
async def test_every_cut_of_the_stream_is_survived_exactly_once() -> None:
    """The path is reset again and again while messages flow; instances follow each other on both members."""
    async with rig(batch_messages=5) as two:
        two.network.delay = lambda source, target: 0.0005
        texts = [f"m{i}" for i in range(400)]
        for start in range(0, 400, 40):
            await two.put(texts[start : start + 40])
        rounds = 0
        while len(await two.arrived()) < 400:
            member = two.x if rounds % 2 else two.y
            running = two.start(await two.sender(member))
            await asyncio.sleep(0.002 * (1 + rounds % 7))
            outcome = await cut(two, member, running)
            assert outcome.kind == "failed"
            rounds += 1
            assert rounds < 400
        assert await two.arrived() == texts
        final = two.start(await two.sender())
        await two.settled()
        final.cancel()
        assert rounds > 2


async def test_an_instance_under_the_same_lock_counts_nothing_that_the_one_before_has_deleted(two: Rig) -> None:
    """The first ends while its delete is on the way to the store; the second binds before it has arrived there."""
    store = two.x.stores["app1"]
    await two.put([f"m{i}" for i in range(30)])
    first = await two.sender()
    settle = first._commit_settled
    out = asyncio.Event()

    async def settle_slowly(pieces: list[Piece], marks: list[Mark]) -> Committed:
        store.faults = Slow()
        out.set()
        return await settle(pieces, marks)

    first._commit_settled = settle_slowly  # type: ignore[method-assign]
    running = two.start(first)
    await out.wait()
    await asyncio.sleep(0.02)
    await cut(two, two.x, running)
    store.faults = Faults()
    two.start(Sender(replace(first.grant, instance=2), two.xp.link))
    await two.put(["last"])
    assert len(await two.until(31)) == 31
    await two.settled()
    progress = await two.x.structures["app1"].cell(first.grant.progress.key)
    assert pb.Progress.FromString(progress.value or b"").messages == 31, "nor does it lose what the one before has counted"


class Slow(Faults):
    def request(self, kind: str) -> Fault:
        return Fault(delay_s=0.3) if kind == "txn" else Fault()


async def test_the_older_instance_is_fenced_at_both_ends(two: Rig) -> None:
    await two.put(["1"])
    old = await two.sender()
    running = two.start(old)
    await two.until(1)
    await two.settled()
    new = await two.sender(two.y)
    two.start(new)
    await new.bound.wait()
    outcome = await asyncio.wait_for(running, 3)
    assert outcome.kind in ("failed", "fenced")
    await two.put(["2"], member=two.y)
    assert await two.until(2) == ["1", "2"]
    await two.settled()
    again = await two.start(old_again := Sender(old.grant, two.xp.link))
    assert (again.kind, again.reason, again.epoch_seen, again.instance_seen) == ("failed", Reason.EPOCH_TOO_LOW, 2, 1)
    assert old_again.counters.messages == 0


async def test_a_sender_whose_lock_was_taken_ends_fenced_and_deletes_nothing(two: Rig) -> None:
    sender = await two.sender()
    running = two.start(sender)
    await sender.bound.wait()
    await two.grant(two.y)
    await two.put(["1"])
    outcome = await asyncio.wait_for(running, 3)
    assert (outcome.kind, outcome.clean) == ("fenced", False)
    assert (await two.left())["depth"] == 1
    two.start(await two.sender(two.y))
    await two.settled()
    assert await two.arrived() == ["1"]


async def test_a_delete_that_the_fence_refuses_is_told(two: Rig) -> None:
    """What was confirmed to an instance whose lock is another's by then: its unit is refused, and counted."""
    sender = await two.sender()
    settle = sender._commit_settled

    async def after_the_taking(pieces: list[Piece], marks: list[Mark]) -> Committed:
        await two.grant(two.y)
        return await settle(pieces, marks)

    sender._commit_settled = after_the_taking  # type: ignore[method-assign]
    sender._watch_fence = asyncio.Event().wait  # type: ignore[method-assign,assignment]  # so that it writes before it sees
    with capture_logs() as logs:
        running = two.start(sender)
        await two.put(["1"])
        outcome = await asyncio.wait_for(running, 3)
    assert (outcome.kind, outcome.reason) == ("fenced", Reason.CHANGED_MEANWHILE)
    assert [line["units"] for line in logs if line["event"] == "writes refused"] == [1]
    assert (await two.left())["depth"] == 1


async def test_an_idle_instance_notices_that_its_fence_was_raised(two: Rig) -> None:
    sender = await two.sender()
    running = two.start(sender)
    await sender.bound.wait()
    with capture_logs() as logs:
        await two.grant(two.y)
        outcome = await asyncio.wait_for(running, 1)
    assert (outcome.kind, outcome.reason) == ("fenced", Reason.CHANGED_MEANWHILE)
    assert not [line for line in logs if line["event"] == "writes refused"], "it had nothing to write"
    assert pb.SenderFence.FromString(sender.grant.fence.value or b"").epoch == two.epoch


async def test_p10_a_stop_is_not_starved_by_confirmations(two: Rig) -> None:
    """The fence is not what each batch rewrites: one compare-and-swap of it is enough, however busy the channel is."""
    running = two.start(await two.sender())
    putting = asyncio.create_task(put_slowly(two, [f"m{i}" for i in range(200)]))
    await two.until(50, timeout_s=20)
    await two.grant(two.y)
    outcome = await asyncio.wait_for(running, 5)
    assert outcome.kind == "fenced"
    await putting


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_exactly_once_when_stores_lose_delay_and_repeat(two: Rig, seed: int) -> None:
    """Both stores lose requests and answers and apply some late, while instances are cut off again and again."""
    chance = Random(seed)
    for member, name in ((two.x, "app1"), (two.y, "app1"), (two.r, "private")):
        store = member.structures[name].store
        assert isinstance(store, MemoryStore)
        store.faults = RandomFaults(chance, delay_s=0.002, lost=0.01, reply_lost=0.02, late=0.01, late_s=0.6)
    texts = [f"m{i}" for i in range(300)]
    putting = asyncio.create_task(put_slowly(two, texts))
    rounds = 0
    async with asyncio.timeout(50):
        while len(await two.arrived()) < 300:
            member = two.y if rounds % 2 else two.x
            running = two.start(await two.sender(member))
            await asyncio.sleep(chance.uniform(0.05, 0.4))
            if chance.random() < 0.5:
                two.network.reset(member.name, "R")
                running.cancel()
                await asyncio.wait([running])
            else:
                await cut(two, member, running)
            rounds += 1
    await putting
    assert await two.arrived() == texts
    two.start(await two.sender())
    await two.settled(timeout_s=15)
