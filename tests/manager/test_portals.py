"""Portals: what a partner is told and which records serve it, by the listener that it comes to; and the three ways to find a session."""

from __future__ import annotations

import asyncio

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason
from support.simulated import simulated
from support.whole import DLQ, Universe, numbered, queue, receiver, sender, universe, xmitq

CHANNEL = "R.TO.G"
GROUP_PORTS = ("X:1415", "Y:1415")


async def partner(made: Universe, *addresses: str, expects: str = "G", **attributes: object) -> None:
    """R, which sends to group G over `addresses`, and expects the name `expects` there."""
    await made.host("R", "", queue(DLQ), xmitq("G"), sender(CHANNEL, "G", *addresses, partner=expects, **attributes))
    await made.host("X", "G", queue("SHARED", structure="admin"), queue(DLQ, structure="admin"), receiver(CHANNEL), queue("OWN"))
    await made.host("Y", "G", queue("OWN"))


def records(made: Universe, server: str) -> tuple[list[pb.ReceiverFence], list[pb.Progress]]:
    return (
        [pb.ReceiverFence.FromString(kv.value) for kv in made.found(server, keys.RECEIVER_FENCES)],
        [pb.Progress.FromString(kv.value) for kv in made.found(server, keys.RECEIVER_PROGRESS)],
    )


def stream_of(made: Universe) -> bytes:
    return pb.SenderFence.FromString(made.key("private R", keys.sender_fence("G")).value).stream  # type: ignore[union-attr]


async def inbound(made: Universe, owner: str = "") -> pb.ChannelStatus:
    """The group's entry of the inbound channel, once there is one (of `owner`)."""
    async with asyncio.timeout(10):
        while True:
            kv = made.key("G admin", keys.status_in(CHANNEL, "R"))
            entry = pb.ChannelStatus() if kv is None else pb.ChannelStatus.FromString(kv.value)
            if entry.owner and (not owner or entry.owner == owner):
                return entry
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("port", GROUP_PORTS)
@simulated
async def test_through_the_group_listener(port: str) -> None:
    """GROUP NAME, shared record, shared queues; the entry names the member that serves it."""
    async with universe() as u:
        await partner(u, port)
        await u["R"].put("SHARED", *numbered(0, 7), queue_manager="G")
        await u["Y"].until("SHARED", numbered(0, 7))
        assert (await u.state(CHANNEL, pb.RUNNING, "R")).partner == "G"
        (fence,), (progress,) = records(u, "G admin")
        assert u.key("G admin", keys.receiver_fence(stream_of(u))) and u.key("G admin", keys.receiver_progress(stream_of(u)))
        assert (fence.channel, fence.partner, fence.member, fence.epoch) == (CHANNEL, "R", port[0], 1)
        assert (progress.messages, progress.sequence) == (7, 7)
        entry = await inbound(u)
        assert (entry.owner, entry.type, entry.partner, entry.transmission_queue) == (port[0], pb.RECEIVER, "R", "")
        assert entry.owner_incarnation == u[port[0]].manager.admin.incarnation
        for member in "XY":
            assert records(u, f"private {member}") == ([], [])


@simulated
async def test_through_a_local_listener() -> None:
    """LOCAL NAME, private record, private queues; the shared status table shows nothing of it."""
    async with universe() as u:
        await partner(u, "Y:1414", expects="Y")
        await u["R"].put("OWN", *numbered(0, 4), queue_manager="G")
        await u["Y"].until("OWN", numbered(0, 4))
        assert (await u.state(CHANNEL, pb.RUNNING, "R")).partner == "Y"
        (fence,), (progress,) = records(u, "private Y")
        assert (fence.member, fence.partner, progress.messages) == ("Y", "R", 4)
        assert records(u, "G admin") == ([], []) and u.found("G admin", keys.STATUS_IN) == []
        await asyncio.sleep(1)
        (entry,) = u.found("private Y", keys.STATUS_IN)
        assert pb.ChannelStatus.FromString(entry.value).owner == "Y"
        assert await u["X"].texts("OWN") == []


