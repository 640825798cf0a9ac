"""Transactions: compares, branches, atomicity, races, limits, refusals, unknown outcomes."""

from __future__ import annotations

import asyncio

import pytest

from qsg.store.contract import (
    Compare,
    Delete,
    Get,
    KeyValue,
    LeaseNotFound,
    Op,
    Put,
    Relation,
    Store,
    StoreError,
    Target,
    TooLarge,
    Unavailable,
    absent,
    created_at,
    get_prefix,
    nothing_changed_after,
    prefix_end,
    unchanged,
)
from support.stores import PATIENT_S, Harness

LIMIT_BYTES = 1_500_000


async def put(store: Store, key: bytes, value: bytes = b"v", lease: int = 0) -> int:
    """A put of one key; its revision."""
    return (await store.txn([], [Put(key, value, lease)], timeout_s=PATIENT_S)).revision


async def read(store: Store, key: bytes) -> KeyValue | None:
    return (await store.get(Get(key))).first


async def holds(store: Store, *compares: Compare) -> bool:
    return (await store.txn(compares, [Get(b"any")], timeout_s=PATIENT_S)).succeeded


class TxnConformance:
    """The fixture `harness` yields a `Harness` on an empty store."""

    async def test_keys_carry_their_revisions(self, harness: Harness) -> None:
        store = harness.store
        first = await put(store, b"k", b"1")
        second = await put(store, b"k", b"2")
        assert second == first + 1
        assert await read(store, b"k") == KeyValue(b"k", b"2", first, second, 2, 0)
        await store.txn([], [Delete(b"k")])
        assert await read(store, b"k") is None
        again = await put(store, b"k", b"3")
        assert await read(store, b"k") == KeyValue(b"k", b"3", again, again, 1, 0)

    @pytest.mark.parametrize("relation", list(Relation))
    @pytest.mark.parametrize("target", list(Target))
    async def test_every_target_and_relation(self, harness: Harness, target: Target, relation: Relation) -> None:
        """Against operands below, at and above the actual value."""
        store = harness.store
        lease = await store.grant(60)
        await put(store, b"k", b"m")
        await put(store, b"k", b"m", lease)
        kv = await read(store, b"k")
        assert kv is not None
        actual: int | bytes = {
            Target.CREATE: kv.create_revision,
            Target.MOD: kv.mod_revision,
            Target.VERSION: kv.version,
            Target.VALUE: kv.value,
            Target.LEASE: kv.lease,
        }[target]  # type: ignore[assignment]
        below, above = (b"l", b"n") if isinstance(actual, bytes) else (actual - 1, actual + 1)
        expected = {
            Relation.EQUAL: (False, True, False),
            Relation.NOT_EQUAL: (True, False, True),
            Relation.LESS: (False, False, True),
            Relation.GREATER: (True, False, False),
        }[relation]
        got = tuple([await holds(store, Compare(b"k", target, relation, operand)) for operand in (below, actual, above)])
        assert got == expected

    @pytest.mark.parametrize("target", [Target.CREATE, Target.MOD, Target.VERSION, Target.LEASE])
    async def test_a_missing_key_compares_as_zeros(self, harness: Harness, target: Target) -> None:
        store = harness.store
        assert await holds(store, Compare(b"none", target, Relation.EQUAL, 0))
        assert await holds(store, Compare(b"none", target, Relation.LESS, 1))
        assert await holds(store, Compare(b"none", target, Relation.NOT_EQUAL, 7))
        assert not await holds(store, Compare(b"none", target, Relation.GREATER, 0))

    @pytest.mark.parametrize("relation", list(Relation))
    async def test_every_compare_of_a_missing_keys_value_fails(self, harness: Harness, relation: Relation) -> None:
        assert not await holds(harness.store, Compare(b"none", Target.VALUE, relation, b""))

    async def test_helpers(self, harness: Harness) -> None:
        store = harness.store
        assert await holds(store, absent(b"k"), unchanged(b"k", 0))
        created = await put(store, b"k")
        changed = await put(store, b"k")
        assert not await holds(store, absent(b"k"))
        assert await holds(store, created_at(b"k", created), unchanged(b"k", changed))
        assert not await holds(store, unchanged(b"k", created))
        await store.txn([], [Delete(b"k")])
        assert await holds(store, absent(b"k"))
        await put(store, b"k")
        assert not await holds(store, created_at(b"k", created))

    async def test_prefix_compares(self, harness: Harness) -> None:
        """Every existing key under the prefix counts; deletions and an empty prefix are not seen."""
        store = harness.store
        await put(store, b"a/1")
        last = await put(store, b"a/2")
        later = await put(store, b"b/1")
        assert await holds(store, nothing_changed_after(b"a/", last))
        assert not await holds(store, nothing_changed_after(b"a/", last - 1))
        assert not await holds(store, Compare(b"\0", Target.MOD, Relation.LESS, last + 1, b"\0"))
        assert await holds(store, Compare(b"\0", Target.MOD, Relation.LESS, later + 1, b"\0"))
        assert await holds(store, nothing_changed_after(b"none/", 1))
        await store.txn([], [Delete(b"a/1")])
        assert await holds(store, nothing_changed_after(b"a/", last))
        changed = await put(store, b"a/2")
        assert not await holds(store, nothing_changed_after(b"a/", last))
        assert await holds(store, nothing_changed_after(b"a/", changed))
        assert await holds(store, Compare(b"a/", Target.VERSION, Relation.GREATER, 0, prefix_end(b"a/")))
        assert not await holds(store, Compare(b"none/", Target.VERSION, Relation.GREATER, 0, prefix_end(b"none/")))

    async def test_the_branch_taken_is_answered_and_only_that_applied(self, harness: Harness) -> None:
        store = harness.store
        revision = await put(store, b"k", b"old")
        lost = await store.txn([absent(b"k")], [Put(b"k", b"new"), Put(b"x", b"")], [Get(b"k"), Get(b"none")])
        assert not lost.succeeded
        assert lost.revision == revision
        assert [r and r.kvs for r in lost.results] == [(KeyValue(b"k", b"old", revision, revision),), ()]
        won = await store.txn([unchanged(b"k", revision)], [Put(b"k", b"new"), Get(b"k"), Delete(b"none")], [Put(b"x", b"")])
        assert won.succeeded
        assert won.revision == revision + 1
        assert won.results[0] is None and won.results[2] is None
        assert won.got(1).kvs == (KeyValue(b"k", b"new", revision, revision + 1, 2),)
        assert await read(store, b"x") is None
        else_written = await store.txn([absent(b"k")], [], [Put(b"else", b"1")])
        assert not else_written.succeeded
        assert (await read(store, b"else")) == KeyValue(b"else", b"1", revision + 2, revision + 2)

    async def test_one_transaction_is_one_revision(self, harness: Harness) -> None:
        store = harness.store
        await put(store, b"gone/1")
        before = await put(store, b"gone/2")
        result = await store.txn([], [Put(b"b", b""), Put(b"a", b""), Delete(b"gone/", prefix_end(b"gone/")), Put(b"c", b"")])
        assert result.revision == before + 1
        got = await store.get(Get(b"\0", b"\0"))
        assert [(kv.key, kv.mod_revision) for kv in got.kvs] == [(b"a", before + 1), (b"b", before + 1), (b"c", before + 1)]
        assert got.revision == before + 1

    async def test_what_changes_nothing_makes_no_revision(self, harness: Harness) -> None:
        store = harness.store
        before = await put(store, b"k")
        assert (await store.txn([], [Delete(b"none"), Delete(b"none/", b"none0")])).revision == before
        assert (await store.txn([absent(b"k")], [Put(b"x", b"")])).revision == before
        assert (await store.txn([], [])).revision == before
        assert (await store.status()).revision == before

    async def test_races_have_one_winner_each_revision(self, harness: Harness) -> None:
        """Many tasks on two clients increment one value by compare-and-swap: no update is lost, none is applied twice."""
        await put(harness.store, b"n", b"0")
        wins: list[int] = []

        async def increment(store: Store) -> None:
            kv = await read(store, b"n")
            while True:
                assert kv is not None
                op = [Put(b"n", b"%d" % (int(kv.value) + 1))]
                result = await store.txn([unchanged(b"n", kv.mod_revision)], op, [Get(b"n")], timeout_s=PATIENT_S)
                if result.succeeded:
                    wins.append(result.revision)
                    return
                kv = result.got(0).first

        await asyncio.gather(*(increment(harness.store if i % 2 else harness.second) for i in range(20)))
        kv = await read(harness.second, b"n")
        assert kv is not None and kv.value == b"20" and kv.version == 21
        assert len(set(wins)) == 20

    async def test_only_one_creates(self, harness: Harness) -> None:
        async def create(i: int) -> bool:
            store = harness.store if i % 2 else harness.second
            return (await store.txn([absent(b"lock")], [Put(b"lock", b"%d" % i)], timeout_s=PATIENT_S)).succeeded

        results = await asyncio.gather(*(create(i) for i in range(20)))
        assert results.count(True) == 1
        kv = await read(harness.store, b"lock")
        assert kv is not None and int(kv.value) == results.index(True)

    @pytest.mark.parametrize("branch", ["then", "else"])
    @pytest.mark.parametrize(
        "ops",
        [
            [Put(b"k", b"1"), Put(b"k", b"2")],
            [Put(b"k", b"1"), Delete(b"k")],
            [Delete(b"k"), Put(b"k", b"1")],
            [Delete(b"a", b"z"), Put(b"k", b"1")],
            [Put(b"k", b"1"), Delete(b"a", b"z")],
        ],
    )
    async def test_two_writes_of_one_key_are_refused(self, harness: Harness, ops: list[Op], branch: str) -> None:
        store = harness.store
        with pytest.raises(StoreError) as refusal:
            await store.txn(
                [unchanged(b"k", 0 if branch == "then" else 7)], ops if branch == "then" else [], ops if branch == "else" else []
            )
        assert not isinstance(refusal.value, Unavailable | TooLarge)
        assert await read(store, b"k") is None

    async def test_the_branches_may_write_the_same_key_and_deletions_may_overlap(self, harness: Harness) -> None:
        store = harness.store
        await put(store, b"d/1")
        await store.txn([absent(b"k")], [Put(b"k", b"then")], [Put(b"k", b"else")])
        result = await store.txn([absent(b"k")], [Put(b"k", b"then")], [Put(b"k", b"else"), Delete(b"d/1"), Delete(b"d/", b"d0")])
        assert not result.succeeded
        assert [(kv.key, kv.value) for kv in (await store.get(Get(b"\0", b"\0"))).kvs] == [(b"k", b"else")]

    async def test_an_unknown_lease_refuses_the_whole_transaction(self, harness: Harness) -> None:
        store = harness.store
        with pytest.raises(LeaseNotFound):
            await store.txn([], [Put(b"a", b""), Put(b"b", b"", lease=12345)])
        assert await read(store, b"a") is None
        result = await store.txn([absent(b"a")], [Put(b"a", b"")], [Put(b"b", b"", lease=12345)])
        assert result.succeeded  # only the branch taken matters

    async def test_empty_values_and_binary_keys(self, harness: Harness) -> None:
        store = harness.store
        keys = [b"\x00", b"\x00\x00", b"\x01\xff", b"a", b"a\x00", b"a\xff\xff", b"\xc3\x28", b"\xff", b"\xff\xff\x00"]
        await store.txn([], [Put(key, b"") for key in reversed(keys)])
        got = await store.get(Get(b"\0", b"\0"))
        assert [kv.key for kv in got.kvs] == keys
        assert {kv.value for kv in got.kvs} == {b""}
        assert [kv.key for kv in (await store.get(get_prefix(b"\xff"))).kvs] == [b"\xff", b"\xff\xff\x00"]
        assert [kv.key for kv in (await store.get(get_prefix(b"a"))).kvs] == [b"a", b"a\x00", b"a\xff\xff"]
        assert await holds(store, Compare(b"a", Target.VALUE, Relation.EQUAL, b""))

    async def test_as_many_operations_as_allowed_and_one_more(self, harness: Harness) -> None:
        store = harness.store
        limits = store.limits
        assert (limits.operations, limits.compares) >= (128, 128)
        puts = [Put(b"k/%04d" % i, b"") for i in range(limits.operations)]
        compares = [absent(put.key) for put in puts[: limits.compares]]
        assert (await store.txn(compares, puts, [Get(put.key) for put in puts], timeout_s=PATIENT_S)).succeeded
        too_many = [Put(b"l/%04d" % i, b"") for i in range(129)]
        with pytest.raises(TooLarge):
            await store.txn([], too_many, timeout_s=PATIENT_S)
        with pytest.raises(TooLarge):
            await store.txn([absent(b"k/0000")], [], too_many, timeout_s=PATIENT_S)
        with pytest.raises(TooLarge):
            await store.txn([absent(put.key) for put in too_many], [], timeout_s=PATIENT_S)
        assert (await store.get(Get(b"\0", b"\0", count_only=True))).count == 128

    async def test_as_many_bytes_as_allowed_and_too_many(self, harness: Harness) -> None:
        store = harness.store
        assert store.limits.bytes >= LIMIT_BYTES
        size = LIMIT_BYTES // 100
        puts = [Put(b"%02d" % i, bytes([i]) * (size - 2)) for i in range(100)]
        await store.txn([], puts, timeout_s=PATIENT_S)
        kv = await read(store, b"99")
        assert kv is not None and kv.value == bytes([99]) * (size - 2)
        with pytest.raises(TooLarge):
            await store.txn([], [Put(b"big", bytes(1_600_000))], timeout_s=PATIENT_S)
        assert await read(store, b"big") is None
        await put(store, b"big", b"fits")  # and the store goes on

    async def test_revisions_only_grow(self, harness: Harness) -> None:
        revisions: list[int] = []

        async def write(store: Store, name: bytes) -> None:
            revisions.extend([await put(store, name, b"%d" % i) for i in range(25)])

        await asyncio.gather(write(harness.store, b"a"), write(harness.second, b"b"))
        assert len(set(revisions)) == 50
        assert (await harness.store.status()).revision == max(revisions)
        assert max(revisions) - min(revisions) == 49
