"""A structure that no member reaches: what goes to another one goes on, and a queue that moved there meanwhile is found."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import qsg
from qsg.rules.reasons import Reason, Refusal
from support.client_group import ClientGroup

RECONNECT_S = 5.0


@pytest.fixture
def two(group: ClientGroup) -> ClientGroup:
    group.durable.homes = {"A": "one", "A2": "one", "B": "two", "B2": "two"}
    return group


async def outcome(put: Any, within_s: float) -> Any:
    try:
        async with asyncio.timeout(within_s):
            return await put
    except (qsg.QsgError, TimeoutError) as error:
        return error


@pytest.mark.parametrize("known", [True, False], ids=["opened there before", "not opened there"])
async def test_puts_to_another_structure_go_on(two: ClientGroup, known: bool) -> None:
    async with two.connect(producer="P", reconnect_s=RECONNECT_S) as qmgr:
        await qmgr.put("B", b"0")
        if known:
            await qmgr.put("A", b"0")
        two.durable.away.add("one")
        if known:
            two.network.reset("app", qmgr.member)  # it has to be opened anew
        stuck = asyncio.create_task(outcome(qmgr.put("A", b"lost"), 3 * RECONNECT_S))
        for number in range(1, 11):
            answer = await outcome(qmgr.put("B" if number % 2 else "B2", b"%d" % number), 1)
            assert isinstance(answer, bytes), f"put {number}: {answer!r}"
            await asyncio.sleep(0.1)
        assert not stuck.done(), "it is asked for as long as for a member"
        assert isinstance(await stuck, qsg.StructureNotAvailable)
        for number in range(11, 16):
            assert isinstance(await outcome(qmgr.put("B", b"%d" % number), 1), bytes)
        two.durable.away.clear()
        await qmgr.put("A", b"back")

    assert two.payloads("A") == [b"0", b"back"][not known :]
    assert two.payloads("B") == [b"0"] + [b"%d" % n for n in (1, 3, 5, 7, 9, 11, 12, 13, 14, 15)]
    assert two.payloads("B2") == [b"%d" % n for n in (2, 4, 6, 8, 10)]


async def test_what_is_unknown_there_is_told_and_holds_up_nothing_later(two: ClientGroup) -> None:
    async with two.connect(producer="P", reconnect_s=RECONNECT_S) as qmgr:
        await qmgr.put("A", b"0")
        await qmgr.put("B", b"0")

        def cut(member: str) -> None:
            two.durable.away.add("one")
            two.network.reset("app", member)

        two.cut_at("after put", act=cut)
        assert isinstance(await outcome(qmgr.put("A", b"1"), 3 * RECONNECT_S), qsg.OutcomeUnknown)
        for number in range(1, 6):
            assert isinstance(await outcome(qmgr.put("B", b"%d" % number), 0.5), bytes)
        two.durable.away.clear()
        await qmgr.put("A", b"2")

    assert two.payloads("A") == [b"0", b"1", b"2"]
    assert two.payloads("B") == [b"%d" % n for n in range(6)]


async def test_many_targets_that_are_away_are_given_up_together(two: ClientGroup) -> None:
    queues = [f"Q{number}" for number in range(20)]
    two.durable.homes |= dict.fromkeys(queues, "one")
    two.durable.away.add("one")

    async def slow(step: str, member: str) -> None:
        if step == "before open" and two.durable.away:
            await asyncio.sleep(0.5)
            raise Refusal(Reason.STRUCTURE_NOT_AVAILABLE, "no answer")

    async with two.connect(producer="P", reconnect_s=RECONNECT_S) as qmgr:
        two.durable.gate = slow
        began = asyncio.get_running_loop().time()
        answers = await asyncio.gather(*(qmgr.put(queue, b"") for queue in queues), return_exceptions=True)
        assert all(isinstance(answer, qsg.StructureNotAvailable) for answer in answers)
        assert asyncio.get_running_loop().time() - began < RECONNECT_S + 2


@pytest.mark.parametrize("lost", [True, False], ids=["connection lost", "connection kept"])
async def test_a_queue_that_moved_off_it_is_found(two: ClientGroup, lost: bool) -> None:
    async with two.connect(producer="P", reconnect_s=RECONNECT_S) as qmgr:
        await qmgr.put("A", b"0")
        two.durable.away.add("one")
        two.durable.homes["A"] = "two"
        if lost:
            two.network.reset("app", qmgr.member)
            await asyncio.sleep(0.5)
        first = await outcome(qmgr.put("A", b"1"), 3 * RECONNECT_S)
        assert isinstance(first, qsg.StructureNotAvailable)
        await qmgr.put("A", b"2")
        await qmgr.put("A", b"3")

    assert two.payloads("A") == [b"0", b"2", b"3"]


async def test_a_unit_of_work_with_a_queue_that_moved_off_it_is_committed(two: ClientGroup) -> None:
    async with two.connect() as qmgr:
        async with qmgr.unit() as unit:
            await unit.put("A", b"0")
        two.durable.away.add("one")
        two.durable.homes["A"] = "two"
        two.network.reset("app", qmgr.member)  # the commit's producer has to be opened anew
        await asyncio.sleep(0.5)
        answers = []
        for number in (1, 2):
            try:
                async with qmgr.unit() as unit:
                    await unit.put("A", b"%d" % number)
                answers.append("committed")
            except qsg.BackedOut:
                answers.append("backed out")

    assert answers == ["backed out", "committed"]
    assert two.payloads("A") == [b"0", b"2"]


@pytest.mark.parametrize("moment_s", [0.0, 0.2, 30.0])
@pytest.mark.parametrize("there", [False, True], ids=["elsewhere", "in the same"])
async def test_a_new_target_does_not_wait_for_a_put_that_a_structure_holds(two: ClientGroup, there: bool, moment_s: float) -> None:
    """As a reply queue of its own for each request: opening the producer there must not wait for what may take hours."""
    away = asyncio.Event()
    async with two.connect(producer="P", reconnect_s=RECONNECT_S) as qmgr:
        await qmgr.put("A", b"0")
        await qmgr.put("B", b"0")
        held = 0

        async def gate(step: str, member: str) -> None:
            nonlocal held
            if step == "before put" and not held:
                held += 1
                await away.wait()

        two.durable.gate = gate
        waiting = [asyncio.create_task(qmgr.put("A", b"1"))]
        await asyncio.sleep(moment_s)
        waiting.append(asyncio.create_task(qmgr.put("A", b"2")))
        new = asyncio.create_task(qmgr.put("A2" if there else "B2", b"new"))
        known = asyncio.create_task(qmgr.put("B", b"1"))
        async with asyncio.timeout(3):
            await known
            if not there:
                await new
        assert held == 1
        assert not any(put.done() for put in waiting)
        away.set()
        await asyncio.gather(*waiting, new)
        await qmgr.put("A", b"3")

    assert two.payloads("A") == [b"0", b"1", b"2", b"3"]
    assert two.payloads("B") == [b"0", b"1"]
    assert two.payloads("A2") + two.payloads("B2") == [b"new"]
