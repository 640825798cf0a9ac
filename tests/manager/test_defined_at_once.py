"""One defines or uses a queue while another deletes or defines it: whoever is told that it is done finds it so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Cell, Unit
from support.members import Member, group, shared


@pytest.mark.parametrize("behind", ["state", "sweep", "look"])
@pytest.mark.parametrize(("structure", "by"), [("app1", "define"), ("admin", "define"), ("admin", "purge")])
async def test_a_queue_that_is_made_again_while_it_is_deleted_stays(
    structure: str, by: str, behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is told that it is defined can use it, behind whichever step of the delete that was."""
    definition = Queue(name="A", structure=structure)
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(definition)
        await asyncio.sleep(0.05)
        store, place = x.queues.store, x.structures[structure]

        async def interrupted(step: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
            result = await step(*arguments)
            if behind != "look" or arguments == (keys.queue_state("A"),):
                monkeypatch.undo()
                await (y.queues.define(definition) if by == "define" else y.queues.purge("A"))
                await y.put("A", b"acknowledged")
            return result

        owner, name = {"state": (store, "_remove_state"), "sweep": (store, "_sweep"), "look": (place, "cell")}[behind]
        monkeypatch.setattr(owner, name, partial(interrupted, getattr(owner, name)))
        await x.queues.delete("A")
        await asyncio.sleep(0.05)
        assert [m.catalog.queue("A") for m in (x, y)] == [definition, definition]
        assert await x.get("A") == [b"acknowledged"]


async def test_of_two_that_define_a_queue_in_two_structures_at_once_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        make = x.queues.store._make

        async def overtaken(*arguments: Any, **options: Any) -> None:
            await make(*arguments, **options)
            await y.queues.define(Queue(name="A", structure="admin"))
            await y.put("A", b"acknowledged")

        monkeypatch.setattr(x.queues.store, "_make", overtaken)
        with pytest.raises(Refusal) as refused:
            await x.queues.define(shared("A"))
        assert refused.value.reason is Reason.DEFINITION_ERROR
        await asyncio.sleep(0.05)
        assert await x.get("A") == [b"acknowledged"]


async def test_a_private_queue_that_is_used_while_it_is_deleted_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its use makes it again, as long as its definition is there."""
    async with group() as g:
        x = await g.member("X")
        await x.queues.define(Queue(name="A"))
        sweep = x.queues.store._sweep

        async def used(*arguments: Any) -> None:
            monkeypatch.undo()
            await sweep(*arguments)
            await x.queues.store._open(Queue(name="A"))
            await x.put("A", b"acknowledged")

        monkeypatch.setattr(x.queues.store, "_sweep", used)
        with pytest.raises(Refusal) as refused:
            await x.queues.delete("A")
        assert refused.value.reason is Reason.OBJECT_IN_USE
        assert await x.get("A") == [b"acknowledged"]


async def test_who_deletes_a_queue_does_not_remove_the_definition_of_one_made_elsewhere_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.05)
        remove = x.queues.store._remove_state

        async def overtaken(*arguments: Any) -> Any:
            monkeypatch.undo()
            await y.queues.delete("A")
            await y.queues.define(Queue(name="A", structure="admin"))
            await y.put("A", b"acknowledged")
            return await remove(*arguments)

        monkeypatch.setattr(x.queues.store, "_remove_state", overtaken)
        with pytest.raises(Refusal) as refused:
            await x.queues.delete("A")
        assert refused.value.reason is Reason.CHANGED_MEANWHILE
        await asyncio.sleep(0.05)
        assert await x.get("A") == [b"acknowledged"]


async def test_a_queue_is_not_made_over_what_another_deletion_has_still_to_remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looked before has found nothing; since then the queue was made, filled and begun to be deleted by somebody else."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        place = y.structures["app1"]
        commit = place.commit

        async def overtaken(*arguments: Any, **options: Any) -> Any:
            monkeypatch.undo()
            await x.queues.define(shared("A"))
            await x.put("A", b"old")
            await x.queues.store._remove_state(x.structures["app1"], "A", True)
            return await commit(*arguments, **options)

        monkeypatch.setattr(place, "commit", overtaken)
        await y.queues.define(shared("A"))
        with pytest.raises(Refusal) as refused:
            await y.get("A")
        assert refused.value.reason is Reason.NO_MSG_AVAILABLE


@pytest.mark.parametrize(("structure", "held_up"), [("app1", "doubt"), ("admin", "remove")])
async def test_an_alteration_in_the_same_transaction_does_not_end_a_delete_half_way(
    structure: str, held_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are commands at one member. The state is gone by then: with the definition alone nobody could use the queue."""
    async with group() as g:
        x = await g.member("X", slots=1)
        await x.queues.define(Queue(name="A", structure=structure))
        admin, at, go = x.structures["admin"], asyncio.Semaphore(0), asyncio.Event()
        commit = admin.commit

        async def gathered(unit: Unit, **options: Any) -> Any:
            if unit.label.split()[0] in ("swap", held_up):
                at.release()
                await go.wait()
            return await commit(unit, **options)

        monkeypatch.setattr(admin, "commit", gathered)
        altering = asyncio.create_task(x.queues.define(Queue(name="A", structure=structure, max_depth=7)))
        await at.acquire()
        deleting = asyncio.create_task(x.queues.delete("A"))
        await at.acquire()
        go.set()
        await asyncio.gather(altering, deleting)
        state = await x.structures[structure].cell(keys.queue_state("A"))
        assert (x.catalog.queue("A") is None) == (state.value is None)


async def _altered(by: Member, **attributes: object) -> None:
    await by.queues.define(shared("A", **attributes))
    await asyncio.sleep(0.05)


async def test_a_queue_that_is_altered_while_it_is_opened_is_not_taken_for_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch has shown the new definition before the answer that shows the old state has come."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await _altered(x, put_enabled=False)
        place = y.structures["app1"]
        cell = place.cell

        async def overtaken(key: bytes) -> Cell:
            found = await cell(key)
            monkeypatch.undo()
            await _altered(x)
            return found

        monkeypatch.setattr(place, "cell", overtaken)
        await y.queues.depth("A")
        await y.put("A", b"acknowledged")
        assert await y.get("A") == [b"acknowledged"]


async def test_an_alteration_that_was_cut_off_and_taken_back_holds_nowhere() -> None:
    """The definition was never written, so that nobody is told of it; the state had it for a while."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await _altered(x)
        await x.queues.store._make(x.structures["app1"], shared("A", put_enabled=False), replace=True)
        with pytest.raises(Refusal) as refused:
            await y.put("A", b"refused")
        assert refused.value.reason is Reason.PUT_INHIBITED
        await _altered(x)
        await y.put("A", b"acknowledged")
        assert await y.get("A") == [b"acknowledged"]
