"""Members put, get, commit and back out over stores that delay, lose and repeat, and one of them dies: each message is got once.

What is checked is the ledger of what callers were told: a put that was acknowledged is got exactly once, one that was refused never, one
whose outcome is unknown at most once. So is what was to be handed out to a plain get, or committed, when its member died: those very
messages and no others; what a get was refused, or was backed out, is got.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from qsg.manager.assigning import Request
from qsg.manager.getting import GetSpec, GetterLoop, GotMessage
from qsg.manager.producers import ProducerNumber
from qsg.manager.queues import PutRequest
from qsg.manager.units import UnitOfWork
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown
from qsg.store.contract import Unavailable, get_prefix
from qsg.store.faults import RandomFaults
from support.members import Group, Member, group, shared
from support.simulated import simulated

QUEUES = ("A", "B")
PUTS = 25


def names(got: list[GotMessage]) -> set[bytes]:
    return {g.message.payload.split(b"|")[0] for g in got}


class Ledger:
    def __init__(self, random: Random) -> None:
        self.random = random
        self.acknowledged: set[bytes] = set()
        self.unknown: set[bytes] = set()
        self.got: Counter[bytes] = Counter()
        self.meant: dict[int, set[bytes]] = {}
        self.putting = 0

    async def put(self, member: Member, name: str) -> None:
        """A producer of one queue: plain puts, some in a unit of work, some large."""
        queue = self.random.choice(QUEUES)
        self.putting += 1
        try:
            for i in range(PUTS):
                payloads = [b"%s %s %d %d|" % (name.encode(), queue.encode(), i, k) for k in range(self.random.randint(1, 4))]
                if self.random.random() < 0.03:
                    payloads[0] += bytes(300_000)
                await self._put(member, queue, payloads)
        except Fenced:
            return
        finally:
            self.putting -= 1

    async def _put(self, member: Member, queue: str, payloads: list[bytes]) -> None:
        requests = [PutRequest(queue, pb.Message(payload=p)) for p in payloads]
        put = {p.split(b"|")[0] for p in payloads}
        unit = member.queues.begin() if self.random.random() < 0.3 else None
        try:
            await member.queues.put(requests, unit=unit, affinity=payloads[0].split(b" ")[0].decode())
            if unit is not None:
                if self.random.random() < 0.2:
                    await unit.backout()
                    return
                await unit.commit()
            self.acknowledged |= put
        except (OutcomeUnknown, Unavailable):  # by chance a store loses everything for 5 s
            self.unknown |= put
        except Refusal as refusal:
            assert refusal.reason is Reason.Q_MGR_STOPPING, refusal
            raise Fenced from refusal

    async def get(self, member: Member) -> None:
        """A getter of one queue until nothing comes any more: plain gets and units of work."""
        queue = self.random.choice(QUEUES)
        while True:
            unit = member.queues.begin() if self.random.random() < 0.5 else None
            count = self.random.randint(1, 5)
            spec = GetSpec(queue, messages_max=count, wait_ms=500 if self.putting else 0)
            doubtful: set[bytes] = set()
            try:
                got = await self._get(member, spec, unit, doubtful)
                if unit is not None:
                    if self.random.random() < 0.3:
                        await unit.backout()
                        continue
                    doubtful |= names(got)
                    await unit.commit()
            except Refusal as refusal:
                if refusal.reason is not Reason.NO_MSG_AVAILABLE:
                    return
                if not self.putting:
                    return
                continue
            except Fenced:
                return
            except OutcomeUnknown:
                self.unknown |= doubtful
                return
            self._count(got)

    async def _get(self, member: Member, spec: GetSpec, unit: UnitOfWork | None, doubtful: set[bytes]) -> list[GotMessage]:
        """A plain get adds to `doubtful` what it was to be handed out if it is not known whether it was taken."""
        try:
            return await member.queues.get(spec, unit=unit)
        except OutcomeUnknown:
            if unit is None:
                doubtful |= self.meant[id(spec)]
            raise

    def spy(self, patch: pytest.MonkeyPatch) -> None:
        """Notes what each get is meant to be handed out in the round that is under way."""
        messages = GetterLoop._messages

        async def noted(loop: GetterLoop, request: Request) -> list[GotMessage]:
            found = await messages(loop, request)
            self.meant[id(request.spec)] = names(found)
            return found

        patch.setattr(GetterLoop, "_messages", noted)

    def _count(self, got: list[GotMessage]) -> None:
        for g in got:
            self.got[g.message.payload.split(b"|")[0]] += 1


async def finish(ledger: Ledger, member: Member) -> None:
    """Everything that is left is got by one member."""
    for queue in QUEUES:
        while True:
            try:
                ledger._count(await member.queues.get(GetSpec(queue, messages_max=100, wait_ms=3_000)))
            except Refusal as refusal:
                assert refusal.reason is Reason.NO_MSG_AVAILABLE
                break


async def nothing_left(member: Member) -> None:
    for queue in QUEUES:
        assert (await member.queues.depth(queue)).messages == 0
        _, (found,) = await member.structures["app1"].read(get_prefix(keys.queue(queue), keys_only=True))
        kinds = {kv.key[len(keys.queue(queue)) :].split(b"/")[0] for kv in found.kvs}
        assert kinds <= {b"d", b"n", b"x", b"y"}, kinds


async def members(g: Group, count: int) -> list[Member]:
    made = [await g.member(name) for name in "XYZ"[:count]]
    for queue in QUEUES:
        await made[0].queues.define(shared(queue))
    await asyncio.sleep(0.5)
    return made


@pytest.mark.parametrize("seed", [*range(8), 31, 35, 61, 87])  # the latter: a victim's take is out, and is done
@simulated
async def test_each_message_once(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(seed)
    async with group() as g:
        made = await members(g, 3)
        for member in made:
            rate = random.choice([0.0, 0.02, 0.1])
            member.stores["app1"].faults = RandomFaults(random, 0.01, rate, rate, rate, rate, 1.0)
        ledger = Ledger(random)
        ledger.spy(monkeypatch)
        jobs = [ledger.put(m, f"{m.name}{i}") for m in made for i in range(2)]
        jobs += [ledger.get(m) for m in made for _ in range(2)]
        victim = made[2] if seed % 2 else None
        tasks = [asyncio.create_task(job) for job in jobs]
        if victim is not None:
            await asyncio.sleep(random.uniform(0.1, 1.0))
            victim.stores["app1"].faults = RandomFaults(random)
            await victim.crash()
        await asyncio.gather(*tasks)
        for member in made[:2]:
            member.stores["app1"].faults = RandomFaults(random)
        await finish(ledger, made[0])

        assert {n: c for n, c in ledger.got.items() if c > 1} == {}
        assert ledger.acknowledged - set(ledger.got) - ledger.unknown == set()
        assert set(ledger.got) <= ledger.acknowledged | ledger.unknown
        assert len(ledger.acknowledged) > PUTS
        await nothing_left(made[0])


@pytest.mark.parametrize("seed", range(3))
@simulated
async def test_numbered_puts_are_applied_once_in_order_whoever_takes_them(seed: int) -> None:
    """A producer that moves between members without waiting for answers, and repeats from what it is told."""
    random = Random(seed)
    async with group() as g:
        made = await members(g, 2)
        for member in made:
            member.stores["app1"].faults = RandomFaults(random, 0.02, 0.05, 0.05, 0.1, 0.1, 0.5)
        done, turn = 0, 0
        abandoned: list[asyncio.Task[list[bytes]]] = []
        while done < 30:
            member = made[turn % 2]
            turn += 1
            opened = await member.queues.open_producer("P", "A")
            assert opened.last >= done
            done = opened.last
            for _ in range(random.randint(1, 6)):
                number = ProducerNumber("P", "app1", opened.epoch, done + 1)
                put = asyncio.create_task(member.queues.put([PutRequest("A", pb.Message(payload=b"%d" % (done + 1)))], producer=number))
                if random.random() < 0.3:
                    abandoned.append(put)
                    await asyncio.sleep(random.uniform(0, 0.05))
                    break
                await put
                done += 1
        await asyncio.gather(*abandoned, return_exceptions=True)
        for member in made:
            member.stores["app1"].faults = RandomFaults(random)

        got: list[int] = []
        while True:
            try:
                got += [int(p) for p in await made[0].get("A", 10)]
            except Refusal:
                break
        assert got == list(range(1, len(got) + 1))
        assert len(got) >= done
        assert all(isinstance(t.exception(), Refusal | CompareFailed | None) for t in abandoned)
