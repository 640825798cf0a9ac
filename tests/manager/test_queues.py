"""Putting: validation, limits, name resolution, placing for channels, idempotent producers."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsg.manager.getting import GetSpec, GotMessage
from qsg.manager.producers import OPENERS_MAX, ProducerNumber
from qsg.manager.queues import PutRequest
from qsg.pb import records_pb2 as pb
from qsg.rules.definitions import Queue, Settings
from qsg.rules.internal import internal_queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, Unit
from support.members import Group, Member, group, shared
from support.simulated import simulated
from support.units import Far

MIB = 1 << 20


async def members(g: Group, *names: str, **attributes: object) -> list[Member]:
    made = [await g.member(name) for name in names]
    await made[0].queues.define(shared("A", **attributes))
    await asyncio.sleep(0.01)
    return made


async def refused(call: object, reason: Reason) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        await call  # type: ignore[misc]
    assert refusal.value.reason is reason, refusal.value
    return refusal.value


async def depth(member: Member, queue: str = "A") -> int:
    return (await member.queues.depth(queue)).messages


async def test_who_names_no_priority_gets_the_queues_default() -> None:
    async with group() as g:
        (x,) = await members(g, "X", default_priority=4)
        await x.queues.define(Queue(name="ALIAS", type="alias", target="A"))
        await x.put("A", b"zero", priority=0)
        await x.put("A", b"three", priority=3)
        await x.put("ALIAS", b"default")
        unit = x.queues.begin()
        await x.queues.put([PutRequest("A", pb.Message(payload=b"in a unit"))], unit=unit)
        await x.queues.put([PutRequest("A", pb.Message(payload=b"l" * MIB))], unit=unit)
        await unit.commit()
        await x.put("A", b"five", priority=5)

        found = [(await got(x))[0].message for _ in range(6)]

        priorities = [(m.priority, m.payload[:9]) for m in found]
        assert priorities == [(5, b"five"), (4, b"default"), (4, b"in a unit"), (4, b"l" * 9), (3, b"three"), (0, b"zero")]


async def test_descriptor_is_completed() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        (message_id,) = await x.put("A", b"1", reply_to_queue="A")
        (own_id,) = await x.queues.put([PutRequest("A", pb.Message(message_id=b"m" * 24, reply_to_queue="OWN"), "G", 5_000)])
        first, second = (g.message for g in [*await got(x), *await got(x)])

        assert len(message_id) == 24
        assert (first.message_id, first.origin, first.reply_to_queue_manager) == (message_id, "X", "G")
        assert first.put_at_ms == g.wall.ms
        assert own_id == second.message_id == b"m" * 24
        assert (second.expires_at_ms, second.reply_to_queue_manager) == (g.wall.ms + 5_000, "X")


async def got(member: Member, queue: str = "A") -> list[GotMessage]:
    return await member.queues.get(GetSpec(queue))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"priority": 10}, Reason.PRIORITY_ERROR),
        ({"message_id": b"short"}, Reason.MD_ERROR),
        ({"correlation_id": bytes(25)}, Reason.MD_ERROR),
        ({"payload": bytes(1_001)}, Reason.MSG_TOO_BIG_FOR_Q),
        ({"payload": bytes(100 * MIB + 1)}, Reason.MSG_TOO_BIG_FOR_Q_MGR),
    ],
)
async def test_bad_messages_are_refused_and_nothing_is_put(fields: dict[str, object], reason: Reason) -> None:
    async with group() as g:
        (x,) = await members(g, "X", max_message_bytes=1_000)
        good, bad = PutRequest("A", pb.Message()), PutRequest("A", pb.Message(**fields))  # type: ignore[arg-type]
        await refused(x.queues.put([good, bad]), reason)
        assert await depth(x) == 0


async def test_unknown_inhibited_and_full() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y", max_depth=5)
        await refused(x.put("NO.SUCH", b""), Reason.UNKNOWN_OBJECT_NAME)
        await x.put("A", *(b"" for _ in range(4)))
        await refused(x.put("A", b"", b""), Reason.Q_FULL)
        await refused(y.put("A", b"", b""), Reason.Q_FULL)
        await y.put("A", b"")
        await refused(y.put("A", b""), Reason.Q_FULL)
        await x.get("A")
        await y.put("A", b"")
        await x.queues.define(shared("A", put_enabled=False))
        await refused(y.put("A", b""), Reason.PUT_INHIBITED)
        assert await depth(x) == 5


async def test_concurrent_puts_do_not_exceed_the_depth() -> None:
    async with group() as g:
        (x,) = await members(g, "X", max_depth=50)
        results = await asyncio.gather(*(x.put("A", b"") for _ in range(80)), return_exceptions=True)
        assert sum(isinstance(r, list) for r in results) == 50
        assert await depth(x) == 50


async def test_puts_of_a_unit_count() -> None:
    async with group() as g:
        (x,) = await members(g, "X", max_depth=5)
        unit = x.queues.begin()
        for _ in range(5):
            await x.queues.put([PutRequest("A", pb.Message())], unit=unit)
        await refused(x.queues.put([PutRequest("A", pb.Message())], unit=unit), Reason.Q_FULL)
        await unit.backout()
        assert await depth(x) == 0
        await x.put("A", *(b"" for _ in range(5)))
        assert await depth(x) == 5


async def test_put_through_alias_remote_and_to_several_queues() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.queues.define(shared("T", usage="transmission"))
        await x.queues.define(Queue(name="R", type="remote", remote_queue="FAR", remote_queue_manager="RR", transmission_queue="T"))
        await x.queues.define(Queue(name="AL", type="alias", target="A"))

        await x.queues.put([PutRequest(q, pb.Message(payload=q.encode())) for q in ("AL", "R", "A")])

        assert await x.get("AL", 5) == [b"AL", b"A"]
        assert await depth(x, "T") == 1
        await x.queues.define(Queue(name="OWN"))
        told = await refused(x.queues.put([PutRequest("A", pb.Message()), PutRequest("OWN", pb.Message())]), Reason.OPTIONS_ERROR)
        assert "several structures" in told.detail


async def test_put_to_a_queue_altered_or_made_again_meanwhile() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await y.put("A", b"1")
        await x.queues.define(shared("A", description="altered"))
        await y.put("A", b"2")
        await x.queues.purge("A")
        try:
            await y.put("A", b"3")
        except Refusal as refusal:
            assert refusal.reason is Reason.Q_DELETED
            await y.put("A", b"3")
        assert await x.get("A", 9) == [b"3"]


async def test_one_put_is_one_transaction_and_what_does_not_fit_is_refused() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        before = x.structures["app1"].counters.commits
        await x.put("A", *(bytes(1024) for _ in range(900)))
        assert x.structures["app1"].counters.commits == before + 1
        await refused(x.put("A", *(bytes(1024) for _ in range(2_000))), Reason.SYNCPOINT_LIMIT_REACHED)
        assert await depth(x) == 900


# Placing: what a channel brings


async def test_place_local_onward_and_dead_letters() -> None:
    async with group("admin", "app1", "app2") as g:
        (x,) = await members(g, "X", max_message_bytes=100, max_depth=1)
        queues = x.queues
        await queues.define(shared("D"))
        await queues.define(shared("FAR", structure="app2"))
        await queues.define(Queue(name="OWN"))
        await queues.define(shared("T", usage="transmission"))
        await x.catalog.define_settings(Settings(dead_letter_queue="D", default_transmission_queue="T", hop_limit=2))

        local = await queues.place("app1", "A", "G")
        assert (local.queue, local.destination, local.refusal) == ("A", None, None)
        onward = await queues.place("app1", "Q", "ELSEWHERE", hops=1)
        assert (onward.queue, onward.destination) == ("T", ("Q", "ELSEWHERE"))
        other = await queues.place("app1", "FAR", "X")
        assert (other.queue, other.destination) == (internal_queue("app1", "app2"), ("FAR", "G"))
        own = await queues.place("app1", "OWN", "X")
        assert (own.queue, own.structure.name, own.destination) == (internal_queue("app1", "private.X"), "app1", ("OWN", "X"))
        dead = await queues.place("app1", "NO.SUCH", "G")
        assert dead.queue == "D"
        assert dead.refusal is not None
        assert dead.refusal.reason is Reason.UNKNOWN_OBJECT_NAME
        for options, reason in (({"hops": 2, "queue": "ELSEWHERE"}, Reason.HOP_LIMIT), ({"payload_bytes": 101}, Reason.MSG_TOO_BIG_FOR_Q)):
            where = str(options.pop("queue", "G"))
            dead = await queues.place("app1", "A", where, **options)
            assert dead.refusal is not None
            assert dead.refusal.reason is reason
        await x.put("A", b"")
        full = await queues.place("app1", "A", "G")
        assert full.refusal is not None
        assert full.refusal.reason is Reason.Q_FULL

        await x.catalog.define_settings(Settings(dead_letter_queue=""))
        await refused(queues.place("app1", "NO.SUCH", "G"), Reason.UNKNOWN_OBJECT_NAME)


async def test_placed_messages_compare_the_queue() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        placement = await x.queues.place("app1", "A", "G")
        await x.queues.define(shared("A", put_enabled=False))
        with pytest.raises(CompareFailed):
            await x.structures["app1"].commit(Unit(compares=[placement.same()], puts=[]))


# Idempotent producers


async def send(member: Member, epoch: int, first: int, *payloads: bytes, queue: str = "A") -> list[bytes]:
    number = ProducerNumber("P", "app1", epoch, first, len(payloads))
    return await member.queues.put([PutRequest(queue, pb.Message(payload=p)) for p in payloads], producer=number)


async def test_numbers_are_applied_once_and_in_order() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        first = await x.queues.open_producer("P", "A")
        assert (first.structure, first.last) == ("app1", 0)
        await send(x, first.epoch, 1, b"1", b"2")
        await send(x, first.epoch, 2, b"2", b"3")
        await send(x, first.epoch, 1, b"1")
        await refused(send(x, first.epoch, 5, b"5"), Reason.PRODUCER_GAP)

        second = await y.queues.open_producer("P", structure="app1")
        assert second.last == 3
        await refused(send(x, first.epoch, 4, b"4"), Reason.PRODUCER_FENCED)
        await send(y, second.epoch, 4, b"4")

        assert await x.get("A", 9) == [b"1", b"2", b"3", b"4"]


async def test_a_producer_is_opened_where_a_unit_only_gets() -> None:
    """Its number is that of a commit: such a unit of work could not be committed."""
    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", b"1", b"2")
        await x.queues.define(shared("A", max_depth=1))
        await x.queues.define(shared("SHUT", put_enabled=False))
        await x.queues.define(shared("XMIT", usage="transmission", put_enabled=False))
        await x.queues.define(Queue(name="AL", type="alias", target="XMIT", put_enabled=False))
        await x.queues.define(Queue(name="LOST", type="alias", target="NONE"))
        await x.queues.define(Queue(name="FAR", type="remote", remote_queue="Q", remote_queue_manager="XMIT"))
        for queue in ("A", "SHUT", "XMIT", "AL", "FAR"):
            assert (await x.queues.open_producer("P", queue)).structure == "app1"
        assert (await x.queues.open_producer("P", "Q", "XMIT")).structure == "app1"
        await refused(x.queues.open_producer("P", "NONE"), Reason.UNKNOWN_OBJECT_NAME)
        await refused(x.queues.open_producer("P", "LOST"), Reason.UNKNOWN_ALIAS_BASE_Q)
        await refused(x.queues.open_producer("P", "Q", "NONE"), Reason.UNKNOWN_REMOTE_Q_MGR)


async def test_refusal_refuses_everything_behind_it() -> None:
    """Interleaving N3: 7 is refused as full, 8 must not commit, a retry of 7 is not "already applied"."""
    async with group() as g:
        (x,) = await members(g, "X", max_depth=2)
        opened = await x.queues.open_producer("P", "A")
        await send(x, opened.epoch, 1, b"1", b"2")
        await refused(send(x, opened.epoch, 3, b"3"), Reason.Q_FULL)
        await x.get("A")
        await refused(send(x, opened.epoch, 4, b"4"), Reason.PRODUCER_GAP)
        await send(x, opened.epoch, 3, b"3")
        assert await x.get("A", 9) == [b"2", b"3"]


async def test_pipelined_numbers_keep_their_order() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        opened = await x.queues.open_producer("P", "A")
        await asyncio.gather(*(send(x, opened.epoch, i, b"%d" % i) for i in range(1, 101)))
        assert await x.get("A", 200) == [b"%d" % i for i in range(1, 101)]


async def test_late_put_of_an_older_epoch_fails() -> None:
    """Interleavings H9, P2: X's commit of 1 is under way when Y opens the producer."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        first = await x.queues.open_producer("P", "A")
        x.stores["app1"].pause()
        late = asyncio.create_task(send(x, first.epoch, 1, b"late"))
        await asyncio.sleep(0.05)
        second = await y.queues.open_producer("P", structure="app1")
        assert second.last == 0
        await send(y, second.epoch, 1, b"1")
        x.stores["app1"].resume()

        await refused(late, Reason.PRODUCER_FENCED)
        assert await y.get("A", 9) == [b"1"]


