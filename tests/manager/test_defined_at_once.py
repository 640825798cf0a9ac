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
from support.members import group, shared


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

        async def overtaken(*arguments: Any, **options: Any) -> bool:
            made = await make(*arguments, **options)
            await y.queues.define(Queue(name="A", structure="admin"))
            await y.put("A", b"acknowledged")
            return made

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
