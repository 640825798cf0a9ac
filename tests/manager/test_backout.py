"""The backout queue: a message that was backed out too often moves there, of any size, in one transaction, or returns with its count."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from qsg.endings import ended
from qsg.manager import backout, large
from qsg.manager.getting import GetSpec
from qsg.manager.large import StageCleaner
from qsg.manager.structure import Structure
from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import OutcomeUnknown, Unit
from qsg.store.contract import Unavailable, get_prefix
from support.members import Member, group, shared
from support.simulated import simulated
from support.units import CLAIMS, Far, empty, empty_now, get, members, outrun_unit

LARGE = bytes(range(256)) * 6_000


@CLAIMS
async def test_threshold_moves_to_the_backout_queue_in_one_unit(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole, backout_threshold=2, backout_queue="B")
        await x.put("A", b"bad", b"good")
        for count in range(2):
            unit = x.queues.begin()
            assert await get(x, unit, "A") == [(b"bad", count)]
            await unit.backout()

        got = await x.queues.get(GetSpec("B"))
        assert [(m.message.payload, m.backouts) for m in got] == [(b"bad", 0)]
        assert await x.get("A", 5) == [b"good"]
        assert await empty(x, "A")


@CLAIMS
async def test_a_large_message_moves_too_and_leaves_nothing_behind(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole, backout_threshold=2, backout_queue="B")
        await x.put("A", b"small", LARGE, LARGE[1:], b"good")
        for _ in range(2):
            unit = x.queues.begin()
            got = [*await get(x, unit, "A", 3)]
            while len(got) < 3:
                got += await get(x, unit, "A")
            await unit.backout()
            assert unit.empty and not x.structures["app1"].abandoned

        assert await x.get("A", 5) == [b"good"]
        assert await empty(x, "A")
        moved: list[bytes] = []
        while len(moved) < 3:
            got_now = await x.queues.get(GetSpec("B", messages_max=5))
            assert {m.backouts for m in got_now} == {0}
            moved += [m.message.payload for m in got_now]
        assert moved == [b"small", LARGE, LARGE[1:]]
        assert await empty(x, "B")


async def test_large_messages_of_one_unit_are_copied_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        (x,) = await members(g, "X", backout_threshold=1, backout_queue="B")
        unit = x.queues.begin()
        for first in range(4):
            await x.put("A", LARGE[first:])
            assert await get(x, unit, "A") == [(LARGE[first:], 0)]
        stage_message, at_once, most = large.stage_message, 0, 0

        async def counted(*arguments: Any) -> large.Stage:
            nonlocal at_once, most
            at_once += 1
            most = max(most, at_once)
            try:
                return await stage_message(*arguments)
            finally:
                at_once -= 1

        monkeypatch.setattr(large, "stage_message", counted)
        await unit.backout()

        assert most == 1 and (await x.queues.depth("B")).messages == 4
        assert await empty(x, "A")


async def test_a_structure_that_does_not_answer_holds_up_no_copy_in_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commits wait for as long as it is away, and what is claimed in the other one is offered to nobody meanwhile."""
    async with group() as g:
        (x,) = await members(g, "X", backout_threshold=1, backout_queue="B")
        await x.queues.define(Queue(name="C", structure="admin", backout_threshold=1, backout_queue="D"))
        await x.queues.define(Queue(name="D", structure="admin"))
        units = []
        for queue in ("A", "C"):
            await x.put(queue, LARGE)
            units.append(x.queues.begin())
            await get(x, units[-1], queue)
        add, store, away = large.add, x.stores["app1"], asyncio.Event()

        async def cut_off(structure: Structure, *arguments: Any, **options: Any) -> None:
            if structure.name == "app1":
                store.cut()
                away.set()
            await add(structure, *arguments, **options)

        monkeypatch.setattr(large, "add", cut_off)
        waiting = asyncio.create_task(units[0].backout())
        await away.wait()
        async with asyncio.timeout(2):
            await units[1].backout()
            assert await x.get("D") == [LARGE]
        monkeypatch.undo()
        store.heal()
        await waiting
        assert await x.get("B") == [LARGE]


async def test_more_large_messages_than_move_at_once_move_at_the_next_backout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.backout.LARGE_MOVES", 2)
    async with group() as g:
        (x,) = await members(g, "X", backout_threshold=1, backout_queue="B")
        await x.put("A", LARGE, LARGE[1:], LARGE[2:])
        for left in (1, 0):
            unit = x.queues.begin()
            while not await empty_now(x, "A"):
                try:
                    await get(x, unit, "A", 3)
                except Refusal:
                    break
            await unit.backout()
            assert (await x.queues.depth("A")).messages == left
        assert (await x.queues.depth("B")).messages == 3
        assert await empty(x, "A")


