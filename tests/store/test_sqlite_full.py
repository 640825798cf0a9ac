"""A store that is full, by quota or by disk, refuses what grows it, lets what shrinks it pass, and recovers by itself."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from qsg.store.contract import Delete, Get, NoSpace, Put, absent, get_prefix
from qsg.store.sqlite import SqliteStore
from qsg.store.sqlite_engine import Engine
from qsg.store.sqlite_files import Reserve
from support.group import eventually
from support.stores import PATIENT_S

KIB = 1024
MIB = 1024 * KIB


async def fill(store: SqliteStore, at_most: int = 400, size: int = 100 * KIB) -> int:
    """Puts until the store is full; returns how many were acknowledged."""
    for i in range(at_most):
        try:
            await store.txn([], [Put(b"q/%05d" % i, os.urandom(size)), Put(b"n", b"%05d" % (i + 1))], timeout_s=PATIENT_S)
        except NoSpace:
            return i
    raise AssertionError("never full")


async def check(store: SqliteStore, filled: int) -> None:
    """Nothing is there by halves."""
    result = await store.txn([], [get_prefix(b"q/", keys_only=True), Get(b"n")])
    assert result.got(0).count == filled
    assert result.got(1).kvs[0].value == b"%05d" % filled


async def drain(store: SqliteStore, filled: int) -> None:
    for i in range(filled):
        await store.txn([], [Delete(b"q/%05d" % i), Put(b"n", b"%05d" % (filled - i - 1))], timeout_s=PATIENT_S)


async def put_when_there_is_space(store: SqliteStore) -> None:
    async with asyncio.timeout(PATIENT_S):
        while True:
            try:
                await store.txn([], [Put(b"again", b"x" * 50 * KIB)], timeout_s=PATIENT_S)
            except NoSpace:
                await asyncio.sleep(0.1)
            else:
                return


# Quota


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(tmp_path / "s.db", quota_bytes=2 * MIB, history_s=0.1, compact_interval_s=0.1) as store:
        yield store


async def test_a_quota_refuses_growth_and_lets_it_drain(small: SqliteStore) -> None:
    filled = await fill(small)

    assert 10 <= filled <= 21
    assert (await small.status()).bytes_quota == 2 * MIB
    await check(small, filled)
    await small.txn([absent(b"c")], [Put(b"c", b"a small record that draining needs")])
    await drain(small, filled)
    await put_when_there_is_space(small)


async def test_a_transaction_that_shrinks_passes_beyond_the_quota(small: SqliteStore) -> None:
    filled = await fill(small)

    await small.txn([], [Delete(b"q/", b"q/00003"), Put(b"moved", os.urandom(200 * KIB))])
    with pytest.raises(NoSpace):
        await small.txn([], [Delete(b"q/00003"), Put(b"more", os.urandom(200 * KIB))])

    assert (await small.get(get_prefix(b"q/"))).count == filled - 3
    assert (await small.get(Get(b"more"))).count == 0


# Disk


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A file system of 12 MiB where one can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    mounted = False
    if mount and os.geteuid() == 0:
        mounted = (
            subprocess.run([mount, "-t", "tmpfs", "-o", "size=12m", "tmpfs", folder], check=False, capture_output=True).returncode == 0
        )
    yield folder if mounted else None
    if mounted:
        subprocess.run(["umount", "--lazy", folder], check=True)


async def limit_file(store: SqliteStore, pages: int) -> None:
    """SQLite answers *full* as if the disk were."""

    def run(engine: Engine) -> None:
        store_pages.append(engine)

    store_pages: list[Engine] = []
    await store._write(run, 0, 10)
    store_pages[0].connection.execute(f"PRAGMA max_page_count = {pages}")


async def test_a_full_file_refuses_puts_drains_and_recovers(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s.db", history_s=0.1, compact_interval_s=0.1, reserve_bytes=MIB) as store:
        await limit_file(store, 400)
        filled = await fill(store)

        assert filled >= 10
        await check(store, filled)
        both = await asyncio.gather(
            store.txn([], [Put(b"big", b"x" * MIB)], timeout_s=PATIENT_S),
            store.txn([], [Delete(b"q/00000")], timeout_s=PATIENT_S),
            return_exceptions=True,
        )
        assert isinstance(both[0], NoSpace)
        assert not isinstance(both[1], BaseException)
        await drain(store, filled)
        await put_when_there_is_space(store)
        assert not store.failed.is_set()


async def test_a_full_disk_refuses_puts_drains_and_recovers(tmp_path: Path, tiny_disk: Path | None) -> None:
    folder = tiny_disk or tmp_path
    async with SqliteStore(folder / "s.db", history_s=0.1, compact_interval_s=0.1, reserve_bytes=3 * MIB) as store:
        if tiny_disk is None:
            await limit_file(store, 900)
        filled = await fill(store)
        await check(store, filled)
        await drain(store, filled)
        await put_when_there_is_space(store)
        refilled = await fill(store)
        await check(store, refilled)

    async with SqliteStore(folder / "s.db", reserve_bytes=3 * MIB) as again:
        await check(again, refilled)


async def test_space_given_from_outside_ends_it(tmp_path: Path, tiny_disk: Path | None) -> None:
    """Another program filled the disk and leaves."""
    folder = tiny_disk or tmp_path
    async with SqliteStore(folder / "s.db", reserve_bytes=MIB) as store:
        await store.txn([], [Put(b"q/before", b""), Put(b"n", b"00000")])
        if tiny_disk is None:
            await limit_file(store, 20)
        else:
            hog(folder / "hog")
        filled = await fill(store, size=20 * KIB)
        if tiny_disk is None:
            await limit_file(store, 100_000)
        else:
            (folder / "hog").unlink()
        await store.txn([], [Delete(b"q/before")])
        await put_when_there_is_space(store)
        await check(store, filled)


async def test_a_full_disk_takes_small_records_and_says_that_there_is_no_room(tmp_path: Path, tiny_disk: Path | None) -> None:
    """Draining writes records of what is gone, of guards, of a channel's bind; they go into the reserve, and messages must not."""
    if tiny_disk is None:
        pytest.skip("no file system can be mounted here; the next test simulates a full one")
    async with SqliteStore(tiny_disk / "s.db", reserve_bytes=4 * MIB) as store:
        await store.txn([], [Put(b"q/before", b"x" * 100 * KIB)], timeout_s=PATIENT_S)
        hog(tiny_disk / "hog")
        filled = await fill(store)
        await takes_small_records(store)
        (tiny_disk / "hog").unlink()
        await takes_all_again(store, filled)


