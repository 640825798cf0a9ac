"""An etcd that fills up: what it says that it has not taken, and has."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from qsg.manager.committer import Committer
from qsg.pb import records_pb2 as pb
from qsg.process.etcd import EtcdOptions
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Guard
from qsg.rules.unit import NewMessage, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, NoSpace, Put, get_prefix, prefix_end
from support import etcd
from support.stores import PATIENT_S

SIZE = 100_000


@pytest.mark.etcd
async def test_what_a_filling_etcd_is_told_to_have_taken_is_what_it_has(tmp_path: Path) -> None:
    """It applies transactions that fill its quota, and says that there is no space nevertheless."""
    async with (
        etcd.running(tmp_path, options=EtcdOptions(fsync=False, quota_bytes=4 << 20)) as cluster,
        etcd.opened(cluster.endpoints) as store,
    ):
        incarnation = (await store.txn([], [Put(keys.member("X"), b"")], timeout_s=PATIENT_S)).revision
        committer = Committer(store, "X", incarnation, [Guard() for _ in range(8)], World(lambda: 0))
        committer.start()
        told: set[int] = set()
        refused: set[int] = set()

        async def put(number: int) -> None:
            name = b"%024d" % number
            body = pb.Message(message_id=name, payload=bytes(SIZE)).SerializeToString()
            unit = Unit(puts=[NewMessage("Q", 0, pb.Entry(message_id=name, payload_size=SIZE), body)])
            try:
                await committer.commit(unit, slot=number)
            except Refusal as refusal:
                assert refusal.reason is Reason.STORAGE_NOT_AVAILABLE
                refused.add(number)
            else:
                told.add(number)

        for number in range(0, 800, 8):
            await asyncio.gather(*(put(n) for n in range(number, number + 8)))
            if refused:
                break
        await committer.close()
        headers = (await store.get(get_prefix(keys.headers("Q")))).kvs
        there = {int(entry.message_id) for kv in headers for entry in pb.SegmentHeader.FromString(kv.value).entries}
        assert refused
        assert there == told


@pytest.mark.etcd
async def test_room_is_made_by_steps_that_say_whether_they_were_done(tmp_path: Path) -> None:
    """A step that was skipped in silence would leave the alarm on, or raise it again."""
    options = EtcdOptions(fsync=False, quota_bytes=4 << 20)
    async with etcd.running(tmp_path, options=options) as cluster, etcd.opened(cluster.endpoints, timeout_s=PATIENT_S) as store:
        with pytest.raises(NoSpace):
            for number in range(2000):
                await store.txn([], [Put(b"junk/%04d" % number, bytes(64 * 1024))])
        await store.txn([], [Delete(b"junk/", prefix_end(b"junk/"))])
        assert await cluster.compact() and await cluster.compact(), "done already is done"
        assert not await cluster.has_room(0)
        assert await cluster.defragment(0) and await cluster.has_room(0)
        assert [await cluster.disarm(), await cluster.disarm()] == [False, True], "done when none is left"
        await store.txn([], [Put(b"again", bytes(64 * 1024))])
        assert await cluster._work(0, "/v3/kv/compaction", {"revision": 1 << 60}) is None, "a refusal is not done"
        cluster.kill(0)
        assert [await cluster.compact(), await cluster.defragment(0), await cluster.has_room(0), await cluster.disarm()] == [False] * 4
