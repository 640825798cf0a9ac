"""The SQLite engine beside the in-memory state: the same random requests give the same answers, history, events and refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest

from qsg.store import sqlite_reads as reads
from qsg.store.contract import Compare, Delete, Get, GetResult, Op, Put, Relation, StoreError, Target
from qsg.store.mvcc import Mvcc
from qsg.store.sqlite_engine import Applied, Engine
from qsg.store.sqlite_file import open_writer, revision_of

KEYS = [b"a", b"a/1", b"a/2", b"a/3", b"b", b"b/1", b"c"]
RANGES = [(b"a", b"b"), (b"a/", b"a0"), (b"a", b"\0"), (b"b", b"a"), (b"\0", b"\0"), (b"z", b"\0")]
STEPS = 250


class Pair:
    """Both, driven alike. Groups are of random size; a group that is rolled back is run again."""

    def __init__(self, path: Path, chance: Random) -> None:
        self.connection = open_writer(path)
        self.engine = Engine(self.connection)
        self.model = Mvcc()
        self.chance = chance
        self.leases: list[int] = []

    def key_range(self) -> tuple[bytes, bytes]:
        return self.chance.choice(RANGES) if self.chance.random() < 0.4 else (self.chance.choice(KEYS), b"")

    def compare(self) -> Compare:
        key, end = self.key_range()
        target = self.chance.choice(list(Target))
        near = self.chance.choice([0, 1, 2, self.model.revision, self.model.revision - 3])
        operand: int | bytes = self.chance.choice([b"", b"1", b"2"]) if target is Target.VALUE else near
        return Compare(key, target, self.chance.choice(list(Relation)), operand, end)

    def get(self) -> Get:
        key, end = self.key_range()
        chance = self.chance
        revision = chance.choice([0, 0, 0, chance.randint(1, self.model.revision + 1)])
        mod_after = chance.choice([0, 0, chance.randint(0, self.model.revision)])
        return Get(key, end, chance.choice([0, 0, 1, 2]), revision, chance.random() < 0.2, chance.random() < 0.1, mod_after)

    def op(self) -> Op:
        kind = self.chance.random()
        if kind < 0.5:
            lease = self.chance.choice([0, 0, 0, 99, *self.leases])
            return Put(self.chance.choice(KEYS), self.chance.choice([b"", b"1", b"2", b"x" * 9000]), lease)
        return Delete(*self.key_range()) if kind < 0.7 else self.get()

    def step(self) -> None:
        compares = [self.compare() for _ in range(self.chance.randint(0, 2))]
        ops, else_ops = [[self.op() for _ in range(self.chance.randint(0, 3))] for _ in range(2)]
        here = outcome(lambda: plain(self.engine.txn(compares, ops, else_ops)))
        there = outcome(lambda: (lambda r: (r.succeeded, r.revision, r.results))(self.model.apply(compares, ops, else_ops)))
        assert here == there, (compares, ops, else_ops)
        assert self.engine.revision == self.model.revision

    def lease_step(self) -> None:
        if self.leases and self.chance.random() < 0.5:
            lease = self.leases.pop()
            self.engine.revoke(lease)
            self.model.revoke(lease)
        else:
            lease = len(self.leases) + 1000 + self.engine.revision * 100
            self.engine.grant(lease, 10)
            self.model.grant(lease)
            self.leases.append(lease)

    def compact(self) -> None:
        revision = self.chance.randint(0, self.model.revision + 1)
        assert outcome(lambda: self.engine.compact(revision)) == outcome(lambda: self.model.compact(revision))

    def check(self) -> None:
        """Committed state: every range at every revision that is left, and the events."""
        engine, model = self.engine, self.model
        for revision in {0, *range(max(1, model.compacted), model.revision + 1)}:
            get = Get(b"\0", b"\0", revision=revision)
            assert reads.read(self.connection, get, model.revision) == model.read(get), revision
        view = reads.View(self.connection, reads.current_revision(self.connection, engine.floor), engine.compacted)
        assert view.revision == model.revision
        start = max(model.compacted, 1)
        for key, end in ((b"\0", b"\0"), (b"a/", b"a0"), (b"c", b"")):
            assert list(self.events(view, key, end, start)) == model.events(key, end, start)

    def events(self, view: reads.View, key: bytes, end: bytes, start: int) -> Iterator[object]:
        while start <= view.revision:
            page = reads.events(view, key, end, start, self.chance.choice([1, 1000, 1 << 20]))
            yield from page.events
            start = page.revision + 1


def outcome(action: Callable[[], object]) -> object:
    """What came out, or the kind of refusal."""
    try:
        return action()
    except StoreError as e:
        return type(e)


def plain(applied: Applied) -> object:
    results = tuple([r if isinstance(r, GetResult) else None for r in applied.results])
    return applied.succeeded, applied.revision, results


@pytest.mark.parametrize("seed", range(12))
def test_the_engine_does_what_the_model_does(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    pair = Pair(tmp_path / "s.db", chance)
    done = 0
    while done < STEPS:
        pair.engine.begin()
        for _ in range(chance.randint(1, 12)):
            pair.step()
            done += 1
        if chance.random() < 0.3:
            pair.lease_step()
        if chance.random() < 0.1:
            pair.compact()
        if chance.random() < 0.5:
            pair.engine.erase(chance.choice([1, 3, 100]), 1 << 20)
        pair.engine.commit()
        if chance.random() < 0.2:
            pair.check()
    while pair.engine.erase(10, 1 << 20):
        pass
    pair.check()
    pair.connection.close()

    reopened = open_writer(tmp_path / "s.db")
    engine = Engine(reopened)
    assert (engine.revision, engine.compacted, sorted(engine.leases)) == (pair.model.revision, pair.model.compacted, sorted(pair.leases))
    reopened.close()


def test_erasing_leaves_what_can_be_read_and_nothing_else(tmp_path: Path) -> None:
    connection = open_writer(tmp_path / "s.db")
    engine = Engine(connection)
    engine.begin()
    for i in range(50):
        engine.txn([], [Put(b"k%d" % (i % 5), b"x")], [])
    engine.txn([], [Delete(b"k0"), Delete(b"k1")], [])
    engine.compact(engine.revision)
    while engine.erase(7, 1 << 20):
        pass
    engine.commit()

    rows = connection.execute("SELECT key, id, number FROM version ORDER BY id").fetchall()
    living = {row[0] for row in rows if row[2]}
    deletions = {(row[0], revision_of(row[1])) for row in rows if not row[2]}
    assert living == {b"k2", b"k3", b"k4"}
    assert deletions == {(b"k0", engine.revision), (b"k1", engine.revision)}
    engine.begin()
    engine.txn([], [Put(b"z", b"")], [])
    engine.compact(engine.revision)
    while engine.erase(7, 1 << 20):
        pass
    engine.commit()
    assert connection.execute("SELECT count(*) FROM version WHERE number = 0").fetchone()[0] == 0
    assert connection.execute("SELECT count(*) FROM past").fetchone()[0] == 0
    connection.close()


def test_a_group_that_is_rolled_back_was_never_there(tmp_path: Path) -> None:
    connection = open_writer(tmp_path / "s.db")
    engine = Engine(connection)
    engine.begin()
    engine.txn([], [Put(b"k", b"1")], [])
    engine.commit()
    engine.begin()
    engine.txn([], [Put(b"k", b"2"), Put(b"other", b"")], [])
    engine.grant(5, 10)
    engine.rollback()

    assert (engine.revision, engine.leases) == (2, {})
    engine.begin()
    result = engine.txn(
        [Compare(b"k", Target.MOD, Relation.EQUAL, 2), Compare(b"other", Target.CREATE, Relation.EQUAL, 0)], [Get(b"k")], []
    )
    assert result.succeeded
    got = result.results[0]
    assert isinstance(got, GetResult)
    assert got.kvs[0].value == b"1"
    assert engine.commit() == []
    connection.close()
