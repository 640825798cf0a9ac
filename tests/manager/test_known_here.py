"""Channels whose definition a member does not have, or does not understand: they are started elsewhere, and stopped they stay so."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.balance import choose
from qsg.store.contract import Get, Put
from support.simulated import simulated
from support.whole import Universe, numbered, queue, receiver, sender, universe, xmitq

NAME = "G.TO.R"


async def stopped(u: Universe, **channel: Any) -> None:
    """By the command, behind a message that has arrived; another is on the queue since."""
    await u.host("R", "", queue("IN"), receiver(NAME))
    await u.host("X", "G", xmitq("R", "admin"), sender(NAME, "R", "R:1414", partner="R", **channel))
    await u.host("Y", "G")
    await u["X"].put("IN", *numbered(0, 1), queue_manager="R")
    await u["R"].until("IN", numbered(0, 1))
    await u["X"].manager.clients.backend.command("stop", {"channel": NAME})
    await u.state(NAME, pb.STOPPED)
    await u["X"].put("IN", *numbered(1, 2), queue_manager="R")


async def stays(u: Universe) -> None:
    await asyncio.sleep(8.0)
    entry = u.entry(NAME)
    assert entry is not None and entry.state == pb.STOPPED, entry
    assert await u["R"].texts("IN") == numbered(0, 1)


@simulated
async def test_one_that_the_best_member_does_not_know_is_started_where_it_is_defined() -> None:
    async with universe("admin") as u:
        await u.host("R", "", queue("IN"), receiver(NAME))
        await u.host("X", "G", xmitq("R", "admin"), sender(NAME, "R", "R:1414", partner="R", disposition="private"))
        await u.host("Y", "G")
        best = choose(u["X"].manager.supervisor.office.loads(), NAME, {"admin"})
        assert best == "Y", "or the test shows nothing"
        await u["X"].put("IN", *numbered(0, 1), queue_manager="R")
        await u["R"].until("IN", numbered(0, 1))


@simulated
async def test_one_that_only_its_own_queue_manager_has_defined() -> None:
    """Its transmission queue is shared, so that its entry is in the group's table; the others know nothing of it."""
    async with universe("admin") as u:
        await stopped(u, disposition="private")
        await stays(u)


@simulated
async def test_one_whose_definition_a_newer_version_has_written() -> None:
    async with universe("admin") as u:
        await stopped(u)
        server, key = u.server("G admin"), keys.channel_definition(NAME)
        found = server.get(Get(key)).first
        assert found is not None
        server.txn([], [Put(key, found.value[:-1] + b',"newer":1}')], [])
        await stays(u)


@simulated
async def test_one_whose_definition_another_member_has_not_seen_yet() -> None:
    """Whoever has stopped it is gone, so that anybody may remove the entry of a channel that is not defined any more."""
    async with universe("admin") as u:
        await stopped(u)
        await u["X"].kill()
        group = u["Y"].manager.catalog._group
        assert group is not None
        del group._followers[keys.CHANNEL_DEFINITIONS].items[keys.channel_definition(NAME)]
        group._read()
        await stays(u)


@pytest.mark.parametrize("killed", [False, True])
@simulated
async def test_the_entry_goes_with_the_definition(killed: bool) -> None:
    async with universe("admin") as u:
        await stopped(u)
        if killed:
            await u["X"].kill()
        await u["Y"].manager.clients.backend.command("delete", {"kind": "channel", "name": NAME})
        await u.state(NAME, pb.INACTIVE)
