"""The follower: one consistent live copy, whatever happens to the path and to history."""

from __future__ import annotations

import asyncio
from random import Random

import pytest

from qsg.store.contract import Delete, Event, Get, GetResult, KeyValue, Put, StoreError, get_prefix
from qsg.store.faults import RandomFaults
from qsg.store.follow import Follower
from qsg.store.memory import MemoryServer, MemoryStore
from support.simulated import simulated


@pytest.fixture
def server() -> MemoryServer:
    return MemoryServer(random=Random(1))


async def put(store: MemoryStore, key: bytes, value: bytes = b"v") -> int:
    return (await store.txn([], [Put(key, value)])).revision


async def delete(store: MemoryStore, key: bytes) -> int:
    return (await store.txn([], [Delete(key)])).revision


@simulated
async def test_lists_then_follows(server: MemoryServer) -> None:
    writer = server.client()
    await put(writer, b"a/1", b"one")
    await put(writer, b"b/1", b"other prefix")
    async with Follower(server.client(), b"a/") as f:
        assert {k: kv.value for k, kv in f.items.items()} == {b"a/1": b"one"}
        await put(writer, b"a/2", b"two")
        await put(writer, b"b/2")
        await f.wait_for(lambda items: b"a/2" in items, 1)
        revision = await delete(writer, b"a/1")
        assert await f.wait(revision - 1, 1)
        assert list(f.items) == [b"a/2"]
        assert f.revision == revision


@simulated
async def test_every_subscriber_and_listener_sees_every_later_list(server: MemoryServer) -> None:
    writer = server.client()
    heard: list[list[Event]] = []
    async with Follower(server.client(), b"a/") as f:
        remove = f.add_listener(heard.append)
        first, second = f.changes(), f.changes()
        await writer.txn([], [Put(b"a/1", b"x"), Put(b"a/2", b"y")])
        one, two = await anext(first), await anext(second)
        assert [e.kv.key for e in one] == [b"a/1", b"a/2"]
        assert one == two == heard[0]
        remove()
        third = f.changes()
        await delete(writer, b"a/1")
        assert [(e.kv.key, e.deleted) for e in await anext(third)] == [(b"a/1", True)]
        assert [e.kv.key for e in await anext(first)] == [b"a/1"]
        assert len(heard) == 1
    assert [e async for e in third] == []


@simulated
async def test_compaction_while_cut_off_tells_the_differences(server: MemoryServer) -> None:
    """The re-list after a compaction shows deletions, and a key that was deleted and made again as both."""
    writer, reader = server.client(), server.client()
    for name in (b"stays", b"goes", b"changes", b"again"):
        await put(writer, b"a/" + name)
    async with Follower(reader, b"a/") as f:
        changes = f.changes()
        reader.cut()
        await delete(writer, b"a/goes")
        await delete(writer, b"a/again")
        again = await put(writer, b"a/again", b"second")
        changed = await put(writer, b"a/changes", b"new")
        new = await put(writer, b"a/new")
        await writer.compact(new)
        reader.heal()
        events = await asyncio.wait_for(anext(changes), 5)
        assert [(e.kv.key, e.deleted, e.kv.mod_revision) for e in events] == [
            (b"a/again", True, new),
            (b"a/goes", True, new),
            (b"a/again", False, again),
            (b"a/changes", False, changed),
            (b"a/new", False, new),
        ]
        assert {k: kv.mod_revision for k, kv in f.items.items()} == {
            kv.key: kv.mod_revision for kv in (await writer.get(get_prefix(b"a/"))).kvs
        }


@simulated
async def test_pages_of_a_long_prefix_are_of_one_revision(server: MemoryServer) -> None:
    """Keys put while the pages are read come by the watch, not by the list."""
    writer, reader = server.client(), server.client()
    for start in range(0, 2500, 100):
        await writer.txn([], [Put(b"a/%05d" % i, b"") for i in range(start, start + 100)])
    before = (await writer.status()).revision
    follower = Follower(reader, b"a/")
    lists: list[list[Event]] = []
    follower.add_listener(lists.append)
    follower.start()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await put(writer, b"a/99999", b"late")
    await follower.wait_for(lambda items: b"a/99999" in items, 5)
    assert len(lists[0]) in (2500, 2501)
    assert len(follower.items) == 2501
    assert all(e.kv.mod_revision <= before for e in lists[0][:2500])
    await follower.close()


@simulated
async def test_survives_a_store_that_does_not_answer(server: MemoryServer) -> None:
    writer = server.client()
    reader = server.client(RandomFaults(Random(7), delay_s=0.002, refused=0.2, lost=0.0, reply_lost=0.0))
    async with Follower(reader, b"a/") as f:
        reader.cut_watches()
        for i in range(50):
            await put(writer, b"a/%d" % (i % 5), b"%d" % i)
            if i % 10 == 0:
                reader.cut_watches()
        await f.wait_for(lambda items: items.get(b"a/4", KeyValue(b"", b"", 0, 0)).value == b"49", 5)
        assert [f.items[b"a/%d" % i].value for i in range(5)] == [b"45", b"46", b"47", b"48", b"49"]


