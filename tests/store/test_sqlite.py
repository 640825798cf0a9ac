"""What the SQLite store promises beyond the contract: ownership of its file, group commit, compaction, watches that fall behind."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from qsg.store.contract import (
    Compacted,
    Delete,
    Get,
    NotApplied,
    Put,
    StoreError,
    TxnResult,
    Unavailable,
    absent,
    get_prefix,
    unchanged,
)
from qsg.store.sqlite import SqliteStore
from support.stores import PATIENT_S

KIB = 1024


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "s.db", compact_interval_s=0) as store:
        yield store


async def put(store: SqliteStore, key: bytes, value: bytes = b"v") -> TxnResult:
    return await store.txn([], [Put(key, value)], timeout_s=PATIENT_S)


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENT_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@asynccontextmanager
async def busy(store: SqliteStore) -> AsyncIterator[None]:
    """Its writer is held up with one request; what is asked meanwhile waits."""
    begun, over = threading.Event(), threading.Event()

    def hold(engine: object) -> None:
        begun.set()
        assert over.wait(PATIENT_S)

    held = asyncio.ensure_future(store._write(hold, 0, PATIENT_S))
    assert await asyncio.to_thread(begun.wait, PATIENT_S)
    try:
        yield
    finally:
        over.set()
        await held


# The file and who owns it


async def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with SqliteStore(path):
        with pytest.raises(StoreError, match="in use by another process"):
            await SqliteStore(path).open()
        program = f"import asyncio; from qsg.store.sqlite import SqliteStore; asyncio.run(SqliteStore({str(path)!r}).open())"
        other = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert "in use by another process" in other.stderr

    async with SqliteStore(path) as again:
        assert (await again.status()).revision == 1


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 5000], ids=["text", "damaged"])
async def test_a_file_that_is_not_a_store_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.db"
    path.write_bytes(content)

    with pytest.raises(StoreError, match=r"s\.db"):
        await SqliteStore(path).open()

    assert path.read_bytes() == content


async def test_another_programs_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE precious (x)")
    other.close()

    with pytest.raises(StoreError, match="not the file of a store"):
        await SqliteStore(path).open()


async def test_a_path_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        await SqliteStore(tmp_path / "missing" / "s.db").open()
    with pytest.raises(StoreError, match="cannot be opened"):
        (tmp_path / "folder").mkdir()
        await SqliteStore(tmp_path / "folder").open()


async def test_a_damaged_page_fails_the_store_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with SqliteStore(path) as store:
        for i in range(64):
            await put(store, b"k%03d" % i, b"x" * 2000)
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(path.stat().st_size - 8192))

    with pytest.raises(StoreError):  # refused at opening, or by the first request that meets the damage
        async with SqliteStore(path) as store:
            await store.get(get_prefix(b"k"))


async def test_closing_and_opening_keeps_everything(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    await put(store, b"a", b"1")
    await put(store, b"a", b"2")
    before = await store.get(Get(b"a"))
    await store.close()
    with pytest.raises(NotApplied):
        await put(store, b"a", b"3")
    with pytest.raises(Unavailable):
        await store.get(Get(b"a"))
    await store.open()

    assert await store.get(Get(b"a")) == before
    assert (await store.get(Get(b"a", revision=2))).kvs[0].value == b"1"
    await store.close()


# Groups


async def test_concurrent_transactions_share_commits(store: SqliteStore) -> None:
    before = store.groups
    async with busy(store):  # all of them are there before the first is begun
        asked = [asyncio.ensure_future(store.txn([absent(b"k%d" % i)], [Put(b"k%d" % i, b"v")])) for i in range(1000)]
        await asyncio.sleep(0.1)
    results = await asyncio.gather(*asked)

    assert all(r.succeeded for r in results)
    assert sorted(r.revision for r in results) == list(range(2, 1002))
    assert store.groups - before < 250


async def test_a_transaction_sees_those_before_it_in_its_group(store: SqliteStore) -> None:
    """All compare *absent* on one key, or count up one by one from what they read: exactly one of each step wins."""
    first = await asyncio.gather(*(store.txn([absent(b"k")], [Put(b"k", b"%d" % i)], [Get(b"k")], timeout_s=PATIENT_S) for i in range(50)))
    winner = [i for i, r in enumerate(first) if r.succeeded]
    assert len(winner) == 1
    assert {r.got(0).kvs[0].value for r in first if not r.succeeded} == {b"%d" % winner[0]}

    steps = await asyncio.gather(*(store.txn([unchanged(b"k", 2 + i)], [Put(b"k", b"")], timeout_s=PATIENT_S) for i in range(50)))
    assert all(r.succeeded for r in steps)


async def test_a_refused_transaction_does_not_disturb_its_group(store: SqliteStore) -> None:
    answers = await asyncio.gather(
        put(store, b"a"),
        store.txn([], [Put(b"b", b"", lease=77)]),
        store.txn([], [Get(b"a", revision=10**6), Put(b"c", b"")]),
        put(store, b"d"),
        return_exceptions=True,
    )

    assert [isinstance(a, StoreError) for a in answers] == [False, True, True, False]
    assert [kv.key for kv in (await store.get(get_prefix(b""))).kvs] == [b"a", b"d"]


async def test_a_request_that_was_not_begun_in_time_is_withdrawn(store: SqliteStore) -> None:
    async with busy(store):
        with pytest.raises(NotApplied):
            await store.txn([], [Put(b"k", b"")], timeout_s=0.05)

    assert (await store.get(Get(b"k"))).count == 0


async def test_a_defect_in_a_request_ends_the_store_not_the_callers(store: SqliteStore) -> None:
    with pytest.raises(Unavailable):
        await store._write(lambda engine: 1 // 0, 0, 10)

    await asyncio.wait_for(store.failed.wait(), PATIENT_S)
    with pytest.raises(Unavailable):
        await put(store, b"k")
    with pytest.raises(Unavailable):
        await store.status()


async def test_a_defect_in_a_read_is_its_own_alone(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="ZeroDivisionError"):
        await store._read(lambda view: 1 // 0)
    assert (await store.get(Get(b"k"))).count == 0
    assert not store.failed.is_set()


async def test_a_reader_that_can_read_no_more_fails_the_store(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(calls: object) -> None:
        raise OSError("gone")

    monkeypatch.setattr(store._reader, "_snapshot", snapshot)
    for _ in range(2):
        with pytest.raises(Unavailable, match="gone"):
            await store.get(Get(b"k"))
    await asyncio.wait_for(store.failed.wait(), PATIENT_S)


# History


async def test_compaction_frees_what_is_not_read_any_more(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with SqliteStore(path, history_s=0.0, compact_interval_s=0.1) as store:
        for i in range(200):
            await put(store, b"q/%d" % (i % 8), os.urandom(256 * KIB))
            if i % 4 == 3:
                await store.txn([], [Delete(b"q/", b"q0")], timeout_s=PATIENT_S)
        await store.txn([], [Delete(b"q/", b"q0")], timeout_s=PATIENT_S)

        async def small() -> bool:
            return (await store.status()).bytes_in_use < 256 * KIB

        await until(small)
        assert (await store.get(get_prefix(b"q/"))).count == 0
    assert path.stat().st_size < 200 * 256 * KIB


async def test_automatic_compaction_leaves_recent_history(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s.db", history_s=60.0, compact_interval_s=0.01) as store:
        for i in range(20):
            await put(store, b"k", b"%d" % i)
            await asyncio.sleep(0.05)

        batch = await anext(store.watch(b"k", b"", 2))
        assert [e.kv.value for e in batch.events] == [b"%d" % i for i in range(20)]


async def test_an_idle_store_is_compacted_too(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s.db", history_s=0.0, compact_interval_s=0.01) as store:

        async def small() -> bool:
            return (await store.status()).bytes_in_use < 200 * KIB

        await put(store, b"k", b"x" * 1_000_000)
        assert not await small()
        await store.txn([], [Delete(b"k")])
        await until(small)


async def test_after_compaction(store: SqliteStore) -> None:
    await put(store, b"a", b"1")
    await put(store, b"b", b"1")
    await put(store, b"a", b"2")
    deleted = (await store.txn([], [Delete(b"b")])).revision
    await put(store, b"a", b"3")

    await store.compact(deleted)

    assert [kv.value for kv in (await store.get(get_prefix(b"", revision=deleted))).kvs] == [b"2"]
    with pytest.raises(Compacted) as refusal:
        await store.get(Get(b"a", revision=deleted - 1))
    assert refusal.value.revision == deleted
    batch = await anext(store.watch(b"\0", b"\0", deleted))
    assert [(e.kv.key, e.deleted) for e in batch.events] == [(b"b", True), (b"a", False)]
    with pytest.raises(Compacted):
        await anext(store.watch(b"\0", b"\0", deleted - 1))
    with pytest.raises(Compacted):
        await store.compact(deleted)


async def test_the_revision_survives_compaction_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    async with SqliteStore(path, compact_interval_s=0) as store:
        await put(store, b"a")
        revision = (await store.txn([], [Delete(b"a")])).revision
        await store.compact(revision)
        await asyncio.sleep(0.1)
    async with SqliteStore(path) as store:
        assert (await store.status()).revision == revision
        assert (await put(store, b"a")).revision == revision + 1


# Watches


async def test_a_watch_that_fell_behind_catches_up_from_the_file(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.store.sqlite_watch.HELD_EVENTS", 10)
    monkeypatch.setattr("qsg.store.sqlite_watch.PAGE_BYTES", 1000)
    seen: list[tuple[int, bytes]] = []

    async def watch() -> None:
        async for batch in store.watch(b"k", b"l", 2):
            seen.extend((e.kv.mod_revision, e.kv.key) for e in batch.events)
            assert all(revision <= batch.revision for revision, _ in seen)
            if len(seen) == 600:
                return

    watching = asyncio.ensure_future(watch())
    for i in range(0, 300, 50):
        await asyncio.gather(
            *(store.txn([], [Put(b"k%d" % j, b""), Put(b"kk", b""), Put(b"z", b"")], timeout_s=PATIENT_S) for j in range(i, i + 50))
        )
    await asyncio.wait_for(watching, PATIENT_S)

    assert len(set(seen)) == 600
    assert [revision for revision, _ in seen] == sorted(revision for revision, _ in seen)


async def test_a_quiet_watch_says_how_far_the_store_has_come(store: SqliteStore) -> None:
    watch = store.watch(b"quiet", b"", 2)
    await put(store, b"other")
    revision = (await put(store, b"other")).revision

    async with asyncio.timeout(PATIENT_S):
        async for batch in watch:
            assert batch.events == ()
            if batch.revision == revision:
                return
    raise AssertionError("the watch ended")


async def test_closing_ends_watches(store: SqliteStore) -> None:
    waiting = asyncio.ensure_future(anext(store.watch(b"k", b"", 0)))
    await asyncio.sleep(0.05)

    await store.close()

    with pytest.raises(StoreError):
        await waiting


# Leases


async def test_leases_have_their_full_time_after_opening(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    lease = await store.grant(20)
    await store.txn([], [Put(b"m", b"", lease)])
    await asyncio.sleep(1.2)
    assert store.lease_remaining(lease)[1] <= 20 - 1.2
    await store.close()
    opening = time.monotonic()
    await store.open()

    left_s = store.lease_remaining(lease)[1]
    assert left_s >= 20 - (time.monotonic() - opening)
    assert (await store.get(Get(b"m"))).kvs[0].lease == lease
    await store.revoke(lease)
    assert (await store.get(Get(b"m"))).count == 0
    await store.close()


async def test_leases_have_their_full_time_after_a_stall(store: SqliteStore) -> None:
    """Interleaving N20: the process is stopped for longer than the lease lives, as by SIGSTOP: nobody is declared dead for it."""
    lease = await store.grant(2)
    await store.txn([], [Put(b"m", b"", lease)])
    await asyncio.sleep(0.3)
    time.sleep(2.6)  # noqa: ASYNC251
    await asyncio.sleep(0.3)

    assert (await store.get(Get(b"m"))).count == 1

    async def gone() -> bool:
        return (await store.get(Get(b"m"))).count == 0

    await until(gone)
