"""What a queue manager does in several transactions, cut off behind each of them by its death: another member carries on or cleans up.

Channels' lists of steps are cut off in `tests/rules/test_cut_lists.py`, settling in `tests/rules/test_settle.py`, joining in
`tests/manager/test_membership.py`, sessions of applications in `tests/client/test_every_cut.py`.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsg.manager.getting import GetSpec
from qsg.manager.large import StageCleaner
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.store.contract import get_prefix
from support.members import Member, group, shared

LARGE = bytes(range(256)) * 12_000


class CutOff(Exception):
    """The member has died behind one of its transactions."""


class Cutter:
    """Lets a member commit `count` transactions more, and no other."""

    def __init__(self, member: Member, count: int) -> None:
        self.left, self.cut = count, False
        for structure in member.structures.values():
            setattr(structure, "commit", self._counted(structure.commit))  # noqa: B010  (a method, of this one alone)

    def _counted(self, commit: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def counted(*arguments: Any, **options: Any) -> Any:
            if self.cut:
                raise CutOff
            result = await commit(*arguments, **options)
            self.left -= 1
            if not self.left:
                self.cut = True
                raise CutOff
            return result

        return counted


async def define(member: Member) -> None:
    await member.queues.define(shared("A", max_depth=100))


async def delete(member: Member) -> None:
    try:
        await member.queues.delete("A", purge=True)
    except Refusal as refused:
        assert refused.reason is Reason.UNKNOWN_OBJECT_NAME, "it was done before"


async def purge(member: Member) -> None:
    await member.queues.purge("A")


async def settle() -> None:
    await asyncio.sleep(0.05)


async def left_of(member: Member, queue: str = "A") -> list[bytes]:
    """Keys of the queue, but its state and its totals."""
    _, (found,) = await member.structures["app1"].read(get_prefix(keys.queue(queue), keys_only=True))
    return [kv.key for kv in found.kvs if kv.key != keys.queue_state(queue) and not kv.key.startswith(keys.totals(queue))]


@pytest.mark.parametrize("operation", [define, delete, purge])
@pytest.mark.parametrize("there", [False, True], ids=["no queue", "a queue with messages"])
async def test_definitions_cut_off_behind_each_transaction_are_carried_on(
    operation: Callable[[Member], Awaitable[None]], there: bool
) -> None:
    for cut in itertools.count(1):
        async with group() as g:
            x, y = await g.member("X"), await g.member("Y")
            if there or operation is purge:
                await x.queues.define(shared("A"))
                await x.put("A", b"1", LARGE, b"3")
            await settle()
            cutter = Cutter(x, cut)
            try:
                await operation(x)
            except CutOff:
                pass
            done = not cutter.cut
            await x.crash()
            await settle()

            await operation(y)
            await settle()
            if operation is delete:
                with pytest.raises(Refusal) as refused:
                    await y.put("A", b"4")
                assert refused.value.reason is Reason.UNKNOWN_OBJECT_NAME
                assert await left_of(y) == []
            else:
                await y.put("A", b"4")
                kept = [b"1", LARGE, b"3"] if operation is define and there else []
                got: list[bytes] = []
                while len(got) <= len(kept):
                    got += await y.get("A", 9)
                assert got == [*kept, b"4"] and await left_of(y) == []
                assert (await y.queues.depth("A")).messages == 0
            if done:
                assert cut > 1 or (operation is delete and not there)
                return


async def test_a_large_message_cut_off_behind_each_transaction_is_there_or_leaves_nothing() -> None:
    for cut in itertools.count(1):
        async with group() as g:
            x, y = await g.member("X"), await g.member("Y")
            await x.queues.define(shared("A"))
            await settle()
            cutter = Cutter(x, cut)
            told = True
            try:
                await x.put("A", LARGE)
            except (CutOff, Refusal):
                told = False
            await x.crash()

            await StageCleaner(y.catalog).clean()
            there = (await y.queues.depth("A")).messages == 1
            assert there or not told, "acknowledged, and gone"
            if there:
                assert await y.get("A") == [LARGE]
            assert await left_of(y) == []
            if not cutter.cut:
                assert cut > 3 and there
                return


@pytest.mark.parametrize("lives", [False, True], ids=["it dies", "it lives on"])
async def test_a_large_message_on_its_way_to_the_backout_queue_is_in_one_place(lives: bool) -> None:
    """Behind each transaction: the member dies, or its backout fails and is called again."""
    for cut in itertools.count(1):
        async with group() as g:
            x, y = await g.member("X"), await g.member("Y")
            await x.queues.define(shared("B"))
            await x.queues.define(shared("A", backout_threshold=1, backout_queue="B"))
            await settle()
            await x.put("A", LARGE)
            unit = x.queues.begin()
            assert [m.message.payload for m in await x.queues.get(GetSpec("A"), unit=unit)] == [LARGE]
            cutter = Cutter(x, cut)
            try:
                await unit.backout()
            except CutOff:
                pass
            done = not cutter.cut
            if lives:
                cutter.cut = False
                if not done and not unit.empty:
                    await unit.backout()
                await StageCleaner(x.catalog).clean()
                chunks = [key for key in await left_of(y, "B") if b"/x/" in key]
                assert len({key.split(b"/")[3] for key in chunks}) <= 1, "what the backout that failed had staged"
            await x.crash()
            await StageCleaner(y.catalog).clean()

            depths = [(await y.queues.depth(queue)).messages for queue in "AB"]
            assert sum(depths) == 1 and (depths == [0, 1] or not (done or lives)), depths
            assert await y.get("AB"[depths.index(1)]) == [LARGE]
            assert (await left_of(y, "A"), await left_of(y, "B")) == ([], [])
            if done:
                assert cut > 4
                return
