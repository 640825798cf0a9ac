"""At any moment at most one replica leads; one that is gone or cut off is followed soon, and no clock but one's own is believed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from qsg_operator import leader
from qsg_operator.api import ApiError
from qsg_operator.cache import Cache
from qsg_operator.leader import Leader
from support.fake_cluster import NAMESPACE, FakeApi
from support.simulated import simulated


class Replicas:
    def __init__(self) -> None:
        self.api = FakeApi(Cache())
        self.cut: set[str] = set()
        self.leaders: dict[str, Leader] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str) -> None:
        replicas = self

        class Way(FakeApi):
            """This replica's way to the one API server."""

            def __init__(self) -> None:
                self.__dict__ = dict(replicas.api.__dict__)

            def _call(self, verb: str, kind: str, of: str) -> None:
                if name in replicas.cut:
                    raise ApiError(0, "cut off")

        self.leaders[name] = Leader(Way(), NAMESPACE, name, lambda: None)
        self.tasks[name] = asyncio.get_running_loop().create_task(self.leaders[name].run())

    def leading(self) -> list[str]:
        found = sorted(name for name, one in self.leaders.items() if one.leading)
        assert len(found) <= 1
        return found

    async def until(self, wanted: list[str], limit_s: float) -> float:
        began = asyncio.get_running_loop().time()
        while self.leading() != wanted:
            assert asyncio.get_running_loop().time() - began < limit_s
            await asyncio.sleep(0.25)
        return asyncio.get_running_loop().time() - began

    async def end(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)


@contextlib.asynccontextmanager
async def replicas(*names: str) -> AsyncIterator[Replicas]:
    made = Replicas()
    for name in names:
        made.start(name)
        await asyncio.sleep(0.1)
    try:
        yield made
    finally:
        for name in names:
            await made.end(name)


@simulated
async def test_one_leads_and_goes_on_leading() -> None:
    async with replicas("a", "b") as r:
        for _ in range(500):
            await asyncio.sleep(0.25)
            assert r.leading() == ["a"]


@simulated
async def test_one_that_ends_hands_it_over() -> None:
    async with replicas("a", "b") as r:
        await r.until(["a"], 1)
        await r.end("a")
        assert await r.until(["b"], 10) <= leader.RENEW_S + 1


@simulated
async def test_one_that_is_cut_off_stops_before_the_other_begins() -> None:
    async with replicas("a", "b") as r:
        await r.until(["a"], 1)
        await asyncio.sleep(10)
        r.cut.add("a")
        assert await r.until([], 60) <= leader.GIVE_UP_S + leader.RENEW_S
        assert await r.until(["b"], 60) <= leader.DURATION_S + leader.RENEW_S
        r.cut.clear()
        for _ in range(200):
            await asyncio.sleep(0.25)
            assert r.leading() == ["b"]


@simulated
async def test_an_api_server_that_is_away_and_back_leaves_one_leader() -> None:
    async with replicas("a", "b", "c") as r:
        await r.until(["a"], 1)
        r.cut |= {"a", "b", "c"}
        await r.until([], 60)
        await asyncio.sleep(100)
        r.cut.clear()
        await asyncio.sleep(leader.DURATION_S + leader.RENEW_S)
        for _ in range(400):
            await asyncio.sleep(0.25)
            assert len(r.leading()) == 1


@simulated
async def test_a_lease_of_a_clock_far_ahead_is_not_believed() -> None:
    async with replicas("a", "b") as r:
        await r.until(["a"], 1)
        lease = r.api.objects["Lease", NAMESPACE, leader.NAME]
        lease["spec"]["renewTime"] = "2999-01-01T00:00:00.000000Z"
        r.cut.add("a")
        await r.until(["b"], 60)
