"""What was acknowledged is there after the process is killed, and nothing is there by halves; snapshots and restores."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

from qsg.store.contract import Compacted, Get, LeaseNotFound, Put, StoreError, get_prefix
from qsg.store.sqlite import SqliteStore, restore
from qsg.store.sqlite_engine import Engine
from support.stores import PATIENT_S

WRITER = """
import asyncio, sys
from qsg.store.contract import Delete, Put
from qsg.store.sqlite import SqliteStore

async def write(store, lane):
    for i in range(100_000):
        value = b"%d" % i * (20_000 if i % 7 == 0 else 1)
        ops = [Put(b"a/%d/%06d" % (lane, i), value), Put(b"b/%d/%06d" % (lane, i), value), Put(b"last/%d" % lane, b"%d" % i)]
        if i > 20:
            ops += [Delete(b"a/%d/%06d" % (lane, i - 20)), Delete(b"b/%d/%06d" % (lane, i - 20))]
        await store.txn([], ops, timeout_s=30)
        sys.stdout.write("%d %d\\n" % (lane, i))
        sys.stdout.flush()

async def main():
    async with SqliteStore(sys.argv[1], history_s=0.1, compact_interval_s=0.1) as store:
        await asyncio.gather(*(write(store, lane) for lane in range(8)))

asyncio.run(main())
"""


async def test_a_killed_writer_loses_nothing_and_leaves_no_half(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    revision = 1
    for round_ in range(4):
        child = await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(path), stdout=asyncio.subprocess.PIPE)
        assert child.stdout is not None
        lines = [await child.stdout.readline() for _ in range(150 + 137 * round_)]
        child.send_signal(signal.SIGKILL)
        await child.wait()
        lines += (await child.stdout.read()).splitlines(keepends=True)
        acknowledged = {int(line.split()[0]): int(line.split()[1]) for line in lines if line.endswith(b"\n")}
        assert acknowledged

        async with SqliteStore(path) as store:
            assert (await store.status()).revision > revision
            revision = (await store.status()).revision
            for lane, number in acknowledged.items():
                await check_lane(store, lane, number)


async def check_lane(store: SqliteStore, lane: int, acknowledged: int) -> None:
    result = await store.txn([], [get_prefix(b"a/%d/" % lane), get_prefix(b"b/%d/" % lane), Get(b"last/%d" % lane)])
    first, second, last = (result.got(i).kvs for i in range(3))
    number = int(last[0].value)
    assert number >= acknowledged
    assert [kv.key[2:] for kv in first] == [kv.key[2:] for kv in second]
    assert [kv.value for kv in first] == [kv.value for kv in second]
    assert {kv.mod_revision for kv in (*first, *second) if kv.key.endswith(b"%06d" % number)} == {last[0].mod_revision}
    assert max(int(kv.key[-6:]) for kv in first) >= number


async def settings_of(store: SqliteStore) -> tuple[str, int]:
    """(journal mode, synchronous) of the connection that commits."""
    found: list[tuple[str, int]] = []

    def ask(engine: Engine) -> None:
        one = (engine.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous"))
        found.append((next(one), next(one)))

    await store._write(ask, 0, PATIENT_S)
    return found[0]


async def test_what_is_acknowledged_is_synchronised(tmp_path: Path) -> None:
    """The log is written ahead and synchronised at each commit (FULL is 2), in a store that was made, found or restored."""
    for _ in range(2):
        async with SqliteStore(tmp_path / "s.db") as store:
            assert await settings_of(store) == ("wal", 2)
    restore(tmp_path / "s.db", tmp_path / "restored.db")
    async with SqliteStore(tmp_path / "restored.db") as store:
        assert await settings_of(store) == ("wal", 2)


# Snapshot and restore


async def test_a_snapshot_is_one_state_while_work_goes_on(tmp_path: Path) -> None:
    done = asyncio.Event()

    async def write(store: SqliteStore) -> None:
        i = 0
        while not done.is_set():
            i += 1
            await store.txn([], [Put(b"a", b"%d" % i), Put(b"b", b"%d" % i), Put(b"n/%d" % i, b"x" * 50_000)], timeout_s=PATIENT_S)

    async with SqliteStore(tmp_path / "s.db") as store:
        writing = asyncio.ensure_future(write(store))
        await asyncio.sleep(0.3)
        revision = await store.snapshot(tmp_path / "copy")
        await asyncio.sleep(0.1)
        done.set()
        await writing
        assert (await store.status()).revision > revision
        with pytest.raises(StoreError, match="exists already"):
            await store.snapshot(tmp_path / "copy")

    async with SqliteStore(tmp_path / "copy") as copy:
        both = (await copy.get(Get(b"a", b"c"))).kvs
        assert (await copy.status()).revision == revision
        assert both[0].value == both[1].value
        assert (await copy.get(get_prefix(b"n/"))).count == int(both[0].value)


async def test_a_restored_store_has_a_higher_revision_and_no_leases(tmp_path: Path) -> None:
    async with SqliteStore(tmp_path / "s.db") as store:
        lease = await store.grant(60)
        await store.txn([], [Put(b"m", b"", lease), Put(b"k", b"1")])
        before = await store.snapshot(tmp_path / "copy")
        identity = store.identity

    revision = restore(tmp_path / "copy", tmp_path / "restored.db")

    assert revision >= before + 1_000_000_000
    async with SqliteStore(tmp_path / "restored.db") as store:
        assert (await store.status()).revision == revision
        assert store.identity != identity
        assert [(kv.key, kv.value, kv.mod_revision) for kv in (await store.get(get_prefix(b""))).kvs] == [(b"k", b"1", 2)]
        with pytest.raises(LeaseNotFound):
            await store.keep_alive(lease)
        with pytest.raises(Compacted):
            await store.get(Get(b"k", revision=before))
        with pytest.raises(Compacted):
            await anext(store.watch(b"k", b"", before))
        assert (await store.txn([], [Put(b"k", b"2")])).revision == revision + 1
    assert [name for name in os.listdir(tmp_path) if "part" in name] == []


async def test_what_is_not_a_snapshot_is_not_restored(tmp_path: Path) -> None:
    (tmp_path / "junk").write_bytes(b"junk" * 5000)
    with pytest.raises(StoreError, match="junk"):
        restore(tmp_path / "junk", tmp_path / "target")
    with pytest.raises(StoreError, match="does not exist"):
        restore(tmp_path / "nothing", tmp_path / "target")
    async with SqliteStore(tmp_path / "s.db") as store:
        await store.snapshot(tmp_path / "copy")
        with pytest.raises(StoreError, match="exists already"):
            restore(tmp_path / "copy", tmp_path / "s.db")
    with pytest.raises(StoreError, match="higher revision"):
        restore(tmp_path / "copy", tmp_path / "target", bump_revision=0)
    assert not (tmp_path / "target").exists()