@pytest.mark.parametrize("seed", range(3))
@simulated
async def test_a_connection_that_puts_without_a_pause_is_shut_out_all_the_same(seed: int) -> None:
    """Each of its puts writes the record that the newer one's opening compares."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        first = await x.queues.open_producer("P", "A")
        for member in (x, y):
            member.stores["app1"].faults = Far(seed)
        done = 0

        async def put_on() -> None:
            nonlocal done
            while True:
                await send(x, first.epoch, done + 1, b"")
                done += 1

        busy = asyncio.create_task(put_on())
        await asyncio.sleep(0.05)
        second = await y.queues.open_producer("P", structure="app1")
        await refused(busy, Reason.PRODUCER_FENCED)
        assert second.last == done
        await send(y, second.epoch, done + 1, b"")


async def test_an_opening_that_comes_late_for_a_connection_that_has_ended_shuts_nobody_out() -> None:
    """Found by simulation seed 40165: a slow store held the opening up, and the application that was started anew was refused for good."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.queues.open_producer("P", "A")
        x.stores["app1"].pause()
        there = True
        late = asyncio.create_task(x.queues.open_producer("P", structure="app1", wanted=lambda: there))
        await asyncio.sleep(0.05)
        there = False
        second = await y.queues.open_producer("P", structure="app1")
        x.stores["app1"].resume()
        await refused(late, Reason.CONNECTION_BROKEN)
        await send(y, second.epoch, 1, b"1")
        assert await y.get("A", 9) == [b"1"]