async def test_a_file_that_cannot_grow_takes_small_records_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: the file grows by its reserve, and there is no reserve again until somebody makes room."""
    async with SqliteStore(tmp_path / "s.db", reserve_bytes=4 * MIB) as store:
        await store.txn([], [Put(b"q/before", b"x" * 100 * KIB)], timeout_s=PATIENT_S)
        with monkeypatch.context() as full:
            full.setattr(Reserve, "take", lambda reserve: False)
            await limit_file(store, 200)
            filled = await fill(store)
            await limit_file(store, 1200)
            await takes_small_records(store)
        await limit_file(store, 100_000)
        await takes_all_again(store, filled)


async def takes_small_records(store: SqliteStore) -> None:
    assert (await store.status()).bytes_quota <= (await store.status()).bytes_in_use
    for i in range(50):
        await store.txn([], [Put(b"r/%02d" % i, b"x" * KIB), Put(b"g", b"%d" % i)], timeout_s=PATIENT_S)
    with pytest.raises(NoSpace):
        await store.txn([], [Put(b"q/more", b"x" * 100 * KIB)], timeout_s=PATIENT_S)


async def takes_all_again(store: SqliteStore, filled: int) -> None:
    await eventually(lambda: _without_limit(store), 20)
    await store.txn([], [Put(b"again", b"x" * 50 * KIB)], timeout_s=PATIENT_S)
    assert (await store.get(get_prefix(b"q/"))).count == filled + 1


async def _without_limit(store: SqliteStore) -> bool:
    return not (await store.status()).bytes_quota


def hog(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            return
