"""Names, end to end: where a put at a member goes, over which channel, and what becomes of what cannot be delivered."""

from __future__ import annotations

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from support.simulated import simulated
from support.whole import DLQ, Universe, numbered, queue, receiver, sender, universe, xmitq

TO_R = sender("G.TO.R", "R", "R:1414", partner="R")


async def two(made: Universe, *objects: object, **settings: object) -> None:
    """Members X and Y of group G with a channel to R, over transmission queue R."""
    await made.host("R", "", queue("IN"), queue(DLQ), receiver("G.TO.R"))
    shared = (xmitq("R", "admin"), TO_R, queue(DLQ, structure="admin"))
    await made.host("X", "G", *shared, *objects, **settings)  # type: ignore[arg-type]
    await made.host("Y", "G")


ROADS: dict[str, tuple[list[Queue], dict[str, object], tuple[str, str]]] = {
    "remote definition": ([queue("FAR", type="remote", remote_queue="IN", remote_queue_manager="R")], {}, ("FAR", "")),
    "remote definition with its own transmission queue": (
        [queue("FAR", type="remote", remote_queue="IN", remote_queue_manager="R", transmission_queue="R")],
        {},
        ("FAR", "G"),
    ),
    "alias of a remote definition": (
        [queue("FAR", type="remote", remote_queue="IN", remote_queue_manager="R"), queue("NEAR", type="alias", target="FAR")],
        {},
        ("NEAR", ""),
    ),
    "queue-manager alias": ([queue("ELSEWHERE", type="remote", remote_queue_manager="R")], {}, ("IN", "ELSEWHERE")),
    "transmission queue named after the queue manager": ([], {}, ("IN", "R")),
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("at", ["X", "Y"])
@simulated
async def test_every_road_leads_to_the_partners_queue(at: str, road: str) -> None:
    objects, settings, (name, queue_manager) = ROADS[road]
    async with universe() as u:
        await two(u, *objects, **settings)
        await u[at].put(name, *numbered(0, 5), queue_manager=queue_manager)
        found = await u["R"].until("IN", numbered(0, 5))
        assert {m.hops for m in found} <= {0, 1}
        assert not await u["R"].texts(DLQ)
        entry = await u.state("G.TO.R", pb.RUNNING)
        assert entry.transmission_queue == "R" and entry.partner == "R"


@pytest.mark.parametrize("at", ["X", "Y"])
@simulated
async def test_the_default_transmission_queue_takes_what_nothing_else_takes(at: str) -> None:
    """R knows the farther queue manager by an alias to itself."""
    async with universe() as u:
        await two(u, default_transmission_queue="R")
        await u["R"].manager.queues.define(queue("UNHEARD.OF", type="remote", remote_queue_manager="R"))
        await u[at].put("IN", *numbered(0, 3), queue_manager="UNHEARD.OF")
        await u["R"].until("IN", numbered(0, 3))


REFUSALS = [
    ("NOWHERE", "", Reason.UNKNOWN_OBJECT_NAME),
    ("IN", "NOBODY", Reason.UNKNOWN_REMOTE_Q_MGR),
    ("ASTRAY", "", Reason.UNKNOWN_XMIT_Q),
    ("DANGLING", "", Reason.UNKNOWN_ALIAS_BASE_Q),
    ("CHAIN", "", Reason.ALIAS_BASE_Q_TYPE_ERROR),
    ("R", "", Reason.XMIT_Q_USAGE_ERROR),
    ("IN", "WRONG", Reason.XMIT_Q_USAGE_ERROR),
    ("ONE", "", Reason.ALIAS_BASE_Q_TYPE_ERROR),
    ("ITSELF", "", Reason.UNKNOWN_REMOTE_Q_MGR),
]


@pytest.mark.parametrize(("name", "queue_manager", "reason"), REFUSALS)
@simulated
async def test_an_unknown_target_is_refused_to_the_putter(name: str, queue_manager: str, reason: Reason) -> None:
    async with universe() as u:
        await two(
            u,
            queue("ASTRAY", type="remote", remote_queue="IN", remote_queue_manager="R", transmission_queue="NO.SUCH"),
            queue("DANGLING", type="alias", target="NO.SUCH"),
            queue("CHAIN", type="alias", target="DANGLING"),
            queue("ONE", type="alias", target="TWO"),
            queue("TWO", type="alias", target="ONE"),
            queue("WRONG", type="remote", remote_queue_manager="R", transmission_queue=DLQ),
            queue("ITSELF", type="remote", remote_queue="ITSELF", remote_queue_manager="G"),
        )
        with pytest.raises(Refusal) as refused:
            await u["X"].put(name, "x", queue_manager=queue_manager)
        assert refused.value.reason is reason
        assert u.found("G admin", keys.headers("R")) == []


@simulated
async def test_a_default_transmission_queue_that_is_none_is_refused() -> None:
    async with universe() as u:
        await two(u, default_transmission_queue=DLQ)
        with pytest.raises(Refusal) as refused:
            await u["Y"].put("IN", "x", queue_manager="NOBODY")
        assert refused.value.reason is Reason.DEF_XMIT_Q_USAGE_ERROR


@simulated
async def test_a_message_for_a_queue_that_the_partner_does_not_have_becomes_a_dead_letter_there() -> None:
    async with universe() as u:
        await two(u)
        await u["X"].put("NO.SUCH", "lost", queue_manager="R", correlation_id=b"c" * 24)
        await u["X"].put("IN", "good", queue_manager="R")
        await u["R"].until("IN", ["good"])
        (letter,) = await u["R"].until(DLQ, ["lost"])
        told = letter.dead_letter
        assert (told.reason, told.reason_name) == (Reason.UNKNOWN_OBJECT_NAME, "UNKNOWN_OBJECT_NAME")
        assert (told.queue, told.queue_manager, told.channel) == ("NO.SUCH", "R", "G.TO.R")
        assert told.at_ms and letter.correlation_id == b"c" * 24


# Several hops


async def chain(made: Universe, **settings: object) -> None:
    """Group G -> R -> S. R reaches S by transmission queue S; both know each other."""
    await made.host("S", "", queue("END"), queue(DLQ), receiver("R.TO.S"), sender("S.TO.R", "R", "R:1414"), xmitq("R"))
    await made.host(
        "R",
        "",
        queue("IN"),
        queue(DLQ),
        receiver("G.TO.R"),
        receiver("S.TO.R"),
        xmitq("S"),
        sender("R.TO.S", "S", "S:1414", partner="S"),
        **settings,
    )
    await made.host("X", "G", xmitq("R", "admin"), xmitq("S.ROAD", "admin"), TO_R, default_transmission_queue="R")
    await made.host("Y", "G")


@simulated
async def test_several_hops_by_the_name_of_the_farther_queue_manager() -> None:
    async with universe() as u:
        await chain(u)
        texts = numbered(0, 30)
        for i in range(0, 30, 3):
            await u["X"].put("END", *texts[i : i + 3], queue_manager="S")
        found = await u["S"].until("END", texts)
        assert {m.hops for m in found} == {1}, "put on one transmission queue by a receiver"
        assert (await u.state("R.TO.S", pb.RUNNING, "R")).partner == "S"


@simulated
async def test_several_hops_by_an_alias_at_each() -> None:
    """X knows S as SOUTH, which R knows as an alias of S; or as a remote queue of R, which is a remote queue of S."""
    async with universe() as u:
        await chain(u)
        await u["X"].manager.queues.define(queue("SOUTH", type="remote", remote_queue_manager="SOUTH", transmission_queue="R"))
        await u["R"].manager.queues.define(queue("SOUTH", type="remote", remote_queue_manager="S"))
        await u["X"].manager.queues.define(queue("FAR", type="remote", remote_queue="VIA", remote_queue_manager="R"))
        await u["R"].manager.queues.define(queue("VIA", type="remote", remote_queue="END", remote_queue_manager="S"))
        await u["X"].put("END", *numbered(0, 5), queue_manager="SOUTH")
        await u["S"].until("END", numbered(0, 5))
        await u["X"].put("FAR", *numbered(5, 10))
        await u["S"].until("END", numbered(0, 10))


@simulated
async def test_hops_stay_exactly_once_while_queue_managers_in_the_middle_and_at_the_start_die() -> None:
    async with universe() as u:
        await chain(u)
        sent: list[str] = []
        for round_ in range(6):
            more = numbered(len(sent), len(sent) + 20)
            at = "XY"[round_ % 2] if all(u[m].alive for m in "XY") else next(m for m in "XY" if u[m].alive)
            await u[at].put("END", *more, queue_manager="S")
            sent += more
            match round_:
                case 1:
                    entry = await u.state("G.TO.R", pb.RUNNING)
                    await u[entry.owner].kill()
                case 2:
                    await u["R"].kill()
                    await u.again("R")
                case 3:
                    await u.again(next(m for m in "XY" if not u[m].alive))
                case 4:
                    u.network.reset("R", "S")
        found = await u["S"].until("END", sent, 30.0)
        assert len({m.message_id for m in found}) == len(sent)
        assert await u["R"].texts(DLQ) == [] and await u["S"].texts(DLQ) == []


@simulated
async def test_a_message_that_goes_round_in_circles_ends_as_a_dead_letter_at_the_hop_limit() -> None:
    """R and S each take the other for the way to LIMBO."""
    async with universe() as u:
        await chain(u, hop_limit=5)
        await u["R"].manager.queues.define(queue("LIMBO", type="remote", remote_queue_manager="LIMBO", transmission_queue="S"))
        await u["S"].manager.queues.define(queue("LIMBO", type="remote", remote_queue_manager="LIMBO", transmission_queue="R"))
        await u["X"].put("SOUL", "one", "two", queue_manager="LIMBO")
        await u["X"].put("END", "fine", queue_manager="S")
        await u["S"].until("END", ["fine"])
        letters = await u["R"].until(DLQ, ["one", "two"])
        for letter in letters:
            assert (letter.dead_letter.reason, letter.hops) == (Reason.HOP_LIMIT, 6), "R sees even numbers, and its limit is 5"
            assert (letter.dead_letter.queue, letter.dead_letter.queue_manager) == ("SOUL", "LIMBO")
        assert await u["S"].texts(DLQ) == []


@simulated
async def test_an_alias_of_its_own_name_ends_where_its_transmission_queue_leads() -> None:
    """Aliases that name each other are not followed: each look-up is of one definition."""
    async with universe() as u:
        await two(
            u,
            queue("A", type="remote", remote_queue_manager="B"),
            queue("B", type="remote", remote_queue_manager="A"),
            queue("C", type="remote", remote_queue_manager="C"),
        )
        for name in "ABC":
            with pytest.raises(Refusal) as refused:
                await u["X"].put("IN", "x", queue_manager=name)
            assert refused.value.reason is Reason.UNKNOWN_REMOTE_Q_MGR


@simulated
async def test_without_a_dead_letter_queue_the_channel_does_not_lose_the_message() -> None:
    """It cannot be confirmed, so it stays with its sender (MQ: the channel ends in error), and arrives once its queue is there."""
    async with universe() as u:
        await u.host("R", "", queue("IN"), receiver("G.TO.R"))
        await u.host("X", "G", xmitq("R", "admin"), TO_R)
        await u["X"].put("LATER", "kept", queue_manager="R")
        entry = await u.state("G.TO.R", pb.RETRYING)
        assert entry.reason == Reason.UNKNOWN_OBJECT_NAME, entry
        await u["R"].manager.queues.define(queue("LATER"))
        await u["R"].until("LATER", ["kept"])
