"""What a transaction wrote is learned from a second answer, which shows what others have made of it since; and a list that went on late."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.store.contract import Get, Op, Put, Unavailable
from support.channel_group import CHANNEL, RETRY, XMITQ, Station, Town, sending, texts, town
from support.simulated import simulated


class Lost:
    """The first answer to a transaction with an operation like that is lost, and its member's path to that structure cut until `heal`."""

    def __init__(self, structure: str, like: Callable[[Op], bool], *stations: Station) -> None:
        self.at: Station | None = None
        self._lost, self._cut, self._like = asyncio.Event(), False, like
        for station in stations:
            self._tap(station, structure)

    def _tap(self, station: Station, structure: str) -> None:
        store = station.stores[structure]
        txn = store.txn

        async def tapped(compares: Any, ops: Any, *rest: Any, **options: Any) -> Any:
            if self._cut and self.at is station:
                await asyncio.sleep(0.05)
                raise Unavailable("cut")
            result = await txn(compares, ops, *rest, **options)
            if self.at is None and result.succeeded and any(map(self._like, ops)):
                self.at, self._cut = station, True
                self._lost.set()
                raise Unavailable("the answer is lost")
            return result

        store.txn = tapped  # type: ignore[method-assign]

    async def other(self, t: Town) -> Station:
        """Once it is lost: a member that is not cut off."""
        await asyncio.wait_for(self._lost.wait(), 5)
        return next(t.stations[name] for name in "XY" if t.stations[name] is not self.at)

    def heal(self) -> None:
        self._cut = False


def starting(op: Op) -> bool:
    entry = status.parse(op.value) if isinstance(op, Put) and op.key == keys.status_out(CHANNEL) else None
    return entry is not None and entry.state == pb.STARTING


def writes(key: bytes) -> Callable[[Op], bool]:
    return lambda op: isinstance(op, Put) and op.key == key


def lock_of(t: Town) -> pb.Lock | None:
    kv = t.servers[t.home].get(Get(keys.lock(XMITQ))).first
    return None if kv is None else pb.Lock.FromString(kv.value)


@simulated
async def test_a_take_does_not_put_another_s_entry_back() -> None:
    """It was stopped behind the taker's first step: STOPPED stays, though the taker learns of that entry only now."""
    async with town("X", "Y", apart=True) as t:
        lost = Lost("admin", starting, t.stations["X"], t.stations["Y"])
        await t.put(texts(0, 1), t.stations["X"])
        await (await lost.other(t)).command("stop", channel=CHANNEL, mode="force")
        lost.heal()
        await asyncio.sleep(6)
        assert status.state_of(await t.entry()) == pb.STOPPED and await t.arrived() == []


@simulated
async def test_a_take_does_not_give_up_another_s_lock() -> None:
    async with town("X", "Y", apart=True) as t:
        lost = Lost("app1", writes(keys.lock(XMITQ)), t.stations["X"], t.stations["Y"])
        await t.put(texts(0, 1), t.stations["X"])
        other = await lost.other(t)
        await other.command("stop", channel=CHANNEL, mode="force")
        await other.command("start", channel=CHANNEL)
        await t.until(pb.RUNNING, owner=other.name)
        lost.heal()
        await asyncio.sleep(5)
        lock = lock_of(t)
        assert lock is not None and lock.member == other.name


@simulated
async def test_a_take_whose_entry_is_gone_is_refused() -> None:
    """And not the end of the task that looks after the channel."""
    async with town("X", "Y") as t:
        lost = Lost("admin", starting, t.stations["X"], t.stations["Y"])
        await t.put(texts(0, 1), t.stations["X"])
        other = await lost.other(t)
        assert lost.at is not None
        caretaker = lost.at.supervisor.channels[CHANNEL]
        await other.command("stop", channel=CHANNEL, mode="force", status="inactive")
        lost.heal()
        await caretaker.finished()
        assert caretaker._task is not None and caretaker._task.exception() is None


@pytest.mark.parametrize("apart", [False, True])
@simulated
async def test_a_stop_does_not_raise_an_epoch_that_an_owner_has_raised_since(apart: bool) -> None:
    async with town("X", "Y", "Z", apart=apart) as t:
        _, (one, other) = await sending(t, 1)
        lost = Lost(t.home, writes(keys.sender_fence(XMITQ)), one)
        stopping = asyncio.create_task(one.command("stop", channel=CHANNEL, mode="force", wait_s=8))
        await lost.other(t)
        await other.command("stop", channel=CHANNEL, mode="force")
        await other.command("start", channel=CHANNEL)
        running = await t.until(pb.RUNNING)
        lost.heal()
        await stopping
        await asyncio.sleep(5)
        entry = await t.entry()
        assert entry is not None and (entry.owner, entry.epoch) == (running.owner, running.epoch)


@simulated
async def test_an_owner_that_gives_up_stops_its_own_channel_only() -> None:
    """Its path to the store is slow while the channel is stopped and started elsewhere: it finds another's entry, and lets it be."""
    async with town("X", "Y", retry={**RETRY, "short_count": 0, "long_count": 0}) as t:
        first, (other,) = await sending(t, 1)
        t.stations[first].stores["admin"].cut()
        await other.command("stop", channel=CHANNEL, mode="force")
        await other.command("start", channel=CHANNEL)
        await t.until(pb.RUNNING, owner=other.name)
        t.stations[first].stores["admin"].heal()
        await asyncio.sleep(4)
        entry = await t.entry()
        assert entry is not None and (entry.state, entry.owner) == (pb.RUNNING, other.name)


@simulated
async def test_a_start_behind_the_last_look_of_who_carried_the_stop_is_not_overlooked() -> None:
    """It has read STOPPED, and the answer is on its way when the channel is started again at the same member."""
    async with town("X") as t:
        await sending(t, 1)
        x = t.stations["X"]
        table = x.supervisor.tables["admin"]
        read = table.read

        async def slow(channel: str) -> pb.ChannelStatus | None:
            entry = await read(channel)
            task = asyncio.current_task()
            if status.state_of(entry) == pb.STOPPED and task is not None and task.get_name().startswith("channel "):
                await asyncio.sleep(0.15)
            return entry

        table.read = slow  # type: ignore[method-assign]
        await x.command("stop", channel=CHANNEL)
        began = asyncio.get_running_loop().time()
        await x.command("start", channel=CHANNEL)
        entry = await t.until(pb.RUNNING)
        assert asyncio.get_running_loop().time() - began < 0.5 and entry.takeovers == 0


@pytest.mark.parametrize("phase_s", [0.0, 0.35, 0.7])
@simulated
async def test_who_resolves_is_not_outrun_by_who_carries_the_stop_on(phase_s: float) -> None:
    """The partner is silent, so each attempt of both waits for it: the stop need not raise the epoch above the resolver's."""
    async with town("X", "Y", connection_names=["R:1414", "R:1415", "R:1416"], retry={**RETRY, "short_ms": 1000}) as t:
        _, (other,) = await sending(t, 1)
        for member in "XY":
            t.network.cut(member, "R")
        await t.put(texts(1, 2), t.stations["X"])
        await asyncio.sleep(0.3)
        await other.command("stop", channel=CHANNEL, mode="force", wait_s=1)
        await asyncio.sleep(6 + phase_s)
        answer = await other.command("resolve", channel=CHANNEL, action="backout", force=True)
        assert "R is not fenced" in answer["risk"]
