"""Interleavings below the queues: stores that stall, watches that lose their place, bodies that are taken for rubbish."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qsg.manager import large
from qsg.manager.large import StageCleaner
from qsg.manager.membership import check_restored
from qsg.manager.placing import entry_of
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, Fenced, NewMessage, Unit
from qsg.store.contract import Delete, Get, GetResult, Put, StoreError, Unavailable, get_prefix
from qsg.store.follow import Follower
from qsg.store.memory import MemoryServer, MemoryStore
from qsg.store.sqlite import SqliteStore
from support.members import Member, group, shared
from support.simulated import simulated
from support.stores import serve

BODY = bytes(range(256)) * 4096


@pytest.mark.real_time
async def test_h1_a_member_that_is_paused_in_a_transaction_stops_nobody(tmp_path: Path) -> None:
    """A process that holds the write lock of a shared file gets SIGSTOP. Wrong: every member blocks. Prevented: one process owns the file
    and serves it; members have connections, and none of them a lock of the store. A second opener of the file is refused."""
    async with serve(tmp_path) as store:
        assert store.lose_replies is not None
        await store.store.txn([], [Put(b"k", b"before")], timeout_s=2)
        store.lose_replies(True)
        paused = asyncio.create_task(store.store.txn([], [Put(b"k", b"paused")], timeout_s=0.5))
        async with asyncio.timeout(5):
            for i in range(50):
                await store.second.txn([], [Put(b"k", b"%d" % i)], timeout_s=2)
        with pytest.raises(Unavailable):
            await paused
        store.lose_replies(False)
        with pytest.raises(StoreError, match="in use"):
            await SqliteStore(tmp_path / "store.db").open()


class Hasty(MemoryStore):
    """Behind the first list of a prefix somebody changes what was listed."""

    changed = False

    async def get(self, get: Get) -> GetResult:
        result = await super().get(get)
        if not self.changed:
            self.changed = True
            self.server.txn([], [Put(b"a/new", b"")], [])
            self.server.txn([], [Delete(b"a/1")], [])
        return result


@simulated
async def test_m4_what_is_committed_right_behind_a_list_is_seen() -> None:
    """A change is committed between the list of a prefix and the beginning of its watch. Wrong: never seen. Prevented: the watch begins at
    the list's revision + 1."""
    server = MemoryServer()
    server.txn([], [Put(b"a/1", b"")], [])
    async with Follower(Hasty(server), b"a/") as follower:
        await asyncio.sleep(0.5)
        assert list(follower.items) == [b"a/new"]


@simulated
async def test_m4_a_watch_behind_compaction_tells_the_differences_of_one_revision() -> None:
    """A watch is behind compaction; the list that follows mixes revisions or misses deletions. Wrong: stale view. Prevented: listed anew at
    one revision, and what differs is told, deletions too."""
    server = MemoryServer()
    writer, reader = server.client(), server.client()
    for name in (b"stays", b"goes", b"again"):
        server.txn([], [Put(b"a/" + name, b"")], [])
    told: list[tuple[bytes, bool]] = []
    async with Follower(reader, b"a/") as follower:
        follower.add_listener(lambda events: told.extend((e.kv.key, e.deleted) for e in events))
        reader.cut()
        server.txn([], [Delete(b"a/goes")], [])
        server.txn([], [Delete(b"a/again")], [])
        revision = server.txn([], [Put(b"a/again", b"")], []).revision
        await writer.compact(revision)
        reader.heal()
        await follower.wait(revision - 1, 5)
        await asyncio.sleep(0.1)

    assert told == [(b"a/again", True), (b"a/goes", True), (b"a/again", False)]


async def staged(member: Member) -> tuple[large.Stage, Unit]:
    """A large message that is staged, and the unit that would publish it."""
    opened = await member.queues.open_for_get("A")
    message = pb.Message(message_id=bytes(24), payload=BODY)
    body = message.SerializeToString()
    stage = await large.stage_message(opened, member.world, body)
    entry = entry_of(message, len(body))
    unit = Unit("put", compares=[opened.same()], puts=[NewMessage("A", 0, entry, b"")])
    stage.publish(unit, entry)
    return stage, unit


@simulated
async def test_c5_a_member_declared_dead_does_not_publish_what_was_removed_meanwhile() -> None:
    """X stages a large body, is paused and declared dead; a peer removes the staged chunks; X wakes and publishes the header. Wrong:
    acknowledged message without body. Prevented: every transaction compares the member key, and publishing the stage's marker."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        _, unit = await staged(x)
        x.stores["app1"].pause()
        await y.stores["app1"].txn([], [Delete(keys.member("X"))])
        assert await StageCleaner(y.catalog).clean() == 1
        late = asyncio.create_task(x.structures["app1"].commit(unit))
        await asyncio.sleep(0.01)
        assert x.in_flight("app1")
        x.stores["app1"].resume()

        with pytest.raises((Fenced, CompareFailed)):
            await late
        _, (headers,) = await y.structures["app1"].read(get_prefix(keys.headers("A")))
        assert headers.count == 0


@simulated
async def test_c5_a_member_declared_dead_writes_nothing_at_all() -> None:
    """As before, with nothing removed and nobody in its place yet. Wrong: what it writes after its verdict is acknowledged. Prevented:
    every transaction of a member compares its own key."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        await x.put("A", b"1")
        await x.get("A")
        x.stores["app1"].pause()
        late = asyncio.create_task(x.put("A", b"late"))
        await asyncio.sleep(0.01)
        assert x.in_flight("app1")
        await y.stores["app1"].txn([], [Delete(keys.member("X"))])
        x.stores["app1"].resume()

        with pytest.raises(Fenced):
            await late
        assert (await y.queues.depth("A")).messages == 0


@simulated
async def test_n8_the_body_of_a_published_message_is_not_taken_for_staged() -> None:
    """X publishes a large message, acknowledges, dies; a cleaner takes its body for staged. Wrong: loss. Prevented: publishing deletes the
    marker in the same transaction, and cleaners go by the marker."""
    async with group() as g:
        x, y = await g.member("X"), await g.member("Y")
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        await x.put("A", BODY)
        await x.crash()

        assert await StageCleaner(y.catalog).clean() == 0
        assert await y.get("A") == [BODY]


def test_n9_a_restored_store_is_known_by_its_revision_and_not_by_who_it_says_it_is() -> None:
    """A store restored with the same addresses and token keeps its cluster id, and an identity key inside it is restored too. Wrong:
    restore unnoticed. Prevented: members keep the highest revision they saw; lower, or a jump of 10^8, means restored."""
    check_restored(0, 5)
    check_restored(1_000, 1_000)
    for revision in (999, 1_000 + 10**8):
        with pytest.raises(Refusal) as refusal:
            check_restored(1_000, revision)
        assert refusal.value.reason is Reason.STRUCTURE_RESTORED
