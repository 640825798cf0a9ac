"""The client against real queue managers: two members of a group over one store in memory, connections cut while they work."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

import qsg
from qsg.client import producer
from qsg.manager.administration import Administration
from qsg.manager.backend import QueueManagerBackend
from qsg.manager.clients import SERVICE, ClientService
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as records
from qsg.rules import keys
from qsg.rules.unit import Committed, Unit
from qsg.store.contract import Delete, Put
from qsg.transport.memory import MemoryNetwork
from support.members import Group, Member, group, shared
from support.virtual_time import run


@dataclass
class Site:
    group: Group
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    members: dict[str, Member] = field(default_factory=dict)
    services: list[ClientService] = field(default_factory=list)

    async def start(self, name: str) -> None:
        member = self.members[name] = await self.group.member(name)
        administration = Administration(member.catalog, member.queues)
        backend = QueueManagerBackend(member.queues, administration.commands(), administration.inquiries())
        service = ClientService(member=name, group="G", backend=backend, world=member.world)
        self.services.append(service)
        await self.network.transport(name).listen(f"{name}:1416", {SERVICE: service.handler})

    def connect(self, **options: object) -> qsg.QueueManager:
        addresses = [f"{name}:1416" for name in self.members]
        world = self.members["X"].world
        return qsg.connect(addresses, transport=self.network.transport("app"), world=world, **options)  # type: ignore[arg-type]

    def cut(self, qmgr: qsg.QueueManager) -> None:
        if qmgr.member:
            self.network.reset("app", qmgr.member)


@asynccontextmanager
async def started() -> AsyncIterator[Site]:
    async with group() as g:
        site = Site(g)
        await site.start("X")
        await site.start("Y")
        await site.members["X"].queues.define(shared("A"))
        await site.members["X"].queues.define(shared("B"))
        await asyncio.sleep(0.01)
        try:
            yield site
        finally:
            for service in site.services:
                await service.close()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with started() as site:
        yield site


def slow_network(site: Site, chance: random.Random) -> None:
    """Frames take 0 to 2 ms (of virtual time), so that cuts come in the middle of everything."""
    site.network.delay = lambda source, target: chance.uniform(0, 0.002)


async def test_priority_none_is_the_queues_default(site: Site) -> None:
    await site.members["X"].queues.define(shared("A", default_priority=6))
    async with site.connect(application="app") as qmgr:
        await qmgr.put("A", b"zero", priority=0)
        await qmgr.put("A", b"plain")
        await qmgr.put("A", b"with an id", correlation_id=b"c")
        async with qmgr.unit() as unit:
            await unit.put("A", b"in a unit")
        got = await qmgr.get_many("A", 10)
    assert [(m.priority, m.payload) for m in got] == [(6, b"plain"), (6, b"with an id"), (6, b"in a unit"), (0, b"zero")]


@pytest.mark.parametrize("altered", [{"put_enabled": False}, {"max_depth": 1}])
async def test_what_was_got_from_a_queue_that_takes_no_put_is_committed(site: Site, altered: dict[str, object]) -> None:
    x = site.members["X"]
    await x.put("A", b"1", b"2", b"3")
    await x.queues.define(shared("A", **altered))
    await asyncio.sleep(0.5)
    async with site.connect() as qmgr, qmgr.unit() as unit:
        await unit.get("A")
    assert await x.get("A", 9) == [b"2", b"3"]


async def test_put_browse_get(site: Site) -> None:
    async with site.connect(application="app") as qmgr:
        ids = await qmgr.put_many("A", [b"%d" % i for i in range(300)])
        low = await qmgr.put("A", b"first", priority=9)
        browsed = [message.payload async for message in qmgr.browse("A")]
        told = await qmgr.inquire_queue("A")
        got = await qmgr.get_many("A", 1_000)
        with pytest.raises(qsg.NoMessageAvailable):
            await qmgr.get("A")

    assert browsed == [b"first"] + [b"%d" % i for i in range(300)]
    assert [message.message_id for message in got][:301] == [low, *ids][: len(got)]
    assert got[0].put_application == "app"
    assert told["depth"] == 301


async def test_definitions(site: Site) -> None:
    async with site.connect() as qmgr:
        definition = {"name": "NEW", "structure": "app1", "max_depth": 2}
        assert (await qmgr.command("define", kind="queue", definition=definition))["max_depth"] == 2
        assert (await qmgr.command("define", kind="queue", definition=definition | {"max_depth": 1}))["max_depth"] == 1
        with pytest.raises(qsg.DefinitionError, match="max_depth"):
            await qmgr.command("define", kind="queue", definition=definition | {"max_depth": -1})
        await qmgr.put("NEW", b"1")
        with pytest.raises(qsg.QueueFull):
            await qmgr.put("NEW", b"2")
        assert {queue["name"] for queue in (await qmgr.inquire("queues"))["queues"]} >= {"A", "B", "NEW"}
        with pytest.raises(qsg.QsgError, match="Q_NOT_EMPTY"):
            await qmgr.command("delete", kind="queue", name="NEW")
        await qmgr.command("purge", name="NEW")
        await qmgr.command("delete", kind="queue", name="NEW")
        with pytest.raises(qsg.UnknownObjectName):
            await qmgr.put("NEW", b"3")


async def everything(member: Member, queue: str) -> list[int]:
    got: list[int] = []
    while (await member.queues.depth(queue)).messages:
        got += [int(payload) for payload in await member.get(queue, 500)]
    return got


async def cut_again_and_again(site: Site, qmgr: qsg.QueueManager, chance: random.Random, pauses_s: tuple[float, float]) -> None:
    while True:
        await asyncio.sleep(chance.uniform(*pauses_s))
        site.cut(qmgr)


@pytest.mark.parametrize("seed", range(5))
def test_numbered_puts_survive_any_cuts(seed: int) -> None:
    async def main() -> tuple[list[int], list[int], int]:
        chance = random.Random(seed)
        async with started() as site:
            slow_network(site, chance)
            async with site.connect(producer="P") as qmgr:
                cutting = asyncio.create_task(cut_again_and_again(site, qmgr, chance, (0, 0.02)))
                await asyncio.gather(*(qmgr.put("A" if i % 2 else "B", b"%d" % i) for i in range(400)))
                for i in range(400, 440):
                    await qmgr.put("A" if i % 2 else "B", b"%d" % i)
                cutting.cancel()
                lost = qmgr.reconnections
            x = site.members["X"]
            return await everything(x, "A"), await everything(x, "B"), lost

    odd, even, lost = run(main())
    assert odd == list(range(1, 440, 2))
    assert even == list(range(0, 440, 2))
    assert lost > 3


@pytest.mark.parametrize("seed", range(5))
def test_numbered_puts_to_ever_new_targets_survive_any_cuts(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening the producer for the next one fences what is in flight."""
    monkeypatch.setattr(producer, "ROUTE_S", 0.0)
    commit, chance = Structure.commit, random.Random(seed)

    async def slow(structure: Structure, unit: Unit, **options: Any) -> Committed:
        if unit.label == "put":
            await asyncio.sleep(chance.choice((0, 0, 0.01)))
        return await commit(structure, unit, **options)

    monkeypatch.setattr(Structure, "commit", slow)
    queues = [f"N{number}" for number in range(12)]

    async def main() -> tuple[list[list[int]], list[int], int]:
        async with started() as site:
            x = site.members["X"]
            for queue in queues:
                await x.queues.define(shared(queue))
            await asyncio.sleep(0.05)
            slow_network(site, chance)
            async with site.connect(producer="P") as qmgr:

                async def putter(first: int) -> None:
                    for i in range(first, 400, 4):
                        await qmgr.put("A", b"%d" % i)

                async def to_new_targets() -> None:
                    for number in range(len(queues)):
                        await asyncio.sleep(chance.uniform(0, 0.1))
                        await asyncio.gather(*(qmgr.put(queue, b"%d" % number) for queue in queues[: number + 1]))

                cutting = asyncio.create_task(cut_again_and_again(site, qmgr, chance, (0, 0.2)))
                await asyncio.gather(*(putter(first) for first in range(4)), to_new_targets())
                cutting.cancel()
                lost = qmgr.reconnections
            return [await everything(x, queue) for queue in queues], await everything(x, "A"), lost

    new, known, lost = run(main())
    assert new == [list(range(number, len(queues))) for number in range(len(queues))]
    assert [[i for i in known if i % 4 == first] for first in range(4)] == [list(range(first, 400, 4)) for first in range(4)]
    assert lost > 3


