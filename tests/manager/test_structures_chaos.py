"""Messages between structures while members, initiators, connections and structures fail at random."""

from __future__ import annotations

import asyncio
import random

import pytest

from qsg.rules import keys
from qsg.rules.internal import internal_queue
from qsg.rules.reasons import Refusal
from qsg.rules.unit import Fenced, OutcomeUnknown
from support.simulated import simulated
from support.structures import group
from support.whole import DLQ, Universe, queue, universe


class Chaos:
    """R and X's applications send to queues of both structures and to a private queue of Y, while things fail at random."""

    ROADS = (("R", "NEAR", "G", "NEAR"), ("R", "FAR", "G", "FAR"), ("R", "OWN", "Y", "OWN"), ("APP", "OWN", "Y", "OWN"))

    def __init__(self, made: Universe, seed: int) -> None:
        self.made, self.chance = made, random.Random(seed)
        self.sent: dict[tuple[str, str], list[str]] = {(road[0], road[3]): [] for road in self.ROADS}
        self.story: list[str] = []

    def living(self) -> list[str]:
        return [m for m in "XYZ" if self.made[m].serving and not self.made[m].manager.fenced.is_set()]

    async def put(self) -> None:
        source, name, queue_manager, target = self.chance.choice(self.ROADS)
        at = source if source == "R" else self.chance.choice(self.living() or ["R"])
        if source != "R" and at in ("R", "Y"):
            return
        sent = self.sent[source, target]
        text = f"{source}{len(sent):04d}"
        try:
            async with asyncio.timeout(3):
                await self.made[at].put(name, text, queue_manager=queue_manager)
            sent.append(text)
        except (Refusal, Fenced, OutcomeUnknown, TimeoutError) as error:
            self.story.append(f"{text} at {at}: {error!r}")
            sent.append(f"?{text}")

    async def act(self) -> None:
        name = self.chance.choices(["kill", "again", "initiator", "reset", "cut", "nothing"], [3, 5, 2, 2, 2, 2])[0]
        member = self.chance.choice("XYZ")
        self.story.append(f"{asyncio.get_running_loop().time():.2f} {name} {member}")
        host = self.made[member]
        if name == "kill" and host.alive and len(self.living()) > 1:
            await host.kill()
        elif name == "again" and not host.alive:
            await self.made.again(member)
        elif name == "initiator" and host.alive:
            self.made.network.reset(member, f"{member}-qm")
        elif name == "reset":
            self.made.network.reset("R", member)
        elif name == "cut" and host.alive:
            store = host.stores[self.chance.choice(["admin", "app1"])]
            store.cut()
            await asyncio.sleep(self.chance.choice([0.1, 0.6, 2.5, 7.0]))
            store.heal()

    async def settle(self) -> None:
        for member in "XYZ":
            if not self.made[member].alive:
                await self.made.again(member)
        for _ in range(60):
            await asyncio.sleep(0.5)
            if not self.waiting() and len(self.living()) == 3:
                return

    def waiting(self) -> list[str]:
        shared = [internal_queue("admin", t) for t in ("app1", "private.X", "private.Y", "private.Z")]
        left = [name for name in shared if self.made.found("G admin", keys.headers(name))]
        return left + (["G at R"] if self.made.found("private R", keys.headers("G")) else [])

    async def check(self) -> None:
        told = "\n".join(self.story[-30:])
        assert not self.waiting(), (self.waiting(), [str(e) for e in self.made.entries()], told)
        assert await self.made["X"].texts(DLQ) == [], told
        found = {
            "NEAR": await self.made["X"].texts("NEAR"),
            "FAR": await self.made["X"].texts("FAR"),
            "OWN": await self.made["Y"].texts("OWN"),
        }
        for (source, target), sent in self.sent.items():
            arrived = [text for text in found[target] if text.startswith(source)]
            sure = [text for text in sent if not text.startswith("?")]
            assert [text for text in arrived if text in set(sure)] == sure, (source, target, told)
            assert len(set(arrived)) == len(arrived), (source, target, told)
            assert {f"?{text}" for text in arrived if text not in set(sure)} <= set(sent), (source, target, told)


@pytest.mark.parametrize("seed", range(6))
@simulated
async def test_chaos_between_structures(seed: int) -> None:
    async with universe("admin", "app1") as u:
        await group(u, "X", "Y", "Z")
        await u["R"].manager.queues.define(queue("Y", type="remote", remote_queue_manager="Y", transmission_queue="G"))
        chaos = Chaos(u, seed)
        for _ in range(40):
            for _ in range(chaos.chance.randrange(6)):
                await chaos.put()
            await chaos.act()
            await asyncio.sleep(chaos.chance.choice([0.0, 0.003, 0.02, 0.1, 0.5, 2.0]))
        await chaos.settle()
        await chaos.check()
