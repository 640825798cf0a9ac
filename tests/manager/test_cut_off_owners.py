"""A member loses the queue's structure alone, at the worst moments: the table does not go on naming it as the owner (scenario 1b)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from qsg.manager.office import Ended
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason
from qsg.rules.steps import Commit
from qsg.store.contract import Get
from support.channel_group import APART, CHANNEL, XMITQ, Station, Town, sending, texts, town
from support.simulated import simulated


class Cut:
    """`at`: the first of the members that was about to commit a unit with that label. It is cut off from app1 just then."""

    def __init__(self, t: Town, label: str) -> None:
        self.at: Station | None = None
        for name in "XY":
            self._tap(t.stations[name], label)

    def _tap(self, station: Station, label: str) -> None:
        driver = station.supervisor.driver
        execute: Callable[[Any], Awaitable[Any]] = driver.execute

        async def tapped(step: Any) -> Any:
            if self.at is None and isinstance(step, Commit) and step.unit.label == label:
                self.at = station
                station.stores["app1"].cut()
            return await execute(step)

        driver.execute = tapped  # type: ignore[method-assign]

    def other(self, t: Town) -> Station:
        assert self.at is not None
        return next(t.stations[name] for name in "XY" if t.stations[name] is not self.at)


ENDS = [Ended("idle", clean=True), Ended("failed", Reason.EPOCH_TOO_LOW, epoch_seen=9)]


@pytest.mark.parametrize("outcome", ENDS, ids=["idle", "epoch"])
@simulated
async def test_an_owner_that_is_cut_off_as_its_sender_ends_asks_the_others(outcome: Ended) -> None:
    async with town("X", "Y", apart=True) as t:
        cut: list[Station] = []

        def tap(station: Station) -> None:
            make = station.supervisor.office.make_sender

            def made(held: Any, instance: int) -> Any:
                sender: Any = make(held, instance)
                run = sender.run

                async def ends() -> Any:
                    if cut:
                        return await run()
                    cut.append(station)
                    station.stores["app1"].cut()
                    return outcome

                sender.run = ends
                return sender

            station.supervisor.office.make_sender = made

        for name in "XY":
            tap(t.stations[name])
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2), timeout_s=4.0)
        other = next(t.stations[name] for name in "XY" if t.stations[name] is not cut[0])
        entry = await t.until(pb.RUNNING, owner=other.name)
        assert (entry.takeovers, entry.takeover.cause) == (0, "communications failed"), "the owner itself has asked"


@simulated
async def test_a_triggered_start_that_is_cut_off_behind_its_entry_is_recovered_by_another() -> None:
    """The lock is not had, and whoever wrote STARTING cannot look whether it is."""
    async with town("X", "Y", apart=True) as t:
        cut = Cut(t, "lock")
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2), timeout_s=8.0)
        assert (await t.until(pb.RUNNING)).owner == cut.other(t).name


@simulated
async def test_a_commanded_start_that_is_cut_off_behind_its_entry_is_taken_back_for_others() -> None:
    async with town("X", "Y", apart=True) as t:
        await t.stations["Y"].pair.stop_initiator()
        await asyncio.sleep(0.5)  # so that X takes it, and nobody else is asked
        cut = Cut(t, "lock")
        await t.put(texts(0, 2), t.stations["X"])
        await t.stations["X"].command("start", channel=CHANNEL, wait_s=0)
        await t.until(pb.STARTING, owner="X")
        caretaker = t.stations["X"].supervisor.channels[CHANNEL]
        await t.stations["Y"].pair.start_initiator()
        await t.until_arrived(texts(0, 2), timeout_s=6.0)
        entry = await t.until(pb.RUNNING, owner=cut.other(t).name)
        assert entry.takeover.cause == "start was cut off"
        await asyncio.wait_for(caretaker.finished(), 1.0)


@simulated
async def test_a_leftover_whose_structure_goes_while_its_lock_is_given_up_is_recovered() -> None:
    """The lock was read; giving it up waits for the structure. The table does not."""
    async with town("X", "Y", apart=True) as t:
        first, (other,) = await sending(t)
        station = t.stations[first]
        cut = Cut(t, "unlock what nobody uses")
        task = station.supervisor.channels[CHANNEL]._task
        assert task is not None
        task.cancel()
        await t.put(texts(2, 4), other)
        await t.until_arrived(texts(0, 4), timeout_s=6.0)
        assert cut.at is station and (await t.until(pb.RUNNING, owner=other.name)).takeover.cause == "owner forgot it"


@simulated
async def test_a_stop_is_carried_on_while_no_member_reaches_its_queue_and_not_recovered_again_and_again() -> None:
    async with town("X", "Y", apart=True) as t:
        first, (other,) = await sending(t)
        station = t.stations[first]
        for cut in (other, station):
            cut.stores["app1"].cut()
        await station.command("stop", channel=CHANNEL, mode="force", wait_s=0)
        caretaker = station.supervisor.channels[CHANNEL]
        await asyncio.sleep(30)
        assert station.supervisor.channels[CHANNEL] is caretaker
        assert (await t.until(pb.STOPPING, owner=first)).takeovers == 0


@pytest.mark.parametrize("disposition", ["shared", "fixed-shared"])
@pytest.mark.parametrize("label", ["", "fence for a stop"], ids=["before", "within"])
@simulated
async def test_a_stop_whose_carrier_is_cut_off_from_the_queue_is_passed_to_a_member_that_reaches_it(label: str, disposition: str) -> None:
    """Before the stop, or within it, where a commit would wait for the structure. What was put meanwhile goes when it is started."""
    async with town("X", "Y", apart=True, disposition=disposition) as t:
        first, (other,) = await sending(t)
        station = t.stations[first]
        if label:
            Cut(t, label)
        else:
            station.stores["app1"].cut()
        await t.put(texts(2, 4), other)
        began = asyncio.get_running_loop().time()
        await other.command("stop", channel=CHANNEL, wait_s=0)
        entry = await t.until(pb.STOPPED, owner=other.name, timeout_s=6.0)
        assert asyncio.get_running_loop().time() - began < 5.0 and not entry.in_doubt
        await asyncio.sleep(3)
        arrived = await t.arrived()
        assert arrived == texts(0, len(arrived)), "in order, and once"
        await other.command("start", channel=CHANNEL)
        await t.until_arrived(texts(0, 4))


@simulated
async def test_a_stop_that_is_passed_on_leaves_in_doubt_what_was() -> None:
    """Nor does the member that it is passed to reach the partner."""
    async with town("X", "Y", apart=True) as t:
        first, (other,) = await sending(t)
        t.stations[first].stores["app1"].cut()
        await t.put(texts(2, 4), other)
        t.network.kill("R")
        await other.command("stop", channel=CHANNEL, wait_s=0)
        await t.until(pb.STOPPING, owner=other.name, timeout_s=6.0)
        await asyncio.sleep(2)
        entry = await t.until(pb.STOPPING, owner=other.name)
        kv = t.servers["app1"].get(Get(keys.sender_fence(XMITQ))).first
        assert entry.partner_not_fenced and kv is not None and pb.SenderFence.FromString(kv.value).open


@APART
@simulated
async def test_a_stop_whose_carrier_has_no_initiator_is_passed_to_a_member_that_has(apart: bool) -> None:
    """Whoever is asked for a forced stop carries it on, and cannot ask the partner."""
    async with town("X", "Y", apart=apart) as t:
        first, (other,) = await sending(t)
        await other.pair.stop_initiator()
        await other.command("stop", channel=CHANNEL, mode="force", wait_s=0)
        entry = await t.until(pb.STOPPED, owner=first, timeout_s=3.0)
        assert not entry.in_doubt


@simulated
async def test_nor_is_it_passed_to_one_that_has_none_either() -> None:
    async with town("X", "Y") as t:
        first, (other,) = await sending(t)
        for station in (t.stations[first], other):
            await station.pair.stop_initiator()
        await other.command("stop", channel=CHANNEL, mode="force", wait_s=0)
        await asyncio.sleep(3)
        entry = await t.until(pb.STOPPING, owner=other.name)
        assert entry.partner_not_fenced and entry.reason == Reason.NO_INITIATOR