@pytest.mark.parametrize("ask", [{"structure": "app1"}, {"queue": "A"}], ids=str)
async def test_an_opening_of_a_connection_that_knows_no_newer_one_shuts_nobody_out(ask: dict[str, Any]) -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        first = await x.queues.open_producer("P", "A")
        known = {"app1": first.epoch}
        second = await y.queues.open_producer("P", **ask, epochs_max=known)
        assert second.epoch == first.epoch + 1  # nothing was put since: the record may have begun anew, for the asker itself
        await send(y, second.epoch, 1, b"1")
        await refused(x.queues.open_producer("P", **ask, epochs_max=known), Reason.PRODUCER_FENCED)
        await send(y, second.epoch, 2, b"2")
        assert (await y.queues.open_producer("P", **ask, epochs_max={"app1": second.epoch})).last == 2


@pytest.mark.parametrize("known", [False, True], ids=["its first was not answered", "its second was not answered"])
@pytest.mark.parametrize("put", [False, True], ids=["nobody has put", "the newer has put"])
async def test_who_opened_a_producer_before_another_did_opens_it_no_more(put: bool, known: bool) -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        first = await x.queues.open_producer("P", "A", opener=b"older")
        second = await y.queues.open_producer("P", "A", opener=b"newer")
        if put:
            await send(y, second.epoch, 1, b"1")
        mine = {"app1": first.epoch + 1} if known else {}
        await refused(x.queues.open_producer("P", "A", opener=b"older", epochs_max=mine), Reason.PRODUCER_FENCED)
        assert (await x.queues.open_producer("P", "A", opener=b"newer")).epoch == second.epoch + 1
        assert (await x.queues.open_producer("P", "A")).epoch == second.epoch + 2  # of an older version: it tells no id
        await refused(y.queues.open_producer("P", "A", opener=b"newer"), Reason.PRODUCER_FENCED)