@simulated
async def test_events_rebuild_the_items(server: MemoryServer) -> None:
    """Applying every list of events, in order, gives `items`: through compactions and cuts."""
    random = Random(3)
    writer, reader = server.client(), server.client()
    copy: dict[bytes, bytes] = {}

    def apply(events: list[Event]) -> None:
        for e in events:
            if e.deleted:
                del copy[e.kv.key]  # a deletion of what was never told would be an error
            else:
                copy[e.kv.key] = e.kv.value

    f = Follower(reader, b"a/")
    f.add_listener(apply)
    await f.ready()
    for i in range(300):
        key = b"a/%d" % random.randrange(20)
        await (put(writer, key, b"%d" % i) if random.random() < 0.6 else delete(writer, key))
        if i % 60 == 30:
            reader.cut()
        if i % 60 == 50:
            await writer.compact((await writer.status()).revision)
            reader.heal()
    last = await put(writer, b"a/last")
    assert await f.wait(last - 1, 5)
    assert copy == {k: kv.value for k, kv in f.items.items()} == {kv.key: kv.value for kv in (await writer.get(get_prefix(b"a/"))).kvs}
    await f.close()


@simulated
async def test_waiting_ends_with_time_and_with_close(server: MemoryServer) -> None:
    f = Follower(server.client(), b"a/")
    await f.ready()
    with pytest.raises(TimeoutError):
        await f.wait_for(lambda items: bool(items), 0.01)
    assert not await f.wait(f.revision, 0.01)
    waiting = asyncio.create_task(f.wait_for(lambda items: bool(items)))
    await asyncio.sleep(0)
    await f.close()
    with pytest.raises(StoreError):
        await waiting
    with pytest.raises(StoreError):
        await f.ready()


@simulated
async def test_a_failing_listener_is_reported_and_does_not_stop_the_copy(server: MemoryServer) -> None:
    reported: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(repr(context["exception"])))
    writer = server.client()
    async with Follower(server.client(), b"a/") as f:

        def fails(events: list[Event]) -> None:
            raise KeyError("defect")

        f.add_listener(fails)
        await put(writer, b"a/1")
        await put(writer, b"a/2")
        await f.wait_for(lambda items: len(items) == 2, 1)
    assert reported and set(reported) == {"KeyError('defect')"}


@simulated
async def test_empty_prefix_follows_everything(server: MemoryServer) -> None:
    writer = server.client()
    await put(writer, b"x")
    async with Follower(server.client(), b"") as f:
        await put(writer, b"\xff\xff")
        await f.wait_for(lambda items: set(items) == {b"x", b"\xff\xff"}, 1)
        got = await writer.get(Get(b"\0", b"\0"))
        assert f.items == {kv.key: kv for kv in got.kvs}


@simulated
async def test_a_restored_store_is_told_as_differences_and_one_that_went_back_is_not_believed(server: MemoryServer) -> None:
    writer = server.client()
    await put(writer, b"a/1", b"old")
    snapshot = server.snapshot()
    await put(writer, b"a/1", b"new")
    await put(writer, b"a/2")
    async with Follower(server.client(), b"a/") as f:
        changes = f.changes()
        server.restore(snapshot)
        events = await asyncio.wait_for(anext(changes), 5)
        assert [(e.kv.key, e.kv.value, e.deleted) for e in events] == [(b"a/2", b"", True), (b"a/1", b"old", False)]
        at = f.revision
        server.restore(snapshot, bump_revision=0)
        await put(writer, b"a/3")
        assert not await f.wait(at, 5)
        assert list(f.items) == [b"a/1"]


@simulated
async def test_a_compaction_between_two_pages_starts_the_list_again(server: MemoryServer) -> None:
    """Otherwise a page of one revision would stand beside a page of another."""
    writer, reader = server.client(), server.client()
    for start in range(0, 1500, 100):
        await writer.txn([], [Put(b"a/%05d" % i, b"old") for i in range(start, start + 100)])
    asked = 0
    ask = server.get

    def compacting(get: Get) -> GetResult:
        nonlocal asked
        asked += 1
        result = ask(get)
        if asked == 1:  # between the first page and the second
            server.txn([], [Delete(b"a/00000"), Put(b"a/01400", b"new")], [])
            server.compact(server.state.revision)
        return result

    server.get = compacting  # type: ignore[method-assign]
    lists: list[list[Event]] = []
    f = Follower(reader, b"a/")
    f.add_listener(lists.append)
    await f.ready()
    assert asked == 4  # one page, one refused, two pages
    assert len(lists) == 1 and len(lists[0]) == len(f.items) == 1499
    assert (f.items[b"a/01400"].value, b"a/00000" in f.items) == (b"new", False)
    await f.close()
