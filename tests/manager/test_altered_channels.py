"""A sender's definition altered to another transmission queue: not while the one it has is not over."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules.reasons import Reason, Refusal
from support.simulated import simulated
from support.whole import Universe, numbered, queue, receiver, sender, universe, xmitq

CHANNEL = sender("G.TO.R", "R", "R:1414", partner="R")
ELSEWHERE = CHANNEL.model_copy(update={"transmission_queue": "R2"}).model_dump(mode="json")
HOW = pytest.mark.parametrize("how", ["define", "apply"])


async def made(u: Universe) -> None:
    await u.host("R", "", queue("IN"), receiver("G.TO.R"))
    await u.host("X", "G", xmitq("R", "admin"), xmitq("R2", "admin"), CHANNEL)
    await u["X"].put("IN", *numbered(0, 3), queue_manager="R")
    await u["R"].until("IN", numbered(0, 3))


async def command(u: Universe, command: str, /, **arguments: Any) -> Any:
    return await u["X"].manager.clients.backend.command(command, arguments)


async def alter(u: Universe, how: str) -> None:
    if how == "define":
        await command(u, "define", kind="channel", definition=ELSEWHERE)
    else:
        await command(u, "apply", definitions={"queues": [{"name": "NEW"}], "channels": [ELSEWHERE]})


async def refused(u: Universe, how: str, reason: Reason) -> None:
    with pytest.raises(Refusal) as caught:
        await alter(u, how)
    assert caught.value.reason is reason and "before its transmission queue is altered" in caught.value.detail
    catalog = u["X"].manager.catalog
    assert catalog.channel("G.TO.R") == CHANNEL and catalog.queue("NEW") is None


@HOW
@simulated
async def test_a_sender_does_not_leave_a_queue_that_it_has_in_doubt(how: str) -> None:
    async with universe("admin") as u:
        await made(u)
        await refused(u, how, Reason.CHANNEL_IN_USE)
        await u["R"].kill()
        await u["X"].put("IN", *numbered(3, 6), queue_manager="R")
        await u.state("G.TO.R", pb.RETRYING)
        await refused(u, how, Reason.CHANNEL_IN_USE)
        await command(u, "stop", channel="G.TO.R", wait_s=0)
        await refused(u, how, Reason.CHANNEL_IN_USE)  # it is STOPPING until R has said what it has
        await u.again("R")
        await u.state("G.TO.R", pb.STOPPED)
        await alter(u, how)
        await command(u, "start", channel="G.TO.R")
        assert (await u.state("G.TO.R", pb.RUNNING)).transmission_queue == "R2"


@simulated
async def test_a_stopped_sender_does_not_leave_a_queue_that_is_in_doubt_for_good() -> None:
    """R has lost what it knew, so that the stop is over and the messages are not."""
    async with universe("admin") as u:
        await made(u)
        await u["R"].kill()
        del u.servers["private R"]
        await u.host("R", "", queue("IN"), receiver("G.TO.R"))
        await u.state("G.TO.R", pb.STOPPED, timeout_s=30.0)
        await refused(u, "define", Reason.IN_DOUBT)
        await command(u, "resolve", channel="G.TO.R", action="backout", force=True)
        await alter(u, "define")


@simulated
async def test_whatever_else_is_altered_needs_no_stop() -> None:
    async with universe("admin") as u:
        await made(u)
        faster = CHANNEL.model_copy(update={"disconnect_interval_s": 2.0})
        await command(u, "define", kind="channel", definition=faster.model_dump(mode="json"))
        assert u["X"].manager.catalog.channel("G.TO.R") == faster


@simulated
async def test_the_entry_of_a_channel_without_a_transmission_queue_is_not_recovered_for_ever() -> None:
    """Its owner died; the definition was altered behind the back of whoever checks."""
    async with universe("admin") as u:
        await u.host("X", "G", xmitq("R", "admin"), CHANNEL)
        await u.host("Y", "G")
        await command(u, "start", channel="G.TO.R", wait_s=0.5)
        entry = u.entry("G.TO.R")
        assert entry is not None
        other = u["Y" if entry.owner == "X" else "X"]
        await other.manager.catalog.define_channel(CHANNEL.model_copy(update={"transmission_queue": "NOT.THERE"}))
        await u[entry.owner].kill()
        await u.state("G.TO.R", pb.INACTIVE)
        await asyncio.sleep(5)
        assert u.entry("G.TO.R") is None


@simulated
async def test_a_member_starts_again_whatever_the_group_has_made_of_what_it_was_first_given() -> None:
    """Definitions of its file are for what is absent."""
    async with universe("admin", "app1") as u:
        await u.host("X", "G", receiver("R.TO.G"), xmitq("R", "admin"), CHANNEL)
        for what in ({"kind": "channel", "name": "R.TO.G"}, {"kind": "queue", "name": "R"}):
            await command(u, "delete", **what)
        there = receiver("R.TO.G", structure="app1")
        await command(u, "define", kind="channel", definition=there.model_dump(mode="json"))
        await command(u, "define", kind="queue", definition=queue("R", structure="admin").model_dump(mode="json"))
        await u["X"].stop()
        await u.again("X")
        catalog = u["X"].manager.catalog
        assert (catalog.channel("R.TO.G"), catalog.channel("G.TO.R")) == (there, CHANNEL)
