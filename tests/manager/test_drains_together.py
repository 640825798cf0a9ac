"""Several members end at once, or the partner's do: what is handed over comes to one that stays."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.asking import candidates
from qsg.manager.receiving import Receivers
from qsg.pb import records_pb2 as pb
from support.channel_group import CHANNEL, others, texts, town
from support.simulated import simulated


@simulated
async def test_a_member_that_is_given_a_channel_while_it_ends_hands_it_on() -> None:
    """The giver did not know yet; it is not kept until the process is gone, and then recovered as if after a death."""
    async with town("X", "Y", "Z", apart=False) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        before = await t.until(pb.RUNNING)
        giver, (ending, stays) = t.stations[before.owner], others(t, before.owner)
        draining = asyncio.create_task(ending.supervisor.drain())
        await asyncio.sleep(0)
        care = giver.supervisor.channels[CHANNEL]
        assert care.tenure is not None
        assert await care.tenure.give(ending.name)
        giver.supervisor.office.drain_until = asyncio.get_running_loop().time() + 60
        after = await t.until(pb.RUNNING, owner=stays.name, timeout_s=3)
        assert after.takeover.cause == "drain"
        await draining
        await t.put(texts(2, 4), stays)
        await t.until_arrived(texts(0, 4))
        assert stays.name in candidates(stays.supervisor.channels[CHANNEL].care)


@pytest.mark.parametrize("gone", [False, True], ids=["it answers all the time", "it is gone in between"])
@simulated
async def test_a_partner_that_sends_away_again_and_again_costs_no_lock(gone: bool) -> None:
    """Behind one name for all members of the partner, those that are ending answer too, for a second, and then nobody at their address."""
    async with town("X", "Y", apart=False) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        before, partner = await t.until(pb.RUNNING), t.stations["R"]
        receivers: Receivers = partner.pair.link.on_accept.__self__  # type: ignore[union-attr]
        await receivers.drain()
        await t.put(texts(2, 4), t.stations["X"])
        await asyncio.sleep(0.3)
        if gone:
            await partner.pair.stop_initiator()
            await asyncio.sleep(0.2)
            await partner.pair.start_initiator()
        receivers.draining = False
        await t.until_arrived(texts(0, 4))
        after = await t.until(pb.RUNNING)
        assert (after.owner, after.epoch) == (before.owner, before.epoch)
