"""A member, or everybody, loses one structure and keeps the rest (scenario 1b); a member starts without one."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from support.simulated import simulated
from support.structures import MOVED, group, moving, sending
from support.whole import DLQ, numbered, universe


@simulated
async def test_a_member_that_loses_an_application_structure_is_safe_and_comes_back() -> None:
    async with universe("admin", "app1") as u:
        first, other = await sending(u)
        u[first].stores["app1"].cut()
        await u[other].put("IN", *numbered(5, 10), queue_manager="R")
        await u["R"].until("IN", numbered(0, 10), 5.0)
        assert (await u.state("G.TO.R", pb.RUNNING)).owner == other
        # What lies elsewhere goes on at the member meanwhile.
        await u[first].put("NEAR", "still here")
        assert not u[first].manager.fenced.is_set()
        await asyncio.sleep(10)
        incarnations = u[first].incarnations
        u[first].stores["app1"].heal()
        await asyncio.sleep(3)
        assert u[first].incarnations == incarnations + 1, "its key in app1 was deleted at its own request: it joins anew"
        assert {"X", "Y"} == {keys.unname(kv.key[len(keys.MEMBERS) :]) for kv in u.found("G app1", keys.MEMBERS)}
        await u[first].put("IN", *numbered(10, 15), queue_manager="R")
        await u["R"].until("IN", numbered(0, 15))


@pytest.mark.parametrize("structure", ["admin", "app1"])
@simulated
async def test_streams_both_ways_while_one_member_after_the_other_loses_a_structure(structure: str) -> None:
    """Exactly once and in order, whoever of the two runs what at that moment."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", "Z")
        sent: dict[str, list[str]] = {"IN": [], "NEAR": [], "FAR": []}
        owners: set[str] = set()
        for round_ in range(9):
            cut = "XYZ"[round_ % 3]
            at = "XYZ"[(round_ + 1) % 3]
            async with asyncio.timeout(20):
                while not u[at].serving:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            for name, more in sent.items():
                texts = numbered(len(more), len(more) + 20)
                more += texts
                where, manager = (u[at], "R") if name == "IN" else (u["R"], "G")
                await where.put(name, *texts, queue_manager=manager)
                if name == "NEAR":
                    await asyncio.sleep(0.002 * round_)
                    u[cut].stores[structure].cut()
            await asyncio.sleep((1.0, 3.0, 8.0)[round_ // 3])
            owners |= {entry.owner for entry in u.entries() if entry.channel == "G.TO.R"}
            u[cut].stores[structure].heal()
            await asyncio.sleep(1.0)
        await asyncio.sleep(8)
        await u["R"].until("IN", sent["IN"], 20.0)
        await u["Z"].until("NEAR", sent["NEAR"], 20.0)
        await u["Z"].until("FAR", sent["FAR"], 20.0)
        assert len(owners) > 1 and await u["X"].texts(DLQ) == []
        assert all(u[member].serving for member in "XYZ")


@simulated
async def test_what_a_cut_off_member_was_putting_is_settled() -> None:
    """A put into the lost structure is not answered wrongly: it arrives if it was told to be committed, and once at most."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        await u["X"].put("FAR", "before")
        u["X"].stores["app1"].cut()
        putting = asyncio.create_task(u["X"].manager.queues.put([PutRequest("FAR", pb.Message(payload=b"meanwhile"))]))
        await asyncio.sleep(10)
        assert not putting.done() or putting.exception() is not None
        u["X"].stores["app1"].heal()
        await asyncio.wait([putting], timeout=10)
        await asyncio.sleep(3)
        texts = await u["Y"].texts("FAR")
        assert putting.done()
        assert texts == (["before"] if putting.exception() is not None else ["before", "meanwhile"]), putting


@simulated
async def test_a_target_structure_out_of_the_movers_reach_is_moved_by_another() -> None:
    async with universe("admin", "app1") as u:
        first, other = await moving(u)
        u[first].stores["app1"].cut()
        await u["R"].put("FAR", "two", queue_manager="G")
        await u[other].until("FAR", ["one", "two"], 8.0)
        assert (await u.state(MOVED, pb.RUNNING)).owner == other


@simulated
async def test_a_member_starts_without_an_application_structure_that_is_out_of_its_reach() -> None:
    """What lies elsewhere works at once; its channels of the lost structure run at the others; it joins when the structure answers."""
    async with universe("admin", "app1") as u:
        owner, other = await sending(u)
        await u[owner].kill()
        u.out_of_reach.add((owner, "app1"))
        host = await u.again(owner)
        assert host.manager.absent == ["app1"]
        await host.put("NEAR", "works")
        with pytest.raises(Refusal) as refused:
            await host.put("FAR", "refused")
        assert refused.value.reason is Reason.STRUCTURE_NOT_AVAILABLE
        await u["R"].put("FAR", "by way of the home", queue_manager="G")
        await u[other].until("FAR", ["by way of the home"])
        await u[other].put("IN", *numbered(5, 10), queue_manager="R")
        await u["R"].until("IN", numbered(0, 10))
        assert (await u.state("G.TO.R", pb.RUNNING)).owner == other
        assert (await u[other].manager.queues.depth("NEAR")).messages == 1
        host.stores["app1"].heal()
        await asyncio.sleep(12)
        assert host.incarnations == 3 and host.manager.absent == []
        assert await host.texts("FAR") == ["by way of the home"]


@simulated
async def test_a_left_over_channel_of_a_structure_that_its_owner_cannot_join_is_given_to_others() -> None:
    """The whole group was down; the first to come back finds its own entry, and cannot reach the queue."""
    async with universe("admin", "app1") as u:
        owner, other = await sending(u)
        await u["R"].kill()
        await u[other].put("IN", *numbered(5, 10), queue_manager="R")
        await u[other].kill()
        await u[owner].kill()
        u.out_of_reach.add((owner, "app1"))
        await u.again("R")
        await u.again(owner)
        await asyncio.sleep(8)
        await u.again(other)
        await u["R"].until("IN", numbered(0, 10))
        assert (await u.state("G.TO.R", pb.RUNNING)).owner == other


@pytest.mark.parametrize("seconds", [1.0, 4.0, 15.0])
@simulated
async def test_an_application_structure_out_of_everybodys_reach(seconds: float) -> None:
    """Nobody can be asked to take over. What lies elsewhere moves meanwhile; when it answers again everything goes on, once."""
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y")
        for source, name, manager in (("R", "NEAR", "G"), ("R", "FAR", "G"), ("X", "IN", "R")):
            await u[source].put(name, *numbered(0, 5), queue_manager=manager)
        await u["R"].until("IN", numbered(0, 5))
        await u["X"].until("FAR", numbered(0, 5))
        for member in "XY":
            u[member].stores["app1"].cut()
        await u["R"].put("FAR", *numbered(5, 10), queue_manager="G")
        await u["R"].put("NEAR", *numbered(5, 10), queue_manager="G")
        await u["Y"].until("NEAR", numbered(0, 10), 3.0)
        await asyncio.sleep(seconds)
        for member in "XY":
            u[member].stores["app1"].heal()
        await asyncio.sleep(5)
        await u["X"].until("FAR", numbered(0, 10))
        await u["Y"].put("IN", *numbered(5, 10), queue_manager="R")
        await u["R"].until("IN", numbered(0, 10))
        assert all(u[member].serving for member in "XY")