async def test_a_message_too_large_for_the_backout_queue_returns_and_does_not_hold_up_the_others() -> None:
    async with group() as g:
        (x,) = await members(g, "X", backout_threshold=1, backout_queue="B")
        await x.queues.define(shared("B", max_message_bytes=1_000))
        await x.put("A", b"bad", LARGE)
        unit = x.queues.begin()
        assert await get(x, unit, "A") + await get(x, unit, "A") == [(b"bad", 0), (LARGE, 0)]
        await unit.backout()

        assert await x.get("B", 2) == [b"bad"]
        assert await get(x, x.queues.begin(), "A") == [(LARGE, 1)]


async def test_a_backout_queue_altered_while_a_large_message_is_staged_takes_it_still(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y", backout_threshold=1, backout_queue="B")
        await x.put("A", LARGE)
        unit = x.queues.begin()
        await get(x, unit, "A")
        add, altered = large.add, False

        async def add_late(*arguments: Any, **options: Any) -> None:
            nonlocal altered
            await add(*arguments, **options)
            if not altered:
                altered = True
                await y.queues.define(shared("B", description="another"))

        monkeypatch.setattr(large, "add", add_late)
        await unit.backout()

        assert altered and await x.get("B") == [LARGE]
        assert await empty(x, "A") and await empty(x, "B")


async def test_a_backout_cut_short_while_it_stages_leaves_that_to_the_cleaner() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y", backout_threshold=1, backout_queue="B")
        await x.put("A", LARGE)
        unit = x.queues.begin()
        await get(x, unit, "A")
        backing = asyncio.create_task(unit.backout())
        staged = False
        for _ in range(1_000):
            staged = any(b"/x/" in key for key in await under(y, "B"))
            if staged:
                break
            await asyncio.sleep(0)
        assert staged and not backing.done()
        x.stores["app1"].pause()
        for _ in range(5):
            backing.cancel()
            await asyncio.sleep(0)
        await asyncio.gather(backing, return_exceptions=True)
        x.stores["app1"].resume()
        await x.crash()

        await StageCleaner(y.catalog).clean()
        assert await empty(y, "B")
        assert await y.get("A") == [LARGE]
        assert await empty(y, "A")


@simulated
async def test_what_a_faster_member_takes_from_the_same_segment_does_not_keep_a_claim() -> None:
    """However often the release is too late: while its member lives nobody else would give the message back."""
    async with group() as g:
        y, unit = await outrun_unit(g, "release")
        await unit.backout()

        assert unit.empty
        assert await get(y, y.queues.begin(), "A", 5) == [(b"0", 1), (b"21", 0)]


@pytest.mark.parametrize("seed", range(3))
@simulated
async def test_a_member_that_gets_from_the_same_segment_without_a_pause_does_not_hold_up_a_backout_for_long(seed: int) -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", *(b"%d" % i for i in range(1_000)))
        unit, loop = x.queues.begin(), asyncio.get_running_loop()
        assert len(await get(x, unit, "A", 10)) == 10
        for member in (x, y):
            member.stores["app1"].faults = Far(seed)

        async def busy() -> None:
            while True:
                await y.get("A")

        getter = asyncio.create_task(busy())
        await asyncio.sleep(0.05)
        began = loop.time()
        await unit.backout()
        assert loop.time() - began < 0.2, "not before the segment was used up"
        await ended(getter)


@CLAIMS
async def test_a_backout_that_is_tried_again_counts_once(sole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two segments the second could not be given back at first."""
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        unit, make, units = x.queues.begin(), backout._unit, 0
        for payload in (b"1", b"2"):
            await x.put("A", payload)
            await get(x, unit, "A")

        async def failing(*arguments: Any) -> Unit:
            nonlocal units
            units += 1
            if units == 2:
                raise Unavailable("app1 does not answer")
            return await make(*arguments)

        monkeypatch.setattr(backout, "_unit", failing)
        with pytest.raises(Unavailable):
            await unit.backout()
        assert not unit.empty
        await unit.backout()

        assert unit.empty and units == 3
        assert await get(x, x.queues.begin(), "A", 2) == [(b"1", 1), (b"2", 1)]


@CLAIMS
async def test_a_backout_behind_a_commit_that_nobody_knew_of_ends(sole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was committed is not claimed any more, and is left alone."""
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", b"1", b"2")
        unit, structure = x.queues.begin(), x.structures["app1"]
        assert await get(x, unit, "A") == [(b"1", 0)]
        commit = structure.commit

        async def unknown(made: Unit, **how: Any) -> None:
            await commit(made, **how)
            raise OutcomeUnknown

        monkeypatch.setattr(structure, "commit", unknown)
        with pytest.raises(OutcomeUnknown):
            await unit.commit()
        monkeypatch.setattr(structure, "commit", commit)
        await unit.backout()

        assert unit.empty
        assert await get(x, x.queues.begin(), "A", 2) == [(b"2", 0)]


async def under(member: Member, queue: str) -> list[bytes]:
    _, (found,) = await member.structures["app1"].read(get_prefix(keys.queue(queue), keys_only=True))
    return [kv.key for kv in found.kvs]


@CLAIMS
@pytest.mark.parametrize("backout_queue", ["NO.SUCH", "PRIVATE", "CLOSED"])
async def test_backout_queue_that_does_not_take_it_leaves_the_message(backout_queue: str, sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole, backout_threshold=1, backout_queue=backout_queue)
        await x.queues.define(Queue(name="PRIVATE"))
        await x.queues.define(shared("CLOSED", put_enabled=False))
        await x.put("A", b"bad")
        unit = x.queues.begin()
        await get(x, unit, "A")
        await unit.backout()

        assert await get(x, x.queues.begin(), "A") == [(b"bad", 1)]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("PRIVATE", "PRIVATE is in structure private, C in app1"),
        ("ALIAS", "PRIVATE is in structure private, C in app1"),
        ("XMITQ", "XMITQ is not a local queue"),
        ("REMOTE", "REMOTE is not a local queue"),
    ],
)
async def test_a_backout_queue_that_can_never_take_a_message_is_refused_when_it_is_named(name: str, why: str) -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.queues.define(Queue(name="PRIVATE"))
        await x.queues.define(Queue(name="ALIAS", type="alias", target="PRIVATE"))
        await x.queues.define(shared("XMITQ", usage="transmission"))
        await x.queues.define(Queue(name="REMOTE", type="remote", remote_queue="B", remote_queue_manager="XMITQ"))
        named = shared("C", backout_threshold=1, backout_queue=name)
        with pytest.raises(Refusal, match=why) as refusal:
            await x.queues.define(named)
        assert refusal.value.reason is Reason.DEFINITION_ERROR
        assert x.catalog.queue("C") is None

        await x.queues.define(shared("C"))
        with pytest.raises(Refusal, match=why):
            await x.queues.define(named)
        await x.queues.define(shared("C", backout_threshold=1, backout_queue="B"))


