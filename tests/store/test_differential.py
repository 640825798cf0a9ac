"""Random histories applied to every store: each answer, event and refusal must be the same as that of the store in memory."""

from __future__ import annotations

import asyncio
from pathlib import Path
from random import Random

import pytest

from qsg.store.contract import (
    Compacted,
    Compare,
    Delete,
    Event,
    Get,
    GetResult,
    KeyValue,
    Op,
    Put,
    Relation,
    Store,
    StoreError,
    Target,
)
from support.stores import PATIENT_S, STORES

KEYS = [b"a", b"a/", b"a/1", b"a/2", b"a0", b"b", b"b/\x00", b"b/\xff", b"c"]
ENDS = [b"", b"", b"", b"a/\xff", b"a0", b"b", b"c", b"d", b"\0"]
STEPS = 250


def some_range(random: Random) -> tuple[bytes, bytes]:
    return random.choice(KEYS), random.choice(ENDS)


def some_compare(random: Random, base: int, revision: int) -> Compare:
    key, end = some_range(random)
    target = random.choice([Target.CREATE, Target.MOD, Target.MOD, Target.VERSION, Target.VALUE])
    operand: int | bytes
    if target is Target.VALUE:
        operand = b"%d" % random.randrange(4)
    elif target is Target.VERSION:
        operand = random.randrange(4)
    else:
        operand = random.choice([0, base + random.randrange(revision - base + 2)])
    return Compare(key, target, random.choice(list(Relation)), operand, end)


def some_get(random: Random, base: int, revision: int) -> Get:
    key, end = some_range(random)
    at = random.choice([0, 0, 0, base + random.randrange(revision - base + 1)])
    return Get(
        key,
        end,
        limit=random.choice([0, 0, 1, 2]),
        revision=at,
        keys_only=random.random() < 0.2,
        count_only=random.random() < 0.1,
        mod_after=random.choice([0, 0, base + random.randrange(revision - base + 1)]),
    )


def some_op(random: Random, base: int, revision: int) -> Op:
    roll = random.random()
    if roll < 0.55:
        return Put(random.choice(KEYS), b"%d" % random.randrange(4))
    if roll < 0.8:
        return some_get(random, base, revision)
    key, end = some_range(random)
    return Delete(key, b"" if end == b"\0" else end)  # (etcd does not refuse a put within an endless deletion)


def relative(revision: int, base: int) -> int:
    return revision - base if revision else 0


def plain(kv: KeyValue, base: int) -> tuple[object, ...]:
    return kv.key, kv.value, relative(kv.create_revision, base), relative(kv.mod_revision, base), kv.version


def shown(result: GetResult | None, base: int) -> object:
    if result is None:
        return None
    return [plain(kv, base) for kv in result.kvs], result.count, result.more


async def attempt(store: Store, random: Random, base: int, revision: int) -> object:
    """One random request; its answer without what differs between stores (where revisions begin)."""
    roll = random.random()
    try:
        if roll < 0.75:
            compares = [some_compare(random, base, revision) for _ in range(random.randrange(3))]
            ops, else_ops = ([some_op(random, base, revision) for _ in range(random.randrange(1, 4))] for _ in range(2))
            result = await store.txn(compares, ops, else_ops, timeout_s=PATIENT_S)
            return result.succeeded, relative(result.revision, base), [shown(r, base) for r in result.results]
        if roll < 0.97:
            return shown(await store.get(some_get(random, base, revision)), base)
        await store.compact(base + random.randrange(revision - base + 1))
        return "compacted"
    except Compacted:
        return "gone"
    except StoreError as e:
        return f"refused {type(e).__name__}"


async def history(store: Store, seed: int) -> list[object]:
    """Answers to a random sequence of requests, then all events of a watch from its beginning (or where history begins)."""
    random = Random(seed)
    base = (await store.txn([], [Put(b"c", b"begin")], timeout_s=PATIENT_S)).revision
    revision = base
    answers: list[object] = []
    watch = store.watch(b"\0", b"\0", base + 1)
    first = asyncio.ensure_future(anext(watch))
    for _ in range(STEPS):
        answers.append(await attempt(store, random, base, revision))
        revision = (await store.status()).revision
    events: list[Event] = []
    try:
        async with asyncio.timeout(PATIENT_S):
            batch = await first
            while True:
                events += batch.events
                if batch.revision >= revision:
                    break
                batch = await anext(watch)
        answers.append([(plain(e.kv, base)[:2] if not e.deleted else e.kv.key, relative(e.kv.mod_revision, base)) for e in events])
    except Compacted:
        answers.append("watch was compacted")
    await watch.aclose()  # type: ignore[attr-defined]
    answers.append([plain(kv, base) for kv in (await store.get(Get(b"\0", b"\0"))).kvs])
    return answers


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.etcd] if n == "etcd" else []) for n in STORES if n != "memory"])
async def test_same_answers_as_in_memory(name: str, seed: int, tmp_path: Path) -> None:
    async with STORES["memory"](tmp_path) as memory, STORES[name](tmp_path) as other:
        expected = await history(memory.second, seed)
        got = await history(other.second, seed)
    for step, (one, two) in enumerate(zip(expected, got, strict=True)):
        if "watch was compacted" in (one, two):
            continue  # whether a watch keeps up with a compaction is a matter of time
        if step == STEPS:
            assert isinstance(one, list) and isinstance(two, list)
            assert sorted(map(repr, one)) == sorted(map(repr, two))
        else:
            assert two == one, f"request {step} of seed {seed}"