async def test_who_is_not_remembered_is_told_apart_by_its_epoch() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        first = await x.queues.open_producer("P", "A", opener=b"older")
        for i in range(OPENERS_MAX):
            await x.queues.open_producer("P", "A", opener=b"%d" % i)
        await refused(x.queues.open_producer("P", "A", opener=b"older", epochs_max={"app1": first.epoch}), Reason.PRODUCER_FENCED)
        await refused(x.queues.open_producer("P", "A", opener=b"x" * 17), Reason.OPTIONS_ERROR)
        assert (await x.queues.open_producer("P", "A", opener=b"one more")).epoch == first.epoch + OPENERS_MAX + 1


async def test_name_that_leads_elsewhere_is_settled_where_it_led() -> None:
    """Interleaving N4: 1 committed in app1, its answer was lost, the alias moves to app2, 1 is repeated."""
    async with group("admin", "app1", "app2") as g:
        (x,) = await members(g, "X")
        await x.queues.define(shared("B", structure="app2"))
        await x.queues.define(Queue(name="AL", type="alias", target="A"))
        opened = await x.queues.open_producer("P", "AL")
        await send(x, opened.epoch, 1, b"1", queue="AL")
        await x.queues.define(Queue(name="AL", type="alias", target="B"))

        await send(x, opened.epoch, 1, b"1", queue="AL")
        await refused(send(x, opened.epoch, 2, b"2", queue="AL"), Reason.OBJECT_CHANGED)
        assert (await depth(x, "A"), await depth(x, "B")) == (1, 0)
        await x.queues.delete("AL")
        await send(x, opened.epoch, 1, b"1", queue="AL")
        await refused(send(x, opened.epoch, 2, b"2", queue="AL"), Reason.UNKNOWN_OBJECT_NAME)


async def test_record_that_has_expired_begins_anew_with_an_epoch_nobody_has() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        first = await x.queues.open_producer("P", "A", lifetime_ms=1_000)
        await send(x, first.epoch, 1, b"1")
        g.wall.ms += 2_000
        second = await x.queues.open_producer("P", "A")
        assert second.last == 0
        assert second.epoch > first.epoch
        await refused(send(x, first.epoch, 2, b"2"), Reason.PRODUCER_FENCED)


async def test_inquire() -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", b"123")
        told = await x.queues.inquire("A")
        assert (told["name"], told["structure"], told["depth"], told["depth_bytes"]) == ("A", "app1", 1, 3)
        await refused(x.queues.inquire("B"), Reason.UNKNOWN_OBJECT_NAME)