@pytest.mark.parametrize(("address", "expects"), [("X:1414", "G"), ("X:1415", "X"), ("Y:1415", "X"), ("X:1414", "Y")])
@simulated
async def test_a_partner_that_expects_another_name_does_not_bind(address: str, expects: str) -> None:
    async with universe() as u:
        await partner(u, address, expects=expects)
        await u["R"].put("SHARED", "kept", queue_manager="G")
        entry = await u.state(CHANNEL, pb.RETRYING, "R")
        assert entry.reason == Reason.WRONG_PARTNER, entry
        assert records(u, "G admin") == ([], []) and records(u, f"private {address[0]}") == ([], [])
        assert len(u.found("private R", keys.headers("G"))) == 1
        assert await u["X"].texts("SHARED") == []


@simulated
async def test_a_queue_manager_outside_a_group_has_one_name() -> None:
    """R's only portal is the local one; a group sends to it under GROUP NAME, a member over a private queue under LOCAL NAME."""
    async with universe() as u:
        await u.host("R", "", queue("IN"), queue(DLQ), receiver("FROM.G", partner="G"), receiver("FROM.X", partner="X"))
        await u.host(
            "X",
            "G",
            xmitq("SHARED.ROAD", "admin"),
            xmitq("OWN.ROAD"),
            sender("FROM.G", "SHARED.ROAD", "R:1414", partner="R"),
            sender("FROM.X", "OWN.ROAD", "R:1414", partner="R", disposition="private"),
            queue("BY.GROUP", type="remote", remote_queue="IN", remote_queue_manager="R", transmission_queue="SHARED.ROAD"),
            queue("BY.SELF", type="remote", remote_queue="IN", remote_queue_manager="R", transmission_queue="OWN.ROAD"),
        )
        await u["X"].put("BY.GROUP", "group")
        await u["R"].until("IN", ["group"])
        await u["X"].put("BY.SELF", "self")
        await u["R"].until("IN", ["group", "self"])
        fences, _ = records(u, "private R")
        assert {(f.channel, f.partner) for f in fences} == {("FROM.G", "G"), ("FROM.X", "X")}
        assert u.key("G admin", keys.sender_fence("SHARED.ROAD")) and u.key("private X", keys.sender_fence("OWN.ROAD"))
        assert u.key("private X", keys.status_out("FROM.X")) and not u.key("G admin", keys.status_out("FROM.X"))


# The three ways to a session: a name with several addresses, one shared address, re-establishment


async def flow_with_deaths(made: Universe, members: str, ends: int = 5) -> None:
    """R sends while whoever serves it dies, again and again; everything arrives once, in order."""
    sent: list[str] = []
    served: set[str] = set()
    for round_ in range(ends):
        more = numbered(len(sent), len(sent) + 25)
        sent += more
        await made["R"].put("SHARED", *more, queue_manager="G")
        fence = await bound(made)
        served.add(fence.member)
        await asyncio.sleep(0.002 * round_)
        await made[fence.member].kill()
        survivor = next(m for m in members if made[m].alive)
        await made[survivor].until("SHARED", sent)
        assert (await inbound(made, survivor)).epoch >= fence.epoch
        await made.again(fence.member)
    found = await made["X"].until("SHARED", sent)
    assert len({m.message_id for m in found}) == len(sent)
    assert await made["X"].texts(DLQ) == []
    assert len(served) > 1
    fences, _ = records(made, "G admin")
    assert len(fences) == 1, "one record for the stream, whoever served it"
    assert len(made.found("G admin", keys.STATUS_IN)) == 1
    entry = await inbound(made)
    assert (entry.takeovers, entry.takeover.to, entry.takeover.cause) == (fences[0].takeovers, entry.owner, "adopted")
    assert entry.takeovers >= len(served) - 1 and getattr(entry.takeover, "from") in served


async def bound(made: Universe) -> pb.ReceiverFence:
    """The shared record, once it names a living member."""
    async with asyncio.timeout(10):
        while not (found := records(made, "G admin")[0]) or not made[found[0].member].alive:  # noqa: ASYNC110  (a store has no event)
            await asyncio.sleep(0.001)
    return found[0]


@simulated
async def test_a_list_of_connection_names() -> None:
    async with universe() as u:
        await partner(u, *GROUP_PORTS)
        await flow_with_deaths(u, "XY")


@simulated
async def test_one_name_with_the_addresses_of_all_members() -> None:
    async with universe(names={"g.example:1415": GROUP_PORTS}) as u:
        await partner(u, "g.example:1415")
        await flow_with_deaths(u, "XY")


