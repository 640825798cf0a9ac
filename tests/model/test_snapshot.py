"""A snapshot is the in-memory store without history: the same transactions give the same answers and the same keys."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from model.snapshot import Snapshot
from qsg.store.contract import Compare, Delete, Get, Op, Put, Relation, Target, prefix_end
from qsg.store.mvcc import Mvcc

KEYS = st.sampled_from([b"a", b"a/1", b"a/2", b"b", b"c/1"])
ENDS = st.sampled_from([b"", b"", b"\0", prefix_end(b"a"), prefix_end(b"a/")])
REVISIONS = st.integers(0, 9)
WRITES = st.lists(
    st.one_of(st.builds(Put, KEYS, st.sampled_from([b"", b"x", b"y"])), st.builds(Delete, KEYS, ENDS)),
    max_size=3,
    unique_by=lambda op: op.key,
)
READS = st.lists(
    st.builds(Get, KEYS, ENDS, limit=st.integers(0, 2), keys_only=st.booleans(), count_only=st.booleans(), mod_after=REVISIONS),
    max_size=3,
)
COMPARES = st.lists(
    st.builds(Compare, KEYS, st.sampled_from([Target.CREATE, Target.MOD, Target.VERSION]), st.sampled_from(Relation), REVISIONS, ENDS),
    max_size=2,
)


def puts_and_deletes_one_key(ops: list[Op]) -> bool:
    puts = {op.key for op in ops if isinstance(op, Put)}
    ranges = [op for op in ops if isinstance(op, Delete)]
    return any(key == d.key or (d.end and d.key <= key and (key < d.end or d.end == b"\0")) for key in puts for d in ranges)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(COMPARES, WRITES, READS), max_size=6))
def test_a_snapshot_answers_as_the_store_does(transactions: list[tuple[list[Compare], list[Op], list[Op]]]) -> None:
    snapshot, store = Snapshot(), Mvcc()
    for compares, writes, reads in transactions:
        if puts_and_deletes_one_key(writes):
            continue
        snapshot, answer = snapshot.txn(compares, writes, reads)
        assert answer == store.apply(compares, writes, reads)
        assert tuple(snapshot.under(b"")) == store.read(Get(b"\0", b"\0")).kvs
