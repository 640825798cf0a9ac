"""A receiving member that drains: sessions end soon, whatever their partners send and whatever is under way, and partners are told why."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

import pytest

from qsg.manager.receiving import Receiver
from qsg.rules.reasons import Reason
from support.channel_pair import Rig
from support.channel_script import connect, refused, request
from support.senders import held


async def test_draining_ends_sessions_behind_what_they_received(two: Rig) -> None:
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await script.confirm()
    await asyncio.wait_for(two.receivers.drain(), 2)
    assert await script.refusal() is Reason.DRAINING
    assert (await refused(two, request(2))).reason is Reason.DRAINING


async def test_a_draining_receiver_takes_nothing_more_of_a_busy_sender(two: Rig) -> None:
    """There was always a batch under way: it ended with the backlog."""
    go = held(two, "batch")
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await asyncio.sleep(0.05)
    draining = asyncio.create_task(two.receivers.drain())
    await asyncio.sleep(0.05)
    await script.send(script.batch(script.segment(["b"])))
    await asyncio.sleep(0.05)
    go.set()
    await asyncio.wait_for(draining, 2)
    assert (await script.confirm()).number == 1
    assert await script.refusal() is Reason.DRAINING
    assert await two.arrived() == ["a"] and (await two.record()).sequence == 1


async def test_what_a_draining_receiver_cannot_commit_does_not_keep_the_member(two: Rig) -> None:
    held(two, "batch")
    script = await connect(two)
    await script.send(script.batch(script.segment(["a"])))
    await asyncio.sleep(0.05)
    await asyncio.wait_for(two.receivers.drain(), 15)
    assert await script.refusal() is Reason.DRAINING
    assert await two.arrived() == []


async def test_a_bind_that_is_under_way_when_the_member_drains_is_refused(two: Rig) -> None:
    go = held(two, "bind")
    binding = asyncio.create_task(refused(two, request()))
    await asyncio.sleep(0.05)
    draining = asyncio.create_task(two.receivers.drain())
    assert (await asyncio.wait_for(binding, 0.5)).reason is Reason.DRAINING
    go.set()
    await asyncio.wait_for(draining, 2)


async def test_a_bind_that_waits_for_the_session_before_it_when_the_member_drains_is_refused(two: Rig) -> None:
    """Nobody closed it: it was bound behind the drain, moved batches, and the drain waited for its end."""
    await connect(two)
    (old,) = two.receivers.active
    assert old._inflow is not None
    old._inflow._tidy = lambda: asyncio.sleep(1)  # type: ignore[method-assign]
    binding = asyncio.create_task(refused(two, request(2)))
    await asyncio.sleep(0.1)
    assert two.receivers.active != [old]
    draining = asyncio.create_task(two.receivers.drain())
    assert (await binding).reason is Reason.DRAINING
    await asyncio.wait_for(draining, 2)


async def test_sessions_are_ended_in_the_order_in_which_they_came(two: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was the order of a set of them, which is that of their addresses: a seed with a drain was another history in each process."""
    came: list[Receiver] = []
    ended: list[Receiver] = []
    over = asyncio.Event()

    async def run(receiver: Receiver) -> None:
        came.append(receiver)
        await over.wait()

    async def finish(receiver: Receiver) -> None:
        ended.append(receiver)

    monkeypatch.setattr(Receiver, "run", run)
    monkeypatch.setattr(Receiver, "finish", finish)
    sessions = [asyncio.create_task(two.receivers.accept(Mock())) for _ in range(50)]
    await asyncio.sleep(0)
    await two.receivers.drain()
    over.set()
    await asyncio.gather(*sessions)
    assert ended == came and len(came) == 50
