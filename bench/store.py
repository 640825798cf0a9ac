"""How fast a store is: small transactions, large values, ranges. Prints one JSON line.

    python bench/store.py --store sqlite:/var/tmp/bench.db --in-flight 64 --seconds 3

A small transaction is what the queue manager commits: it compares three keys by revision, rewrites two of 100 bytes and creates one of
1 KiB. Wall-clock figures of this machine as it is now: compare ratios, not numbers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from random import Random

from qsg.store.contract import Delete, Get, Put, Store, created_at, get_prefix, prefix_end, unchanged

LARGE_BYTES = 256 * 1024
RANGE_KEYS = 1000
TIMEOUT_S = 10.0


@dataclass(slots=True)
class Figures:
    """Durations of single operations, in seconds."""

    took: list[float] = field(default_factory=list)
    elapsed_s: float = 0.0

    def rate(self) -> float:
        return len(self.took) / self.elapsed_s

    def percentile_ms(self, part: float) -> float:
        return round(sorted(self.took)[int(part * (len(self.took) - 1))] * 1000, 3)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Store]:
    kind, _, where = name.partition(":")
    if kind == "memory":
        from qsg.store.memory import MemoryServer

        yield MemoryServer(random=Random(0)).client()
    elif kind == "sqlite":
        from qsg.store.sqlite import SqliteStore

        async with SqliteStore(where) as store:
            yield store
    elif kind == "etcd":
        from qsg.store.etcd import EtcdStore

        etcd = EtcdStore(where.removeprefix("//").split(","))
        yield etcd
        await etcd.close()
    else:
        raise SystemExit(f"no such store: {name} (memory, sqlite:PATH, etcd://host:port,...)")


async def measure(operation: Callable[[int, int], Awaitable[None]], in_flight: int, seconds: float) -> Figures:
    """Runs `operation(worker, number)` in so many workers for so long."""
    figures = Figures()
    start = time.perf_counter()

    async def worker(index: int) -> None:
        number = 0
        while (begun := time.perf_counter()) - start < seconds:
            await operation(index, number)
            figures.took.append(time.perf_counter() - begun)
            number += 1

    await asyncio.gather(*(worker(i) for i in range(in_flight)))
    figures.elapsed_s = time.perf_counter() - start
    return figures


async def small(store: Store, in_flight: int, seconds: float) -> Figures:
    member = (await store.txn([], [Put(b"bench/m", b"")], timeout_s=TIMEOUT_S)).revision
    revisions: dict[int, int] = {}

    async def operation(worker: int, number: int) -> None:
        guard, totals = b"bench/g/%d" % worker, b"bench/n/%d" % worker
        seen = revisions.get(worker, 0)
        compares = [created_at(b"bench/m", member), unchanged(guard, seen), unchanged(totals, seen)]
        ops = [Put(guard, b"g" * 100), Put(totals, b"n" * 100), Put(b"bench/q/%d/%08d" % (worker, number), b"m" * 1024)]
        result = await store.txn(compares, ops, timeout_s=TIMEOUT_S)
        assert result.succeeded
        revisions[worker] = result.revision

    return await measure(operation, in_flight, seconds)


async def large(store: Store, in_flight: int, seconds: float) -> Figures:
    """Each worker keeps eight values, so that what is stored stays bounded."""
    value = os.urandom(LARGE_BYTES)

    async def operation(worker: int, number: int) -> None:
        ops: list[Put | Delete] = [Put(b"bench/b/%d/%08d" % (worker, number), value)]
        if number >= 8:
            ops.append(Delete(b"bench/b/%d/%08d" % (worker, number - 8)))
        await store.txn([], ops, timeout_s=TIMEOUT_S)

    return await measure(operation, in_flight, seconds)


async def ranges(store: Store, seconds: float) -> Figures:
    for start in range(0, RANGE_KEYS, 100):
        await store.txn([], [Put(b"bench/r/%08d" % i, b"x" * 1024) for i in range(start, start + 100)], timeout_s=TIMEOUT_S)

    async def operation(worker: int, number: int) -> None:
        assert (await store.get(get_prefix(b"bench/r/"))).count == RANGE_KEYS

    return await measure(operation, 1, seconds)


async def gets(store: Store, in_flight: int, seconds: float) -> Figures:
    async def operation(worker: int, number: int) -> None:
        assert (await store.get(Get(b"bench/m"))).count == 1

    return await measure(operation, in_flight, seconds)


async def clear(store: Store) -> None:
    await store.txn([], [Delete(b"bench/", prefix_end(b"bench/"))], timeout_s=TIMEOUT_S)


async def run(name: str, in_flight: int, seconds: float) -> dict[str, object]:
    async with opened(name) as store:
        await clear(store)
        alone = await small(store, 1, seconds)
        await clear(store)
        crowded = await small(store, in_flight, seconds)
        read = await gets(store, in_flight, seconds)
        await clear(store)
        big = await large(store, min(in_flight, 8), seconds)
        await clear(store)
        scanned = await ranges(store, seconds)
        await clear(store)
        status = await store.status()
    return {
        "store": name,
        "in_flight": in_flight,
        "small_alone_per_s": round(alone.rate()),
        "small_alone_ms_p50": alone.percentile_ms(0.5),
        "small_alone_ms_p99": alone.percentile_ms(0.99),
        "small_per_s": round(crowded.rate()),
        "small_ms_p50": crowded.percentile_ms(0.5),
        "small_ms_p99": crowded.percentile_ms(0.99),
        "gets_per_s": round(read.rate()),
        "large_mb_per_s": round(big.rate() * LARGE_BYTES / 1e6, 1),
        "large_ms_p99": big.percentile_ms(0.99),
        "range_keys_per_s": round(scanned.rate() * RANGE_KEYS),
        "bytes_in_use": status.bytes_in_use,
        "memory_peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure a store; prints one JSON line.")
    parser.add_argument("--store", default="memory", help="memory, sqlite:PATH or etcd://host:port,host:port (also that of `qsg store`)")
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each of the five measurements")
    given = parser.parse_args()
    sys.stdout.write(json.dumps(asyncio.run(run(given.store, given.in_flight, given.seconds))) + "\n")


if __name__ == "__main__":
    main()
