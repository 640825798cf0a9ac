"""Members fenced and started again, over paths that lose and delay: what callers were told is so (invariant 11)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from random import Random

import pytest

from qsg.manager.membership import join
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Refusal
from qsg.rules.unit import CompareFailed, Fenced, NewMessage, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import Delete, Put, absent, get_prefix
from qsg.store.faults import RandomFaults
from qsg.store.memory import MemoryServer, MemoryStore
from support.virtual_time import run


def message(number: int) -> NewMessage:
    name = b"%024d" % number
    return NewMessage("Q", 0, pb.Entry(message_id=name, payload_size=1), pb.Message(message_id=name, payload=b"x").SerializeToString())


@dataclass
class Told:
    committed: dict[int, int] = field(default_factory=dict)
    not_applied: set[int] = field(default_factory=set)
    unknown: set[int] = field(default_factory=set)


class Process:
    """A member's process: one structure per incarnation, made again whenever it is fenced."""

    def __init__(self, server: MemoryServer, name: str, seed: int) -> None:
        faults = RandomFaults(Random(seed), delay_s=0.03, refused=0.03, lost=0.08, reply_lost=0.08, late=0.12, late_s=1.5)
        self.name, self.random = name, Random(seed)
        self.store: MemoryStore = server.client(faults)
        self.structure: Structure | None = None
        self.ready = asyncio.Event()
        self.incarnations: list[int] = []

    async def live(self) -> None:
        while True:
            world = World(lambda: 0, Random(self.random.random()))
            record = pb.MemberRecord(member=self.name, process=self.name)
            structure = await join(self.store, "app", record, world, compact=False)
            self.incarnations.append(structure.incarnation)
            self.structure = structure
            self.ready.set()
            try:
                await structure.fenced.wait()
            finally:
                self.ready.clear()
                await structure.close(self.random.choice([0.0, 0.3, 3.0]))

    async def produce(self, producer: int, told: Told) -> None:
        for n in range(20):
            number = producer * 1000 + n
            await self.ready.wait()
            assert self.structure is not None
            compares = [absent(b"flip")] if self.random.random() < 0.4 else []
            unit = Unit(compares=compares, puts=[message(number)])
            try:
                told.committed[number] = (await self.structure.commit(unit, affinity=f"p{producer}")).revision
            except (CompareFailed, Fenced, Refusal):
                told.not_applied.add(number)
            except OutcomeUnknown:
                told.unknown.add(number)
            await asyncio.sleep(self.random.uniform(0, 0.2))


@pytest.mark.parametrize("seed", range(40))
def test_whatever_happens_to_members_callers_are_told_what_is_so(seed: int) -> None:
    async def main() -> None:
        server, random, told = MemoryServer(random=Random(seed)), Random(seed), Told()
        processes = [Process(server, name, 10 * seed + i) for i, name in enumerate("XY")]
        lives = [asyncio.create_task(p.live()) for p in processes]

        async def disturb() -> None:
            while True:
                await asyncio.sleep(random.uniform(0.2, 2))
                match random.randrange(4):
                    case 0:
                        server.txn([], [Delete(keys.member(random.choice("XY")))], [])
                    case 1:
                        server.txn([], [Put(b"flip", b"")], [])
                    case 2:
                        server.txn([], [Delete(b"flip")], [])
                    case 3:
                        store = random.choice(processes).store
                        store.pause()
                        await asyncio.sleep(random.choice([0.3, 1.0]))
                        store.resume()

        disturbing = asyncio.create_task(disturb())
        await asyncio.gather(*(processes[p % 2].produce(p, told) for p in range(6)))
        for task in (disturbing, *lives):
            task.cancel()
        await asyncio.wait([disturbing, *lives])
        await asyncio.sleep(5)

        headers = sorted(server.get(get_prefix(keys.headers("Q"))).kvs, key=lambda kv: (kv.create_revision, kv.key))
        found = [(int(e.message_id), kv.create_revision) for kv in headers for e in pb.SegmentHeader.FromString(kv.value).entries]
        numbers = [n for n, _ in found]
        assert len(set(numbers)) == len(numbers)
        assert told.not_applied.isdisjoint(numbers)
        assert {n: r for n, r in found if n not in told.unknown} == told.committed
        for p in range(6):
            assert [n for n in numbers if n // 1000 == p] == sorted(n for n in numbers if n // 1000 == p)
        totals = server.get(get_prefix(keys.totals("Q"))).kvs
        assert sum(pb.Totals.FromString(kv.value).put for kv in totals) == len(found)
        assert len(told.committed) > 20
        assert all(p.incarnations == sorted(set(p.incarnations)) for p in processes)

    run(main())
