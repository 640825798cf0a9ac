"""How a sender ends: with which outcome and reason, and what a clean end waits for."""

from __future__ import annotations

import asyncio

from qsg.manager.sending import Sender
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason
from qsg.rules.unit import Change, Unit
from qsg.store.contract import Delete, get_prefix
from support.channel_pair import STREAM, XMITQ, Rig, rig
from support.senders import died_before_its_delete, never, sent_and_stopped


async def test_nobody_there_is_a_failure_with_its_reason(two: Rig) -> None:
    two.network.kill("R")
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.HOST_UNREACHABLE)


async def test_a_sender_needs_a_receiver_of_its_name(two: Rig) -> None:
    two.channel = Channel.model_validate({**two.channel.model_dump(), "name": "UNKNOWN"})
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.UNKNOWN_CHANNEL_NAME)


async def test_a_partner_without_its_record_stops_the_channel_until_reset(two: Rig) -> None:
    await sent_and_stopped(two, "1")
    private = two.r.structures["private"]
    await private.commit(Unit(ops=[Delete(keys.receiver_fence(STREAM)), Delete(keys.receiver_progress(STREAM))]))
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.NO_RECORD)
    grant = await two.grant(two.x)
    progress = pb.Progress.FromString(grant.progress.value or b"")
    progress.reset_to = 1
    value = progress.SerializeToString()
    await grant.structure.commit(Unit(changes=[Change(grant.progress, lambda _: value)]))
    await two.put(["2"])
    again = Sender(grant, two.xp.link)
    two.start(again)
    assert await two.until(2) == ["1", "2"]
    await two.settled()
    assert pb.Progress.FromString(grant.progress.value or b"").reset_to == 0
    assert again.counters.sequence == 1


async def test_what_a_reset_has_accepted_as_lost_stops_no_later_bind(two: Rig) -> None:
    """The positions that the partner had confirmed before stood in our progress until a message of each priority was sent again."""
    await sent_and_stopped(two, "1")
    private = two.r.structures["private"]
    await private.commit(Unit(ops=[Delete(keys.receiver_fence(STREAM)), Delete(keys.receiver_progress(STREAM))]))
    grant = await two.grant(two.x)
    progress = pb.Progress.FromString(grant.progress.value or b"")
    progress.reset_to = 1
    value = progress.SerializeToString()
    await grant.structure.commit(Unit(changes=[Change(grant.progress, lambda _: value)]))
    again = Sender(grant, two.xp.link)
    running = two.start(again)
    await two.put(["2"], priority=5)
    assert await two.until(2) == ["1", "2"]
    again.stop(force=False)
    assert (await running).clean

    later = await two.sender()
    running = two.start(later)
    await asyncio.wait([running, asyncio.ensure_future(later.bound.wait())], return_when=asyncio.FIRST_COMPLETED)
    assert not running.done(), running.result()
    await two.put(["3"])
    assert await two.until(3) == ["1", "2", "3"]


async def test_a_partner_whose_record_is_behind_stops_the_channel(two: Rig) -> None:
    early, _ = await sent_and_stopped(two, "1", "2")
    private = two.r.structures["private"]
    cell = await private.cell(keys.receiver_progress(STREAM))
    await private.commit(Unit(changes=[Change(cell, lambda _: early.SerializeToString())]))
    outcome = await two.start(await two.sender())
    assert (outcome.kind, outcome.reason) == ("failed", Reason.SEQUENCE_ERROR)


async def test_an_idle_channel_ends_after_its_disconnect_interval() -> None:
    async with rig(disconnect_interval_s=0.2) as two:
        await two.put(["1"])
        running = two.start(await two.sender())
        outcome = await asyncio.wait_for(running, 3)
        assert (outcome.kind, outcome.clean) == ("idle", True)
        assert await two.arrived() == ["1"]
        assert not any((await two.left()).values())


async def test_force_stops_at_once_and_quiesce_waits_for_what_is_in_flight(two: Rig) -> None:
    await two.put(["1"])
    sender = await two.sender()
    running = two.start(sender)
    await sender.bound.wait()
    two.network.cut("X", "R")
    await two.put(["2"])
    sender.stop(force=False)
    await asyncio.sleep(0.05)
    sender.stop(force=True)
    outcome = await asyncio.wait_for(running, 1)
    assert (outcome.kind, outcome.reason) == ("stopped", Reason.STOPPED_BY_COMMAND)


async def test_a_forced_end_is_not_clean_while_what_the_partner_has_is_still_there(two: Rig) -> None:
    """The one before has taken the record over, and died before its deletes too: the bind finds nothing to change, and nothing is busy."""
    await two.put(["1", "2"])
    await died_before_its_delete(two, 2)
    second = await two.sender()
    second._commit_settled = never  # type: ignore[method-assign,assignment]
    running = two.start(second)
    await second.bound.wait()
    await asyncio.sleep(0.1)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    third = await two.sender()
    running = two.start(third)
    await third.bound.wait()
    third.stop(force=True)
    outcome = await running
    assert (outcome.kind, outcome.clean) == ("stopped", False) and (await two.left())["depth"] == 2


async def test_a_clean_stop_waits_until_all_that_the_partner_has_is_deleted(two: Rig) -> None:
    """What R has of a low priority lies behind much of a higher one; once *open* is cleared an application could get it again."""
    await two.put(["low"], priority=1)
    await died_before_its_delete(two, 1)
    for start in range(0, 6000, 200):
        await two.put([f"h{i}" for i in range(start, start + 200)], priority=9, size=2000)
    await two.put(["low2"], priority=1)
    again = await two.sender()
    again.stop(force=False)
    outcome = await two.start(again)
    assert (outcome.kind, outcome.clean) == ("stopped", True)
    _, (headers,) = await two.x.structures["app1"].read(get_prefix(keys.headers(XMITQ) + b"1/"))
    assert len(headers.kvs) == 1
    final = two.start(await two.sender())
    assert len(await two.until(6002, timeout_s=20)) == 6002
    await two.settled(timeout_s=10)
    messages = await two.messages("TARGET")
    assert [m.payload for m in messages if m.priority == 1] == [b"low", b"low2"]
    final.cancel()
