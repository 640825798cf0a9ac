"""The recorder of calls sees what members ask of a register, and a wrong answer makes the history impossible."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.steps import swap
from qsg.rules.unit import Cell, CompareFailed, OutcomeUnknown, Unit
from qsg.store.contract import Get
from support.calls import Calls
from support.members import Group, group

LOCK = keys.lock("Q")


def recorder() -> Calls:
    return Calls(itertools.count().__next__)


def lock(epoch: int) -> bytes:
    return pb.Lock(member="X", epoch=epoch).SerializeToString()


async def taken(at: Structure, cell: Cell, epoch: int) -> None:
    await at.commit(Unit("lock", changes=[swap(cell, lock(epoch))]))


async def two(g: Group) -> tuple[Structure, Structure]:
    return (await g.member("X")).structures["app1"], (await g.member("Y")).structures["app1"]


async def test_what_two_members_do_to_a_lock_is_linearizable() -> None:
    calls = recorder()
    async with group() as g:
        x, y = await two(g)
        with calls.recording():
            mine, theirs = await x.cell(LOCK), await y.cell(LOCK)
            await taken(x, mine, 1)
            with pytest.raises(CompareFailed):
                await taken(y, theirs, 2)
            await y.refresh(theirs)
            await taken(y, theirs, 3)
            await x.read_near(0)
    assert calls.count == 5 and calls.problems() == []


@pytest.mark.parametrize("told", [CompareFailed((LOCK,)), OutcomeUnknown()], ids=["refused", "unknown"])
async def test_a_commit_that_was_applied_and_told_as_refused_is_found(told: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorder()
    commit = Structure.commit

    async def wrong(at: Structure, unit: Unit, **options: Any) -> Any:
        await commit(at, unit, **options)
        raise told

    async with group() as g:
        x, y = await two(g)
        monkeypatch.setattr(Structure, "commit", wrong)
        with calls.recording():
            with pytest.raises(type(told)):
                await taken(x, await x.cell(LOCK), 1)
            await y.cell(LOCK)
        monkeypatch.undo()
    if isinstance(told, OutcomeUnknown):
        assert calls.problems() == [], "nobody was told wrong"
    else:
        (problem,) = calls.problems()
        assert "not linearizable" in problem and "Y read" in problem


async def test_a_stale_read_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorder()
    read = Structure.read
    async with group() as g:
        x, y = await two(g)
        old = await read(y, Get(LOCK))

        async def stale(at: Structure, *gets: Any) -> Any:
            return old if at is y else await read(at, *gets)

        monkeypatch.setattr(Structure, "read", stale)
        with calls.recording():
            await taken(x, await x.cell(LOCK), 1)
            await y.cell(LOCK)
        monkeypatch.undo()
    assert len(calls.problems()) == 1


async def test_two_that_both_were_told_that_they_have_it_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = recorder()
    commit = Structure.commit

    async def careless(at: Structure, unit: Unit, **options: Any) -> Any:
        for change in unit.changes:
            change.guarded = False
        return await commit(at, unit, **options)

    async with group() as g:
        x, y = await two(g)
        monkeypatch.setattr(Structure, "commit", careless)
        with calls.recording():
            mine, theirs = await x.cell(LOCK), await y.cell(LOCK)
            await taken(x, mine, 1)
            await taken(y, theirs, 2)
        monkeypatch.undo()
    assert len(calls.problems()) == 1
