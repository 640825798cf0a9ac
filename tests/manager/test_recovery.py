"""Recovery: members and initiators killed, the whole group restarted; nothing lost, nothing twice, nothing left over."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager import recovery
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.steps import swap_entry
from qsg.rules.unit import Unit
from support.channel_group import APART, CHANNEL, XMITQ, Station, owner, sending, texts, town
from support.simulated import simulated


@APART
@simulated
async def test_another_member_goes_on_after_a_kill(apart: bool) -> None:
    async with town("X", "Y", "Z", apart=apart) as t:
        first, _ = await sending(t, 5)
        loop = asyncio.get_running_loop()
        killed_at = loop.time()
        await t.kill(first)
        survivor = next(s for s in t.stations.values() if s.alive and s.name != "R")
        await t.put(texts(5, 10), survivor)
        await t.until_arrived(texts(0, 10))
        gap = loop.time() - killed_at

        entry = await t.until(pb.RUNNING)
        assert entry.owner != first and entry.takeovers == 1
        assert (getattr(entry.takeover, "from"), entry.takeover.to) == (first, entry.owner)
        assert "refused" in entry.takeover.cause
        assert 0 <= entry.takeover.claim_ms <= entry.takeover.resume_ms < 100
        assert gap < 0.1, "detection to new bind takes well below 100 ms"
        assert survivor.members is not None and first not in survivor.members.registered


@APART
@simulated
async def test_initiator_loss_moves_the_channel_and_keeps_the_member(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        first, _ = await sending(t, 3)
        await t.stations[first].pair.stop_initiator()
        await t.put(texts(3, 6), t.stations[first])
        await t.until_arrived(texts(0, 6))

        entry = await t.until(pb.RUNNING)
        assert entry.owner != first and entry.takeover.cause == "channel initiator failed"
        members = t.stations[entry.owner].members
        assert members is not None and first in members.registered


@APART
@simulated
async def test_without_any_initiator_the_channel_waits_for_one(apart: bool) -> None:
    async with town("X", apart=apart) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        await t.stations["X"].pair.stop_initiator()
        await t.until(pb.RECOVERING, owner="X")
        await t.put(texts(2, 4), t.stations["X"])
        await t.stations["X"].pair.start_initiator()
        await t.until_arrived(texts(0, 4))
        assert (await t.until(pb.RUNNING)).owner == "X"


@APART
@simulated
async def test_the_whole_group_restarts_with_messages_waiting(apart: bool) -> None:
    """H6b, and recovery at start: own left-overs first."""
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        await owner(t)
        await t.stations["R"].pair.stop_initiator()
        await t.put(texts(2, 4), t.stations["X"])
        for name in ("X", "Y"):
            await t.kill(name)
        assert await t.arrived() == texts(0, 2)
        await t.stations["R"].pair.start_initiator()
        for name in ("X", "Y"):
            await t.station(name)
        await t.until_arrived(texts(0, 4))


@simulated
async def test_nothing_is_left_after_many_kills() -> None:
    """Invariant 7: counts return to the baseline."""
    async with town("X", "Y", apart=True) as t:
        sent = 0
        for _ in range(8):
            alive = [s for s in t.stations.values() if s.alive and s.name != "R"]
            await t.put(texts(sent, sent + 2), alive[0])
            sent += 2
            await t.until_arrived(texts(0, sent))
            victim = await owner(t)
            await t.kill(victim)
            await t.until(pb.RUNNING, timeout_s=5)
            await t.station(victim)
        await t.until_arrived(texts(0, sent))
        await asyncio.sleep(3.0)
        assert len(t.prefix("admin", keys.STATUS_OUT)) == 1
        assert len(t.prefix("private R", keys.STATUS_IN)) == 1
        assert t.prefix("app1", keys.headers(XMITQ)) == [] and t.prefix("app1", keys.consumptions(XMITQ)) == []
        assert len(t.prefix("app1", keys.FENCES)) == len(t.prefix("app1", keys.PROGRESS)) == 1


async def forget(station: Station, name: str) -> None:
    """An entry of a channel like the one there is, that says it runs on this member, where nobody looks after it."""
    admin, definition = station.structures["admin"], station.catalog.channel(CHANNEL)
    assert definition is not None
    await station.catalog.define_channel(definition.model_copy(update={"name": name}))
    entry = pb.ChannelStatus(channel=name, transmission_queue=XMITQ, state=pb.RUNNING, owner=station.name)
    entry.owner_incarnation, entry.owner_initiator = admin.incarnation, station.pair.link.initiator
    await admin.commit(Unit("forgotten", changes=[swap_entry(await admin.cell(keys.status_out(name)), entry)]))


@simulated
async def test_an_entry_that_takes_long_holds_up_neither_the_others_nor_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, go_on = asyncio.Event(), asyncio.Event()

    async def slow(*_: object) -> bool:
        waiting.set()
        return await go_on.wait()

    monkeypatch.setattr(recovery, "unlock_leftover", slow)
    async with town("X", "Y") as t:
        first, (survivor,) = await sending(t)
        await forget(survivor, "SLOW")
        await asyncio.wait_for(waiting.wait(), 5.0)
        await t.kill(first)
        began = asyncio.get_running_loop().time()
        await t.until(pb.RUNNING, owner=survivor.name)
        assert asyncio.get_running_loop().time() - began < 0.1
        await asyncio.wait_for(survivor.supervisor.recovery.swept(), 2.0)
        go_on.set()
        await t.until(pb.RECOVERING, owner=survivor.name, channel="SLOW")