@pytest.mark.parametrize("seed", range(5))
def test_units_of_work_survive_any_cuts(seed: int) -> None:
    async def main() -> tuple[list[int], list[int], int]:
        chance = random.Random(seed)
        committed: list[int] = []
        backed_out = 0
        async with started() as site:
            x = site.members["X"]
            await x.put("A", *(b"%d" % i for i in range(40)))
            slow_network(site, chance)
            async with site.connect() as qmgr:

                async def move() -> None:
                    nonlocal backed_out
                    while (await x.queues.depth("A")).messages:
                        try:
                            async with qmgr.unit() as unit:
                                message = await unit.get("A", wait_ms=5)
                                await unit.put("B", message.payload)
                        except qsg.BackedOut:
                            backed_out += 1
                        except qsg.NoMessageAvailable:
                            continue
                        else:
                            committed.append(int(message.payload))

                cutting = asyncio.create_task(cut_again_and_again(site, qmgr, chance, (0.005, 0.04)))
                await asyncio.gather(*(move() for _ in range(3)))
                cutting.cancel()
            return sorted(await everything(x, "B")), sorted(committed), backed_out

    moved, committed, backed_out = run(main())
    assert moved == list(range(40))
    assert committed == moved
    assert backed_out > 0


async def test_the_newer_of_two_producers_wins_when_the_older_comes_back(site: Site) -> None:
    async with site.connect(producer="P") as older, site.connect(producer="P") as newer:
        await older.put("A", b"1")
        await newer.put("A", b"2")
        site.cut(older)
        await asyncio.sleep(0.1)
        with pytest.raises(qsg.ProducerFenced):
            await older.put("A", b"3")
        await newer.put("A", b"4")


