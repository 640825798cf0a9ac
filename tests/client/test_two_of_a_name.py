"""Two living applications open one producer's name: the older one gives way, whatever it had sent before, and when it comes back."""

from __future__ import annotations

import asyncio

import pytest

import qsg
from qsg.manager.producers import ProducerState, Wanted
from qsg.pb import client_pb2 as pb
from support.client_group import ClientGroup
from support.fake_backend import FakeBackend


class Held:
    """Breaks the connection behind each of these steps at member X, in order, and lets nobody past the last one before `go`.

    Who is broken off before something is done does not do it any more.
    """

    def __init__(self, group: ClientGroup, *steps: str) -> None:
        self.go = asyncio.Event()
        self.reached = asyncio.Event()
        self._group = group
        self._steps = list(steps)
        group.durable.gate = self._gate

    async def _gate(self, step: str, member: str) -> None:
        if member != "X" or not self._steps or step != self._steps[0]:
            return
        self._steps.pop(0)
        if not self._steps:
            self.reached.set()
            await self.go.wait()
            return
        self._group.network.reset("app", member)
        if step.startswith("before"):
            await asyncio.Event().wait()


async def test_where_nobody_has_put_yet(group: ClientGroup) -> None:
    async with group.connect("X", producer="P") as older, group.connect("Y", producer="P") as newer:
        await older.producer_state("Q")
        await newer.producer_state("Q")
        group.network.reset("app", "X")
        await asyncio.sleep(0.1)
        with pytest.raises(qsg.ProducerFenced):
            await older.put("Q", b"1")
        await newer.put("Q", b"2")

    assert group.payloads("Q") == [b"2"]


@pytest.mark.parametrize("put", [True, False], ids=["the newer has put", "nobody has put"])
async def test_whose_first_opening_was_not_answered(group: ClientGroup, put: bool) -> None:
    async with group.connect("X", producer="P") as older, group.connect("Y", producer="P") as newer:
        held = Held(group, "after open", "before open")
        late = asyncio.create_task(older.put("Q", b"1"))
        await held.reached.wait()
        await (newer.put("Q", b"2") if put else newer.producer_state("Q"))
        held.go.set()
        with pytest.raises(qsg.ProducerFenced):
            await late
        await newer.put("Q", b"3")

    assert group.payloads("Q") == [b"2"] * put + [b"3"]


async def test_a_put_is_not_told_as_done_by_the_number_of_the_newer_one(group: ClientGroup) -> None:
    """The newer one's opening looked like the opening of ours that was not answered."""
    async with group.connect("X", producer="P") as older, group.connect("Y", producer="P") as newer:
        await older.producer_state("Q")
        held = Held(group, "before put", "before open", "before open")
        late = asyncio.create_task(older.put("Q", b"1"))
        await held.reached.wait()
        await newer.put("Q", b"2")
        held.go.set()
        with pytest.raises(qsg.OutcomeUnknown):
            await late
        with pytest.raises(qsg.ProducerFenced):
            await older.put("Q", b"1")
        await newer.put("Q", b"3")

    assert group.payloads("Q") == [b"2", b"3"]


async def test_a_commit_is_not_told_as_done_by_the_number_of_the_newer_one(group: ClientGroup) -> None:
    async with group.connect("X", producer="P") as older, group.connect("Y", producer="P") as newer:
        held = Held(group, "before commit", "before open", "before open")
        unit = older.unit()
        await unit.put("Q", b"1")
        late = asyncio.create_task(unit.commit())
        await held.reached.wait()
        async with newer.unit() as other:
            await other.put("Q", b"2")
        held.go.set()
        with pytest.raises(qsg.OutcomeUnknown):
            await late
        async with newer.unit() as other:
            await other.put("Q", b"3")

    assert group.payloads("Q") == [b"2", b"3"]


async def test_the_newer_of_two_producers_of_one_name_wins(group: ClientGroup) -> None:
    async with group.connect(producer="P") as older, group.connect(producer="P") as newer:
        await older.put("Q", b"1")
        await newer.put("Q", b"2")
        with pytest.raises(qsg.ProducerFenced):
            await older.put("Q", b"3")
        with pytest.raises(qsg.ProducerFenced):
            await older.put("Q", b"4")
        await newer.put("Q", b"5")

    assert group.payloads("Q") == [b"1", b"2", b"5"]


@pytest.mark.parametrize("old", [False, True], ids=["", "at members of before"])
@pytest.mark.parametrize("queue", ["Q", "OTHER"])
async def test_the_older_of_two_that_reconnects_gives_way(group: ClientGroup, queue: str, old: bool) -> None:
    """Also where it asks for a queue that it does not know yet. Members that know no limit let it fence the newer, but it ends."""
    if old:
        for backend in group.backends.values():
            forgets_the_limit(backend)
    async with group.connect("X", producer="P") as older, group.connect("Y", producer="P") as newer:
        await older.put("Q", b"1")
        await newer.put("Q", b"2")
        group.network.reset("app", "X")
        await asyncio.sleep(0.1)
        answers = await asyncio.gather(*(older.put(queue, b"3") for _ in range(3)), return_exceptions=True)
        assert [type(answer) for answer in answers] == [qsg.ProducerFenced] * 3
        if not old:
            await newer.put("Q", b"4")

    assert group.payloads("Q") + group.payloads("OTHER") == [b"1", b"2"] + [b"4"] * (not old)


def forgets_the_limit(backend: FakeBackend) -> None:
    opens = backend.open_producer

    async def open_producer(opening: pb.OpenProducer, wanted: Wanted) -> ProducerState:
        opening.epochs_max.clear()
        opening.opener = b""
        return await opens(opening, wanted)

    backend.open_producer = open_producer  # type: ignore[method-assign]
