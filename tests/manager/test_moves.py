"""Planned moves by command: from any member, to a named one or the best, with nothing lost; refused moves change nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from qsg.manager.caretaker import Caretaker
from qsg.manager.link import SessionFailed
from qsg.pb import records_pb2 as pb
from qsg.rules.reasons import Reason, Refusal
from support.channel_group import APART, CHANNEL, others, owner, sending, texts, town
from support.simulated import simulated


@APART
@pytest.mark.parametrize("asked", ["owner", "target", "third"])
@simulated
async def test_a_channel_moves_to_the_member_named_under_load(asked: str, apart: bool) -> None:
    async with town("X", "Y", "Z", apart=apart) as t:
        first, (target, third) = await sending(t)
        at = {"owner": t.stations[first], "target": target, "third": third}[asked]
        moving = asyncio.create_task(at.command("move", channel=CHANNEL, to=target.name))
        for sent in range(2, 42, 2):
            await t.put(texts(sent, sent + 2), third)
            await asyncio.sleep(0.001)
        answer = await moving
        assert (answer["moved"], answer["from"], answer["owner"], answer["status"]) == (True, first, target.name, "RUNNING")
        await t.until_arrived(texts(0, 42))
        entry = await t.until(pb.RUNNING, owner=target.name)
        assert (entry.takeover.cause, entry.takeover.to) == ("moved by command", target.name)
        assert entry.takeover.resume_ms < 50
        # It is an ordinary channel again, and can be moved back at once.
        assert (await third.command("move", channel=CHANNEL, to=first))["owner"] == first
        await t.put(texts(42, 44), third)
        await t.until_arrived(texts(0, 44))


@simulated
async def test_without_a_name_the_best_other_member_has_it() -> None:
    async with town("X", "Y", "Z") as t:
        await t.put(texts(0, 1), t.stations["X"])
        first = await owner(t)
        answer = await t.stations[first].command("move", channel=CHANNEL)
        assert answer["moved"] and answer["owner"] in {s.name for s in others(t, first)}


@simulated
async def test_a_move_that_nobody_is_ready_for_changes_nothing() -> None:
    async def never_ready(order: object) -> None:
        raise SessionFailed(Reason.HOST_UNREACHABLE, "not in this test")

    async with town("X", "Y", "Z") as t:
        await t.put(texts(0, 1), t.stations["X"])
        first = await owner(t)
        epoch = (await t.until(pb.RUNNING)).epoch
        target, third = others(t, first)
        for station in (target, third):
            station.pair.link.prepare = never_ready  # type: ignore[method-assign]
        for to in ("", target.name):
            with pytest.raises(Refusal, match="is not ready: not in this test") as caught:
                await third.command("move", channel=CHANNEL, to=to)
            assert caught.value.reason is Reason.HOST_UNREACHABLE
        await t.put(texts(1, 3), third)
        await t.until_arrived(texts(0, 3))
        entry = await t.until(pb.RUNNING, owner=first)
        assert entry.epoch == epoch and not entry.takeovers


@pytest.mark.parametrize(("after_s", "moved"), [(0.5, True), (5.0, False)])
@pytest.mark.parametrize("named", [True, False])
@simulated
async def test_a_move_waits_for_a_member_that_is_just_starting(after_s: float, moved: bool, named: bool) -> None:
    """As one is whose channel initiator has not joined yet; not for long."""
    async with town("X", "Y") as t:
        first, (target,) = await sending(t, 1)
        load = target.supervisor.own_load
        target.supervisor.own_load = lambda: replace(load(), initiator=False)  # type: ignore[method-assign]
        await asyncio.sleep(0.5)  # its beats have said so
        asyncio.get_running_loop().call_later(after_s, setattr, target.supervisor, "own_load", load)
        moving = t.stations[first].command("move", channel=CHANNEL, to=target.name if named else "")
        if moved:
            assert (await moving)["owner"] == target.name
        else:
            with pytest.raises(Refusal, match=r"cannot run it now|no other member") as caught:
                await moving
            assert caught.value.reason is Reason.HOST_NOT_AVAILABLE
        await t.put(texts(1, 3), target)
        await t.until_arrived(texts(0, 3))


@simulated
async def test_a_target_that_dies_when_it_is_ready_holds_up_nothing() -> None:
    """In two structures; in one it would be given the channel, or not: `test_channels.py`."""
    async with town("X", "Y", apart=True) as t:
        first, (target,) = await sending(t, 1)

        async def dies(*arguments: Any, **more: Any) -> None:
            raise Refusal(Reason.NO_INITIATOR, "it has just gone")

        target.supervisor.start_channel = dies  # type: ignore[method-assign]
        answer = await t.stations[first].command("move", channel=CHANNEL, to=target.name, wait_s=1)
        assert (answer["moved"], answer["owner"], answer["ready"]) == (False, first, target.name)
        await t.put(texts(1, 3), target)
        await t.until_arrived(texts(0, 3))
        # Back where it was, as any other: a stop is a stop, not a move.
        assert (await target.command("stop", channel=CHANNEL))["status"] == "STOPPED"


@simulated
async def test_moves_that_cannot_be_are_refused() -> None:
    async with town("X", "Y") as t:
        x = t.stations["X"]
        with pytest.raises(Refusal, match="is inactive"):
            await x.command("move", channel=CHANNEL)
        await t.put(texts(0, 1), x)
        first = await owner(t)
        cases: list[tuple[dict[str, object], Reason]] = [
            ({"to": first}, Reason.CHANNEL_ALREADY_RUNNING),
            ({"to": "W"}, Reason.UNKNOWN_OBJECT_Q_MGR),
            ({"to": 5}, Reason.OPTIONS_ERROR),
        ]
        for arguments, reason in cases:
            with pytest.raises(Refusal) as caught:
                await x.command("move", channel=CHANNEL, **arguments)
            assert caught.value.reason is reason
        await x.command("stop", channel=CHANNEL)
        with pytest.raises(Refusal, match="is stopped"):
            await x.command("move", channel=CHANNEL)
        with pytest.raises(Refusal) as caught:
            await t.stations["R"].command("move", channel=CHANNEL)
        assert caught.value.reason is Reason.CHANNEL_TYPE_ERROR


@simulated
async def test_a_channel_that_stays_with_its_member_is_not_moved() -> None:
    async with town("X", "Y", disposition="fixed-shared") as t:
        await t.put(texts(0, 1), t.stations["X"])
        await owner(t)
        with pytest.raises(Refusal, match="fixed-shared"):
            await t.stations["X"].command("move", channel=CHANNEL)


@simulated
async def test_two_moves_at_once_are_one() -> None:
    async with town("X", "Y", "Z") as t:
        await t.put(texts(0, 1), t.stations["X"])
        first = await owner(t)
        target, third = others(t, first)
        work = [s.command("move", channel=CHANNEL, to=s.name) for s in (target, third)]
        answers = await asyncio.gather(*work, return_exceptions=True)
        refused = [a for a in answers if isinstance(a, Refusal)]
        done = [a for a in answers if isinstance(a, dict)]
        assert len(refused) + len(done) == 2 and done
        entry = await t.until(pb.RUNNING)
        assert entry.owner in (target.name, third.name)
        await t.put(texts(1, 2), third)
        await t.until_arrived(texts(0, 2))


def gift_hangs(caretaker: Caretaker) -> asyncio.Event:
    """Set once the channel is about to be given away, which is not answered."""
    run, hangs = caretaker.care.run, asyncio.Event()

    async def run_until_the_gift(steps: Any, label: str = "", timeout_s: float = 1.5) -> Any:
        if label.startswith("give "):
            hangs.set()
            await asyncio.Event().wait()
        return await run(steps, label, timeout_s)

    caretaker.care.run = run_until_the_gift  # type: ignore[method-assign]
    return hangs


@simulated
async def test_a_move_that_hangs_ends_with_its_member_though_the_channel_has_left_in_another_way() -> None:
    """As when the store did not answer the gift, and the partner fell silent meanwhile (seed 43188)."""
    async with town("X", "Y") as t:
        first, (other,) = await sending(t, 1)
        station = t.stations[first]
        caretaker = station.supervisor.channels[CHANNEL]
        hangs = gift_hangs(caretaker)
        draining = asyncio.create_task(station.supervisor.drain())
        await hangs.wait()
        (move,) = caretaker.moving
        assert caretaker.tenure is not None
        caretaker.tenure.cut_off()
        await draining
        assert (await t.until(pb.RUNNING, owner=other.name)).takeover.cause == "communications failed"
        assert not move.done()
        await station.supervisor.close()
        assert move.done()
        await t.put(texts(1, 3), other)
        await t.until_arrived(texts(0, 3))


@simulated
async def test_a_drain_keeps_a_move_that_is_under_way_and_ends_it_with_its_member() -> None:
    async with town("X", "Y") as t:
        first, (target,) = await sending(t)
        station = t.stations[first]
        caretaker = station.supervisor.channels[CHANNEL]
        hangs = gift_hangs(caretaker)
        moving = asyncio.create_task(station.command("move", channel=CHANNEL, to=target.name))
        await hangs.wait()
        (move,) = caretaker.moving
        for _ in range(2):  # a structure is back, and the member is told to end
            await station.supervisor.drain(0.5)
        assert caretaker.moving == {move} and caretaker.care.move_cause == "moved by command"
        await station.supervisor.close()
        assert move.done()
        moving.cancel()
