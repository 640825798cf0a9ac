"""Members, initiators, the partner and paths fail at random while messages are put: all arrive, once, in order, and nothing is left."""

from __future__ import annotations

import asyncio
import random

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Refusal
from qsg.rules.unit import Fenced, OutcomeUnknown
from support.channel_group import CHANNEL, XMITQ, Station, Town, town
from support.simulated import simulated

MEMBERS = ("X", "Y", "Z")


class Chaos:
    def __init__(self, made: Town, seed: int) -> None:
        self.town = made
        self.chance = random.Random(seed)
        self.sent: list[str] = []
        self.uncertain: set[str] = set()
        self.partner_up = True
        self.story: list[str] = []

    def alive(self) -> list[Station]:
        """Members that are neither dead nor fenced; at least one, mostly."""
        stations = [self.town.stations[m] for m in MEMBERS]
        return [s for s in stations if s.alive and not any(x.fenced.is_set() for x in s.structures.values())]

    async def put(self) -> None:
        if not self.alive():
            await self.start()
        station = self.chance.choice(self.alive())
        text = f"m{len(self.sent):05d}"
        self.sent.append(text)
        try:
            async with asyncio.timeout(5):
                await self.town.put([text], station)
        except (Fenced, OutcomeUnknown, TimeoutError, Refusal):
            self.uncertain.add(text)

    async def act(self) -> None:
        name = self.chance.choices(
            ["kill", "start", "initiator", "partner", "reset", "stop", "go", "drain", "cut", "move"], [3, 6, 2, 2, 2, 1, 3, 1, 1, 2]
        )[0]
        if not self.alive():
            name = "start"
        self.story.append(f"{asyncio.get_running_loop().time():.2f} {name}")
        await getattr(self, name)()

    async def kill(self) -> None:
        if len(self.alive()) > 1:
            await self.town.kill(self.chance.choice(self.alive()).name)

    async def start(self) -> None:
        for name in MEMBERS:
            if self.town.stations[name] not in self.alive():
                if self.town.stations[name].alive:
                    await self.town.kill(name)
                await self.town.station(name)
                return

    async def initiator(self) -> None:
        pair = self.chance.choice(self.alive()).pair
        await pair.stop_initiator()
        await asyncio.sleep(self.chance.choice([0.0, 0.05, 0.5]))
        try:
            async with asyncio.timeout(3):
                await pair.start_initiator()
        except TimeoutError:
            self.story.append(f"the queue manager of {pair.name} was fenced meanwhile")

    async def partner(self) -> None:
        pair = self.town.stations["R"].pair
        if self.partner_up:
            await pair.stop_initiator()
        else:
            await pair.start_initiator()
        self.partner_up = not self.partner_up

    async def reset(self) -> None:
        self.town.network.reset(self.chance.choice(MEMBERS), "R")

    async def stop(self) -> None:
        await self._command("stop", mode=self.chance.choice(["quiesce", "force"]), status=self.chance.choice(["stopped", "inactive"]))

    async def go(self) -> None:
        await self._command("start")

    async def move(self) -> None:
        await self._command("move", to=self.chance.choice(["", *MEMBERS]))

    async def _command(self, name: str, **arguments: object) -> None:
        try:
            await self.chance.choice(self.alive()).command(name, channel=CHANNEL, wait_s=0.1, **arguments)
        except (Refusal, Fenced, OutcomeUnknown) as error:
            self.story.append(repr(error))

    async def drain(self) -> None:
        if len(self.alive()) > 1:
            station = self.chance.choice(self.alive())
            await station.supervisor.drain(3.0)
            await station.close()

    async def cut(self) -> None:
        store = self.chance.choice(self.alive()).stores[self.town.home]
        store.cut()
        await asyncio.sleep(self.chance.choice([0.1, 1.0, 2.5]))
        store.heal()

    async def settle(self) -> None:
        """Everything is mended: the channel must run (invariant 6)."""
        if not self.partner_up:
            await self.partner()
        for _ in MEMBERS:
            await self.start()
        for _ in range(40):
            await asyncio.sleep(0.5)
            await self.start()
            entry = await self.town.entry()
            if entry is not None and entry.state == pb.RUNNING and not self.town.prefix(self.town.home, keys.headers(XMITQ)):
                return
            if entry is None or entry.state == pb.STOPPED:
                await self.go()


@pytest.mark.parametrize("apart", [False, True], ids=["one store", "two structures"])
@pytest.mark.parametrize("seed", range(4))
@simulated
async def test_chaos(seed: int, apart: bool) -> None:
    async with town(*MEMBERS, apart=apart) as made:
        chaos = Chaos(made, seed)
        for _ in range(40):
            for _ in range(chaos.chance.randrange(4)):
                await chaos.put()
            await chaos.act()
            await asyncio.sleep(chaos.chance.choice([0.0, 0.01, 0.1, 0.5, 2.0]))
        await chaos.settle()

        arrived = await made.arrived()
        told = f"seed {seed}: {chaos.story[-20:]} entry {await made.entry()}"
        assert len(arrived) == len(set(arrived)), told
        missing = [m for m in chaos.sent if m not in set(arrived) and m not in chaos.uncertain]
        assert missing == [], told
        entry = await made.entry()
        assert entry is not None and entry.state == pb.RUNNING, told
        assert made.prefix(made.home, keys.consumptions(XMITQ)) == [], told
        assert len(made.prefix("admin", keys.STATUS_OUT)) == 1, told
