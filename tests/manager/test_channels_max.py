"""`channels_max`: a member that has as many active channels as it may starts no more, and another one takes what is to start."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.manager import QueueManager
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules.ownership import Occasion
from qsg.rules.reasons import Reason, Refusal
from support.simulated import simulated
from support.whole import DLQ, Universe, queue, receiver, sender, universe, xmitq

NAMES = ("G.TO.R.1", "G.TO.R.2", "G.TO.R.3")


async def group(u: Universe, *members: str, structure: str = "admin") -> None:
    """Three channels to R, which stay once they run; a member may have one."""
    await u.host("R", "", queue(DLQ), queue("IN"), *(receiver(name) for name in NAMES))
    queues = [xmitq(f"R.{n}", structure) for n in (1, 2, 3)]
    channels = [sender(name, f"R.{n}", "R:1414", disconnect_interval_s=0) for n, name in enumerate(NAMES, start=1)]
    await u.host(members[0], "G", *queues, *channels, channels_max=1)
    for member in members[1:]:
        await u.host(member, "G")
    await asyncio.sleep(0.5)  # until every member has heard every other


async def started(manager: QueueManager, channel: str, wait_s: float = 5.0) -> str:
    answer = await manager.clients.backend.command("start", {"channel": channel, "wait_s": wait_s})
    assert isinstance(answer, dict)
    return str(answer["status"])


async def one_is_full(u: Universe) -> tuple[str, str]:
    """Of X and Y the member that runs the first channel, and the other."""
    await group(u, "X", "Y")
    await started(u["X"].manager, NAMES[0])
    first = (await u.state(NAMES[0], pb.RUNNING)).owner
    return first, "Y" if first == "X" else "X"


@simulated
async def test_the_other_member_takes_it_and_nobody_when_all_are_full() -> None:
    async with universe("admin") as u:
        first, _ = await one_is_full(u)
        x = u["X"].manager
        await started(u[first].manager, NAMES[1])
        assert {first, (await u.state(NAMES[1], pb.RUNNING)).owner} == {"X", "Y"}, "asked for at the one that is full"
        assert await started(x, NAMES[2], 3.0) == "INITIALIZING"
        assert {e.owner for e in u.entries() if e.state == pb.RUNNING} == {"X", "Y"}
        await x.clients.backend.command("stop", {"channel": NAMES[0]})
        assert (await u.state(NAMES[2], pb.RUNNING)).owner == first


@simulated
async def test_a_member_that_is_asked_although_it_is_full_refuses_and_changes_nothing() -> None:
    """Who asks goes by a load that may be older than another start."""
    async with universe("admin") as u:
        first, name = await one_is_full(u)
        other = u[name].manager
        for cause in ("", "trigger", "status table out of reach"):
            start = peer_pb2.StartChannel(channel=NAMES[1], cause=cause)
            assert other.peers is not None
            with pytest.raises(Refusal, match="has 1 active channels, of at most 1") as caught:
                await other.peers.request(first, peer_pb2.Request(start=start))
            assert caught.value.reason is Reason.CHANNEL_NOT_AVAILABLE
        assert u.entry(NAMES[1]) is None
        await started(other, NAMES[1])
        assert (await u.state(NAMES[1], pb.RUNNING)).owner == name


@simulated
async def test_a_trigger_at_a_full_member_starts_it_at_another() -> None:
    async with universe("admin") as u:
        first, _ = await one_is_full(u)
        await u[first].manager.queues.define(
            queue("TO.R", type="remote", remote_queue="IN", remote_queue_manager="R", transmission_queue="R.2")
        )
        await u[first].put("TO.R", "one")
        await u["R"].until("IN", ["one"])
        assert (await u.state(NAMES[1], pb.RUNNING)).owner != first


@simulated
async def test_a_channel_that_only_this_member_can_run_waits_for_room() -> None:
    async with universe("admin") as u:
        await group(u, "X", structure="private")
        x = u["X"].manager
        await started(x, NAMES[0])
        assert await started(x, NAMES[1], 3.0) == "INITIALIZING"
        with pytest.raises(Refusal) as caught:
            await x.supervisor.start_channel(NAMES[2], Occasion("own", 0))
        assert caught.value.reason is Reason.CHANNEL_NOT_AVAILABLE
        await x.clients.backend.command("stop", {"channel": NAMES[0]})
        async with asyncio.timeout(5):
            while (await x.inquire("status", NAMES[1]))["channels"][0]["status"] != "RUNNING":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