async def test_queues_and_their_backout_queues_are_defined_in_any_order() -> None:
    """What was accepted before the other queue was there goes on to be altered, deleted and made: a backout says what is wrong."""
    async with group() as g:
        (x,) = await members(g, "X", backout_threshold=1, backout_queue="LATER")
        await x.queues.define(Queue(name="LATER"))
        await x.queues.define(shared("A", backout_threshold=2, backout_queue="LATER", managed_by="nobody"))
        await x.queues.define(Queue(name="P", backout_threshold=1, backout_queue="LATER"))
        await x.queues.define(shared("TWIN", backout_threshold=1, backout_queue="TWIN"))
        await x.queues.define(Queue(name="AHEAD", type="alias", target="NOT.YET"))
        await x.queues.define(shared("D", backout_threshold=1, backout_queue="AHEAD"))
        named = {"A": "LATER", "P": "LATER", "TWIN": "TWIN", "D": "AHEAD"}
        assert {name: queue.backout_queue for name in named if (queue := x.catalog.queue(name))} == named
        altered = x.catalog.queue("A")
        assert altered is not None and (altered.backout_threshold, altered.managed_by) == (2, "nobody")

        await x.put("D", b"bad")
        unit = x.queues.begin()
        assert await get(x, unit, "D") == [(b"bad", 0)]
        with capture_logs() as logs:
            await unit.backout()
        (told,) = [line for line in logs if line["event"] == "backout queue does not take messages"]
        assert (told["queue"], told["backout_queue"]) == ("D", "AHEAD") and "NOT.YET" in told["problem"]
        assert (await x.queues.depth("D")).messages == 1

        for name in named:
            await x.queues.delete(name, purge=True)
            assert x.catalog.queue(name) is None