@simulated
async def test_one_shared_address_that_leads_to_whoever_is_there() -> None:
    """Session passing: one host name, behind which the network chooses (a virtual address, a Service)."""
    async with universe() as u:
        u.network.names["portal"] = ["X", "Y"]
        await partner(u, "portal:1415")
        await flow_with_deaths(u, "XY")


@simulated
async def test_re_establishment_by_the_name_list_when_a_member_does_not_answer() -> None:
    """The path to X is cut, X lives: nobody tells the sender, silence does. The record moves on to Y, X's session is void."""
    async with universe() as u:
        await partner(u, *GROUP_PORTS)
        await u["R"].put("SHARED", *numbered(0, 10), queue_manager="G")
        await u["X"].until("SHARED", numbered(0, 10))
        assert (await inbound(u)).owner == "X"
        u.network.cut("R", "X")
        await u["R"].put("SHARED", *numbered(10, 20), queue_manager="G")
        await u["Y"].until("SHARED", numbered(0, 20), 10.0)
        assert (await inbound(u, "Y")).owner == "Y"
        u.network.heal("R", "X")
        await u["R"].put("SHARED", *numbered(20, 30), queue_manager="G")
        await u["Y"].until("SHARED", numbered(0, 30))
        await asyncio.sleep(3)
        assert (await inbound(u)).owner == "Y" and len(u.found("G admin", keys.STATUS_IN)) == 1
        (fence,), (progress,) = records(u, "G admin")
        assert (fence.member, progress.messages) == ("Y", 30)


@simulated
async def test_a_planned_stop_of_the_serving_member() -> None:
    async with universe() as u:
        await partner(u, *GROUP_PORTS)
        await u["R"].put("SHARED", *numbered(0, 10), queue_manager="G")
        await u["X"].until("SHARED", numbered(0, 10))
        assert (await inbound(u)).owner == "X"
        stopping = asyncio.create_task(u["X"].stop())
        await u["R"].put("SHARED", *numbered(10, 20), queue_manager="G")
        await u["Y"].until("SHARED", numbered(0, 20), 2.0)
        await stopping
        assert (await inbound(u, "Y")).owner == "Y"


@simulated
async def test_a_dead_initiator_of_the_serving_member() -> None:
    """Its queue manager lives and removes the entry; the sender comes back to whoever answers first."""
    async with universe() as u:
        await partner(u, *GROUP_PORTS)
        await u["R"].put("SHARED", *numbered(0, 10), queue_manager="G")
        await u["X"].until("SHARED", numbered(0, 10))
        u.network.kill("X")
        await u["R"].put("SHARED", *numbered(10, 20), queue_manager="G")
        await u["Y"].until("SHARED", numbered(0, 20), 5.0)
        await asyncio.sleep(2)
        assert len(u.found("G admin", keys.STATUS_IN)) == 1


@simulated
async def test_the_last_inbound_session_leaves_no_entry() -> None:
    async with universe() as u:
        await partner(u, *GROUP_PORTS, disconnect_interval_s=1.0)
        await u["R"].put("SHARED", "one", queue_manager="G")
        await u["X"].until("SHARED", ["one"])
        await u.state(CHANNEL, pb.INACTIVE, "R")
        await asyncio.sleep(2)
        assert u.found("G admin", keys.STATUS_IN) == []
        assert len(u.found("G admin", keys.RECEIVER_FENCES)) == 1, "the record outlives the session"
        await u["R"].put("SHARED", "two", queue_manager="G")
        await u["X"].until("SHARED", ["one", "two"])


@simulated
async def test_both_portals_of_one_member_at_once() -> None:
    """Two channels of R to the same member: one record in the group, one of its own."""
    async with universe() as u:
        await partner(u, "X:1415")
        await u["R"].manager.queues.define(xmitq("X"))
        await u["R"].manager.catalog.define_channel(sender("R.TO.X", "X", "X:1414", partner="X"))
        await u["X"].manager.catalog.define_channel(receiver("R.TO.X"))
        await u["R"].put("SHARED", "to the group", queue_manager="G")
        await u["R"].put("OWN", "to X", queue_manager="X")
        await u["X"].until("SHARED", ["to the group"])
        await u["X"].until("OWN", ["to X"])
        assert len(records(u, "G admin")[0]) == 1 and len(records(u, "private X")[0]) == 1
