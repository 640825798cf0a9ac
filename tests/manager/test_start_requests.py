"""Start requests that meet what nobody counts on: they are sent, and answered, nevertheless."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.caretaker import Caretaker
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import swap
from qsg.rules.unit import Unit
from support.channel_group import CHANNEL, XMITQ, texts, town
from support.simulated import simulated


@simulated
async def test_a_takeover_that_was_written_by_a_clock_that_is_ahead_is_carried_on() -> None:
    async with town("X", "Y") as t:
        x, y = t.stations["X"], t.stations["Y"]
        await x.pair.stop_initiator()
        await asyncio.sleep(0.5)  # Y knows, so that X asks it
        admin = y.structures["admin"]
        entry = pb.ChannelStatus(channel=CHANNEL, transmission_queue=XMITQ, state=pb.RECOVERING, owner="X", request=b"written by Y")
        entry.owner_incarnation = x.structures["admin"].incarnation
        entry.takeover.at_ms = y.supervisor.world.wall_ms() + 3_600_000
        await admin.commit(Unit("ahead", changes=[swap(await admin.cell(keys.status_out(CHANNEL)), status.image(entry))]))
        await t.until(pb.RUNNING, owner="Y", timeout_s=1.0)


@simulated
async def test_a_start_that_ends_by_an_error_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[asyncio.Task[None]] = []

    async def broken(*_: object) -> None:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        raise ValueError("nobody counts on that")

    monkeypatch.setattr(Caretaker, "_begin", broken)
    async with town("X", "Y") as t:
        peers = t.stations["Y"].peers
        assert peers is not None
        with pytest.raises(Refusal) as caught:
            await peers.request("X", peer_pb2.Request(start=peer_pb2.StartChannel(channel=CHANNEL, cause="trigger")))
        assert caught.value.reason is Reason.UNEXPECTED_ERROR and "nobody counts on that" in caught.value.detail
        with pytest.raises(ValueError, match="nobody counts on that"):
            await tasks[0]


@simulated
async def test_a_channel_that_is_to_retry_for_ever_does_so_and_is_started_by_command() -> None:
    """Counts beyond what the table has room for."""
    for_ever = {"short_count": 10**10, "short_ms": 200, "long_count": 10**10}
    async with town("X", "Y", retry=for_ever) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        await asyncio.sleep(1.5)  # until it is told
        assert (await t.until(pb.RUNNING)).messages == 2
        await t.stations["X"].command("stop", channel=CHANNEL)
        await t.stations["X"].command("start", channel=CHANNEL)
        await t.until(pb.RUNNING)
        await t.kill("R")
        await t.until(pb.RETRYING)
        await asyncio.sleep(5.0)
        entry = await t.entry()
        assert entry is not None and entry.takeover.cause == "communications failed", "it is left to nobody's recovery"
