"""Browse: pages in the order of get, nothing taken or locked, cursors that stay valid."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.browsing import BrowseSpec
from qsg.manager.getting import GetSpec
from qsg.rules.reasons import Reason, Refusal
from support.members import Group, Member, group, shared


async def member(g: Group) -> Member:
    x = await g.member("X")
    await x.queues.define(shared("A"))
    return x


async def page(x: Member, count: int = 1, cursor: bytes = b"", **spec: object) -> tuple[list[bytes], bytes]:
    messages, after = await x.queues.browse(BrowseSpec("A", messages_max=count, cursor=cursor, **spec))  # type: ignore[arg-type]
    return [m.message.payload for m in messages], after


async def end(x: Member, cursor: bytes = b"", **spec: object) -> None:
    with pytest.raises(Refusal) as refusal:
        await page(x, 1, cursor, **spec)
    assert refusal.value.reason is Reason.NO_MSG_AVAILABLE


async def test_pages_follow_the_order_of_get() -> None:
    async with group() as g:
        x = await member(g)
        await end(x)
        for i in range(10):
            await x.put("A", b"low%d" % i, priority=i % 2)
        await x.put("A", *(b"many%d" % i for i in range(10)))

        seen, cursor = [], b""
        for count in (1, 3, 7, 100):
            some, cursor = await page(x, count, cursor)
            seen += some
        await end(x, cursor)

        got: list[bytes] = []
        while len(got) < 20:
            got += await x.get("A", 100)
        assert seen == got


async def test_messages_come_and_go_under_a_cursor() -> None:
    async with group() as g:
        x = await member(g)
        await x.put("A", b"1", b"2", b"3")
        await x.put("A", b"4")
        _, cursor = await page(x, 2)
        assert await x.get("A", 3) == [b"1", b"2", b"3"]
        await x.put("A", b"5")
        assert (await page(x, 9, cursor))[0] == [b"4", b"5"]


async def test_claimed_and_expired_messages_are_not_shown_and_nothing_is_locked() -> None:
    async with group() as g:
        x = await member(g)
        await x.put("A", b"1", b"2", b"3")
        await x.put("A", b"expired", expires_at_ms=g.wall.ms)
        unit = x.queues.begin()
        await x.queues.get(GetSpec("A"), unit=unit)

        assert (await page(x, 9))[0] == [b"2", b"3"]
        assert await x.get("A", 9) == [b"2", b"3"]
        await unit.backout()
        messages, _ = await x.queues.browse(BrowseSpec("A"))
        assert messages[0].backouts == 1


async def test_by_id_and_headers_only() -> None:
    async with group() as g:
        x = await member(g)
        red = b"r" * 24
        ids = await x.put("A", b"1", b"2")
        await x.put("A", b"red", correlation_id=red)
        await x.put("A", bytes(600_000), correlation_id=red)

        assert (await page(x, 9, message_id=ids[1]))[0] == [b"2"]
        messages, _ = await x.queues.browse(BrowseSpec("A", messages_max=9, correlation_id=red, headers_only=True))
        assert [(m.message.payload, m.message.correlation_id) for m in messages] == [(b"", red), (b"", red)]
        seen, cursor = await page(x, 1, correlation_id=red)
        assert seen == [b"red"]
        assert (await page(x, 1, cursor, correlation_id=red))[0] == [bytes(600_000)]


@pytest.mark.parametrize("cursor", [b"\x00nonsense", b"\xff", b"1" * 50])
async def test_bytes_that_are_no_cursor(cursor: bytes) -> None:
    async with group() as g:
        x = await member(g)
        await x.put("A", b"1")
        with pytest.raises(Refusal) as refusal:
            await page(x, 1, cursor)
        assert refusal.value.reason is Reason.OPTIONS_ERROR


async def test_a_page_is_bounded_by_bytes() -> None:
    async with group() as g:
        x = await member(g)
        for _ in range(30):
            await x.put("A", bytes(200_000))
        seen, cursor = await page(x, 1_000)
        assert 20 <= len(seen) < 25
        rest, _ = await page(x, 1_000, cursor)
        assert len(seen) + len(rest) == 30


async def test_browse_beside_getters() -> None:
    """Every message is shown at most once by a browse that runs beside a getter, and the getter gets all."""
    async with group() as g:
        x = await member(g)
        for i in range(40):
            await x.put("A", *(b"%d.%d" % (i, k) for k in range(5)))
        seen: list[bytes] = []
        got: list[bytes] = []

        async def browse() -> None:
            cursor = b""
            while True:
                try:
                    some, cursor = await page(x, 7, cursor)
                except Refusal:
                    return
                seen.extend(some)

        async def get() -> None:
            while len(got) < 200:
                got.extend(await x.get("A", 9))

        await asyncio.gather(browse(), get())
        assert len(set(seen)) == len(seen)
        assert got == [b"%d.%d" % (i, k) for i in range(40) for k in range(5)]