@pytest.mark.parametrize("restored", [False, True], ids=["forgotten", "restored"])
async def test_a_producer_whose_record_is_gone_goes_on(site: Site, restored: bool) -> None:
    async with site.connect(producer="P") as qmgr:
        await qmgr.put("A", b"1")
        structure, epoch, _ = await qmgr.producer_state("A")
        key = keys.producer("P")
        older = records.ProducerRecord(epoch=epoch - 1, expires_at_ms=1 << 50).SerializeToString()
        gone = Put(key, older) if restored else Delete(key)
        await site.members["X"].catalog.structure(structure).commit(Unit("lose the record", ops=[gone]))
        await asyncio.gather(*(qmgr.put("A", b"%d" % i) for i in range(2, 5)))
        assert await site.members["X"].get("A", 9) == [b"1", b"2", b"3", b"4"]


async def test_the_member_dies_between_commit_and_answer(site: Site) -> None:
    async with site.connect(queue_manager="G", producer="P") as qmgr:
        await qmgr.put("A", b"1")
        dead = qmgr.member
        survivor = site.members["Y" if dead == "X" else "X"]
        in_flight = [asyncio.create_task(qmgr.put("A", b"%d" % i)) for i in range(2, 6)]
        await asyncio.sleep(0)
        site.network.kill(dead)
        await site.members[dead].crash()
        await asyncio.gather(*in_flight)

        assert qmgr.member == survivor.name
    assert await survivor.get("A", 10) == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_command_whose_store_is_away_is_refused_only_if_it_has_done_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.structure.READ_S", 0.2)
    new: dict[str, object] = {"kind": "queue", "definition": {"name": "NEW", "structure": "app1"}}
    nothing: list[tuple[str, str, dict[str, object]]] = [
        ("app1", "define", new),
        ("admin", "define", {"kind": "settings", "definition": {"hop_limit": 9}}),
        ("app1", "purge", {"name": "A"}),
        ("app1", "delete", {"kind": "queue", "name": "A"}),
        ("app1", "apply", {"definitions": {"queues": [{"name": "NEW", "structure": "app1"}]}}),
    ]
    async with site.connect() as qmgr:
        stores = site.members[qmgr.member].stores
        for structure, name, arguments in nothing:
            stores[structure].cut()
            with pytest.raises(qsg.StructureNotAvailable, match="does not answer"):
                await qmgr.command(name, **arguments)
            stores[structure].heal()
        stores["admin"].cut()
        with pytest.raises(qsg.OutcomeUnknown, match="does not answer"):
            await qmgr.command("define", **new)  # it is made in app1 first
        stores["admin"].heal()
        await qmgr.command("define", **new)
