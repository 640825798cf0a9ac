"""Puts beyond what may wait to be sent: first come, first served."""

from __future__ import annotations

import asyncio

import pytest

import qsg
from qsg.client.puts import Item, Route
from qsg.client.room import Room
from support.client_group import ClientGroup


def item(size: int) -> Item:
    return Item(Route("Q"), (), size, asyncio.get_running_loop().create_future())


@pytest.mark.parametrize("producer", ["", "P"])
async def test_puts_that_wait_for_room_keep_their_order(group: ClientGroup, producer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.client.qmgr.WAITING_BYTES_MAX", 1000)
    async with group.connect(producer=producer) as qmgr:
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i + b"x" * size) for i, size in enumerate((500, 700, 0, 700, 700, 2000, 0))))

    assert [payload[:1] for payload in group.payloads("Q")] == [b"%d" % i for i in range(7)]


async def test_who_comes_as_room_is_made_does_not_pass_who_waits() -> None:
    submitted: list[Item] = []
    room = Room(10, submitted.append)
    first, second, third = item(10), item(10), item(1)
    room.enter(first)
    room.enter(second)
    room.leave(first)
    room.enter(third)
    assert submitted == [first, second]
    room.leave(second)
    assert submitted == [first, second, third]


async def test_who_gives_up_in_the_line_holds_up_nobody() -> None:
    submitted: list[Item] = []
    room = Room(10, submitted.append)
    first, large, small, other = item(5), item(100), item(5), item(10)
    for each in (first, large, small, other):
        room.enter(each)
    room.leave(large)
    assert submitted == [first, small]
    room.leave(first)
    room.leave(small)
    assert submitted == [first, small, other]
    room.leave(other)
    room.enter(large)
    assert submitted[-1] is large, "one alone always has room"


async def test_who_waits_for_room_as_the_connection_is_closed_is_told(group: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.client.qmgr.WAITING_BYTES_MAX", 1)
    group.network.delay = lambda source, target: 0.01
    qmgr = await group.connect().open()
    puts = [asyncio.create_task(qmgr.put("Q", b"")) for _ in range(3)]
    await asyncio.sleep(0.001)
    await qmgr.close()
    answers = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(answer) for answer in answers] == [qsg.OutcomeUnknown, qsg.ConnectionBroken, qsg.ConnectionBroken]


async def test_a_put_that_cannot_be_submitted_fails_alone() -> None:
    def submit(put: Item) -> None:
        if put is bad:
            raise ValueError

    room = Room(10, submit)
    first, bad = item(10), item(10)
    room.enter(first)
    room.enter(bad)
    room.leave(first)
    assert isinstance(bad.answer.exception(), ValueError)
