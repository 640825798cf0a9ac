"""What a round of getters has committed is handed out to each of them, whatever became of the others, and nothing is tried for ever."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

import pytest

from qsg.manager.getting import GetSpec, GetterLoop
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Committed, Fenced, OutcomeUnknown, Unit
from qsg.store.contract import Limits, Unavailable
from qsg.store.faults import RandomFaults
from qsg.store.memory import MemoryServer
from support.members import Member, group
from support.simulated import simulated
from support.units import get, members, refused


def failing(member: Member, label: str, error: Exception, times: int = 1_000_000) -> None:
    """The member's next units with this label fail, before anything of them is sent."""
    structure, left = member.structures["app1"], times
    commit = structure.commit

    async def fail(unit: Unit, **how: Any) -> Committed:
        nonlocal left
        if unit.label.startswith(label) and left:
            left -= 1
            raise error
        return await commit(unit, **how)

    structure.commit = fail  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("error", "reason"),
    [(Unavailable("gone"), Reason.STRUCTURE_NOT_AVAILABLE), (ValueError("a bug"), Reason.UNEXPECTED_ERROR)],
    ids=["store", "unexpected"],
)
@pytest.mark.parametrize("label", ["get", "claim"])
async def test_a_claim_is_handed_out_though_an_earlier_unit_of_the_round_fails(label: str, error: Exception, reason: Reason) -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", b"1", b"2")
        failing(x, label, error, times=1)
        other, unit = x.queues.begin() if label == "claim" else None, x.queues.begin()
        first = asyncio.create_task(x.queues.get(GetSpec("A"), unit=other))
        second = asyncio.create_task(get(x, unit, "A"))

        await refused(first, reason)
        assert await second == [(b"2", 0)]
        await unit.backout()
        assert await x.get("A", 9) == [b"1", b"2"]


@simulated
async def test_who_is_closed_while_its_take_is_out_is_not_told_that_nothing_was_taken() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", b"1", b"2")
        unit, structure, store = x.queues.begin(), x.structures["app1"], x.stores["app1"]
        commit = structure.commit

        async def unheard(unit: Unit, **how: Any) -> Committed:
            store.faults = RandomFaults(Random(0), reply_lost=1.0)  # applied, and nobody hears of it
            return await commit(unit, **how)

        structure.commit = unheard  # type: ignore[method-assign]
        plain = asyncio.create_task(x.get("A"))
        claiming = asyncio.create_task(get(x, unit, "A"))
        await asyncio.sleep(0.1)
        store.faults = RandomFaults(Random(0))
        await x.crash()

        with pytest.raises(OutcomeUnknown):
            await plain
        await refused(claiming, Reason.Q_MGR_STOPPING)
        assert await y.get("A", 9, wait_ms=5_000) == [b"2"]


@pytest.mark.parametrize(
    ("error", "told"),
    [(Fenced(), Fenced), (OutcomeUnknown(), Refusal), (Refusal(Reason.RECORD_DAMAGED), Refusal)],
    ids=["fenced", "given up", "refused"],
)
@simulated
async def test_expired_messages_that_cannot_be_removed_are_not_tried_again_and_again(
    error: Exception, told: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = 0
    serve = GetterLoop._serve

    async def counted(loop: GetterLoop) -> None:
        nonlocal rounds
        rounds += 1
        await serve(loop)

    async with group() as g:
        (x,) = await members(g, "X")
        await x.put("A", b"short", expires_at_ms=g.wall.ms + 100)
        g.wall.ms += 200
        x.stores["app1"].faults = RandomFaults(Random(0), 0.01)  # so that time passes
        failing(x, "get", error)
        monkeypatch.setattr(GetterLoop, "_serve", counted)

        waiting = asyncio.create_task(x.get("A", wait_ms=60_000))
        await asyncio.wait([waiting], timeout=5)

        assert rounds <= 3
        with pytest.raises(told):
            await waiting


@pytest.mark.parametrize("expired", [False, True])
async def test_a_store_that_takes_less_in_one_transaction_is_asked_for_less(expired: bool) -> None:
    async with group() as g:
        g.servers["app1"] = MemoryServer(limits=Limits(operations=64, compares=64))
        (x,) = await members(g, "X")
        for _ in range(40):
            await x.put("A", b"1", expires_at_ms=g.wall.ms + 100 if expired else 0)
        await x.put("A", b"ever")
        g.wall.ms += 200
        got: list[bytes] = []
        while b"ever" not in got:
            got += await x.get("A", 100)
        assert len(got) == (1 if expired else 41)
