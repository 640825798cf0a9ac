"""A full etcd and a full disk, through a channel: puts are refused with the reason, draining goes on, work resumes by itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

import qsg
from qsg.process.etcd import EtcdOptions
from qsg.process.local import DEAD_LETTER_QUEUE, OUT_CHANNEL, REMOTE
from support.group import ConfiguredGroup, connected, eventually, is_running, running
from support.stores import PATIENT_S
from torture.group import Disk

pytestmark = [pytest.mark.processes, pytest.mark.etcd, pytest.mark.timeout(600)]

QUOTA = 64 << 20
SIZE = 200_000


async def depth(at: qsg.QueueManager, name: str) -> int:
    return int((await at.inquire_queue(name))["depth"])


async def numbers(at: qsg.QueueManager, name: str, count: int) -> list[int]:
    found: list[int] = []
    async with asyncio.timeout(2 * PATIENT_S):
        while len(found) < count:
            async with at.unit() as unit:
                found += [int(m.payload.split(b" ")[0]) for m in await unit.get_many(name, 10, wait_ms=60_000)]
    return found


def numbered(number: int) -> bytes:
    return b"%d " % number + bytes(SIZE)


async def fill(at: qsg.QueueManager, name: str, first: int, most: int) -> int:
    """Puts until that is refused as it should be; the number of the one that was refused."""
    for number in range(first, first + most):
        try:
            await at.put(name, numbered(number))
        except qsg.StorageNotAvailable as error:
            assert error.detail, "the reason says what is full"
            return number
    raise AssertionError("never full")


async def test_a_full_etcd(tmp_path: Path) -> None:
    # In batches of its default size (1,000) etcd's file grows by more than half while a backlog of large messages is compacted, beyond its
    # quota, which counts the file and not what is in use. The older name of the option works from 3.5 on.
    options = EtcdOptions(quota_bytes=QUOTA, fsync=False, extra=("--experimental-compaction-batch-limit=10",))
    async with (
        running(tmp_path, members=("X", "Y"), store="etcd", etcd_members=1, etcd_options=options) as group,
        connected(group, "X") as x,
        connected(group, "Y") as y,
        connected(group, REMOTE) as r,
    ):
        await x.put("TO.R", b"-1 before")
        assert await numbers(r, "FROM.QSG", 1) == [-1]
        await x.command("stop", channel=OUT_CHANNEL)
        count = await fill(x, "TO.R", 0, 2 * QUOTA // SIZE)
        assert count > 20
        await eventually(lambda: group.logged(event="puts are refused", at="Y"), PATIENT_S, "the other member has looked")
        await fill(y, "SHARED", 0, 30)
        await x.command("start", channel=OUT_CHANNEL)
        assert await numbers(r, "FROM.QSG", count) == list(range(count)), "a full store is drained"
        await eventually(lambda: x.put("TO.R", numbered(count)), PATIENT_S, "puts are taken again")
        assert await numbers(r, "FROM.QSG", 1) == [count]
        assert await depth(r, DEAD_LETTER_QUEUE) == 0
        assert await depth(x, "R") == 0


@asynccontextmanager
async def group_with_a_small_disk(directory: Path) -> AsyncIterator[tuple[ConfiguredGroup, Disk]]:
    """R's data lie on it."""
    disk = Disk(directory / REMOTE / "data")
    disk.mount()
    try:
        if not disk.mounted:
            pytest.skip("a file system can be mounted by root only; tests/store/test_sqlite_full.py simulates a full one")
        async with running(directory, members=("X",)) as group:
            yield group, disk
    finally:
        disk.unmount(directory / "kept")


async def test_a_full_disk_at_the_partner(tmp_path: Path) -> None:
    async with group_with_a_small_disk(tmp_path) as (group, disk), connected(group, "X") as x, connected(group, REMOTE) as r:
        for number in range(30):
            await x.put("TO.R", numbered(number))
        await eventually(lambda: _is(r, "FROM.QSG", 30), PATIENT_S, "some lie there already")
        disk.fill()
        refused = await fill(r, "TO.QSG", 0, 2000)
        for number in range(30, 90):
            await x.put("TO.R", numbered(number))
        await eventually(lambda: _deep(x, "R"), PATIENT_S, "the rest waits at the sender")
        assert await numbers(r, "FROM.QSG", 10) == list(range(10)), "gets go on"
        disk.free()
        assert await numbers(r, "FROM.QSG", 80) == list(range(10, 90))
        assert await numbers(x, "FROM.R", refused) == list(range(refused)), "what was acknowledged before the disk was full"
        await eventually(lambda: r.put("TO.QSG", numbered(refused)), PATIENT_S, "puts are taken again")
        assert await numbers(x, "FROM.R", 1) == [refused]
        await eventually(lambda: is_running(x, OUT_CHANNEL), PATIENT_S)
        assert await depth(r, DEAD_LETTER_QUEUE) == await depth(x, DEAD_LETTER_QUEUE) == 0
        assert group.starts()[REMOTE] == 1, "nothing of it has ended a process"


async def _is(at: qsg.QueueManager, name: str, wanted: int) -> bool:
    return await depth(at, name) == wanted


async def _deep(at: qsg.QueueManager, name: str) -> bool:
    return await depth(at, name) > 0
