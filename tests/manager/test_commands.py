"""Channel commands, from any member: start, stop, resolve, reset, ping, status."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

import pytest

from qsg.manager import calls
from qsg.manager.link import SessionFailed
from qsg.manager.steps import Driver
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import FenceAtPartner, PartnerNotReached, swap_entry
from qsg.rules.unit import OutcomeUnknown, Unit
from qsg.store.contract import Unavailable
from support.channel_group import APART, CHANNEL, owner, sending, texts, town
from support.simulated import simulated


@APART
@simulated
async def test_stop_and_start_by_command_from_any_member(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        _, (other,) = await sending(t, 3)
        answer = await other.command("stop", channel=CHANNEL)
        assert answer["status"] == "STOPPED"
        await t.put(texts(3, 5), t.stations["X"])
        await asyncio.sleep(5.0)
        assert (await t.until(pb.STOPPED)).state == pb.STOPPED
        assert await t.arrived() == texts(0, 3)
        answer = await other.command("start", channel=CHANNEL)
        assert answer["status"] in ("STARTING", "RUNNING")
        await t.until_arrived(texts(0, 5))
        with pytest.raises(Refusal, match="already running on"):
            await other.command("start", channel=CHANNEL)


@simulated
async def test_a_command_that_was_done_before_the_store_was_away_is_not_told_as_refused() -> None:
    async with town("X") as t:
        await sending(t, 1)
        x = t.stations["X"]
        away = mock.AsyncMock(side_effect=Unavailable("away"))
        with mock.patch.object(x.commands, "_until", away), pytest.raises(OutcomeUnknown):
            await x.command("stop", channel=CHANNEL)
        await t.until(pb.STOPPED)
        with mock.patch.object(x.commands, "group", away), pytest.raises(Refusal) as caught:
            await x.command("group")
        assert caught.value.reason is Reason.STRUCTURE_NOT_AVAILABLE


@simulated
async def test_a_command_that_found_the_store_away_before_it_did_anything_is_refused() -> None:
    async with town("X", "Y") as t:
        _, (other,) = await sending(t, 1)
        away = mock.AsyncMock(side_effect=Unavailable("away"))
        for name in ("start", "stop", "move", "resolve", "reset"):
            calls.begin()
            with mock.patch.object(Structure, "read", away), pytest.raises(Refusal) as caught:
                await other.command(name, channel=CHANNEL, action="commit")
            assert caught.value.reason is Reason.STRUCTURE_NOT_AVAILABLE
        for name in ("move", "stop"):
            calls.begin()
            with mock.patch.object(other.commands, "_until", away), pytest.raises(OutcomeUnknown):
                await other.command(name, channel=CHANNEL)


@simulated
async def test_a_fence_bind_at_the_partner_is_not_nothing() -> None:
    async with town("X") as t:
        await sending(t, 1)
        x = t.stations["X"]
        place = x.supervisor.find(CHANNEL)
        assert place is not None
        call = calls.begin()
        with mock.patch.object(x.supervisor.link, "ask", side_effect=SessionFailed(Reason.HOST_NOT_AVAILABLE, "")):
            with pytest.raises(PartnerNotReached):
                await x.supervisor.driver.execute(FenceAtPartner(place.channel, channel_pb2.Bind()))
        assert not call.untouched


@APART
@simulated
async def test_a_stopped_channel_stays_so_when_its_owner_dies_and_returns(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        await t.stations["X"].command("stop", channel=CHANNEL, mode="force")
        stopped = await t.until(pb.STOPPED)
        await t.kill(stopped.owner)
        survivor = next(s for s in t.stations.values() if s.alive and s.name != "R")
        await t.put(texts(1, 2), survivor)
        await t.station(stopped.owner)
        await asyncio.sleep(6.0)
        assert (await t.until(pb.STOPPED)).owner == stopped.owner
        assert await t.arrived() == texts(0, 1)
        await survivor.command("start", channel=CHANNEL)
        await t.until_arrived(texts(0, 2))


@APART
@simulated
async def test_stop_with_the_partner_away_says_so_and_ends_when_it_is_back(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        first, _ = await sending(t, 1)
        await t.stations["R"].pair.stop_initiator()
        await t.until(pb.RETRYING)
        answer = await t.stations[first].command("stop", channel=CHANNEL)
        assert (answer["status"], answer["note"], answer["stop_mode"]) == ("STOPPING", "partner not fenced", "quiesce")
        with pytest.raises(Refusal) as caught:
            await t.stations["Y"].command("resolve", channel=CHANNEL, action="backout")
        assert caught.value.reason is Reason.IN_DOUBT
        await t.stations["R"].pair.start_initiator()
        assert not (await t.until(pb.STOPPED)).partner_not_fenced


@simulated
async def test_a_command_that_nobody_asks_for_any_more_is_done_and_not_waited_for() -> None:
    async with town("X") as t:
        await sending(t, 1)
        await t.stations["R"].pair.stop_initiator()
        await t.until(pb.RETRYING)
        with mock.patch.object(Driver, "_fence_at_partner", lambda *_: asyncio.Event().wait()):

            async def stop() -> object:
                calls.begin(wanted=False)
                return await t.stations["X"].command("stop", channel=CHANNEL, wait_s=60)

            async with asyncio.timeout(1):
                await asyncio.create_task(stop())
            assert (await t.until(pb.STOPPING)).stop_to == pb.STOPPED


@APART
@simulated
async def test_stop_to_inactive_lets_the_next_message_trigger(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        await owner(t)
        answer = await t.stations["Y"].command("stop", channel=CHANNEL, status="inactive")
        assert answer["status"] == "INACTIVE"
        await t.put(texts(1, 2), t.stations["Y"])
        await t.until_arrived(texts(0, 2))


@APART
@simulated
@pytest.mark.parametrize("order", ["stop quiesce stopped", "stop force stopped", "stop quiesce inactive", "start"])
async def test_a_command_that_others_overtake_decides_anew(apart: bool, order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`stop` told CHANGED_MEANWHILE when the channel was just being taken over from a member that had been killed."""
    async with town("X", "Y", apart=apart) as t:
        _, (other,) = await sending(t, 3)
        command, *how = order.split()
        if command == "start":
            await other.command("stop", channel=CHANNEL)
        admin, x = other.structures["admin"], t.stations["X"].structures["admin"]
        commit, overtaken = admin.commit, 0

        async def late(unit: Unit, *more: Any, **options: Any) -> Any:
            nonlocal overtaken
            if unit.label == "entry" and overtaken < 3:
                overtaken += 1
                cell = await x.cell(keys.status_out(CHANNEL))
                entry = status.parse(cell.value)
                assert entry is not None
                changed = status.altered(entry, entry.state, entry.updated_at_ms + 1, detail=f"overtaken {overtaken}")
                await commit(Unit("overtaking", changes=[swap_entry(cell, changed)]))
            return await commit(unit, *more, **options)

        monkeypatch.setattr(admin, "commit", late)
        answer = await other.command(command, channel=CHANNEL, **dict(zip(("mode", "status"), how, strict=False)))
        assert overtaken == 3
        assert answer["status"] in ((how[1].upper(),) if how else ("STARTING", "RUNNING"))


@simulated
async def test_a_receiver_is_not_stopped_here_and_the_refusal_says_what_keeps_its_partner_away() -> None:
    async with town("X", "Y") as t:
        x, r = t.stations["X"], t.stations["R"]
        await sending(t, 2)
        for command in ("start", "stop", "move", "ping", "resolve"):
            with pytest.raises(Refusal, match="name others in `allowed_identities`") as caught:
                await r.command(command, channel=CHANNEL)
            assert caught.value.reason is Reason.CHANNEL_TYPE_ERROR
        receiver = Channel(name=CHANNEL, type="receiver", partner="QSG")
        await r.catalog.define_channel(receiver.model_copy(update={"allowed_identities": ("NOBODY",)}))
        await t.put(texts(2, 4), x)
        await t.until_arrived(texts(0, 4))  # what is bound goes on
        await x.command("stop", channel=CHANNEL)
        await x.command("start", channel=CHANNEL)
        await t.put(texts(4, 6), x)
        assert (await t.until(pb.RETRYING)).reason == Reason.NOT_AUTHORIZED
        await asyncio.sleep(1)
        assert await t.arrived() == texts(0, 4)
        await r.catalog.define_channel(receiver)
        await t.until_arrived(texts(0, 6))


@simulated
async def test_commands_tell_what_is_wrong() -> None:
    async with town("X") as t:
        x = t.stations["X"]
        cases: list[tuple[str, dict[str, object], Reason]] = [
            ("start", {"channel": "NONE"}, Reason.CHANNEL_NOT_FOUND),
            ("start", {}, Reason.OPTIONS_ERROR),
            ("stop", {"channel": CHANNEL, "mode": "gently"}, Reason.OPTIONS_ERROR),
            ("stop", {"channel": CHANNEL, "status": "inactive"}, Reason.CHANNEL_NOT_ACTIVE),
            ("resolve", {"channel": CHANNEL, "action": "commit"}, Reason.NOT_IN_DOUBT),
            ("resolve", {"channel": CHANNEL, "action": "backout", "record": "nonsense"}, Reason.OPTIONS_ERROR),
            ("reset", {"channel": CHANNEL, "sequence": 0}, Reason.OPTIONS_ERROR),
            ("reset", {"channel": CHANNEL, "sequence": "x"}, Reason.OPTIONS_ERROR),
            ("ping", {"channel": CHANNEL, "bytes": 15}, Reason.OPTIONS_ERROR),
            ("ping", {"channel": CHANNEL, "bytes": 32_769}, Reason.OPTIONS_ERROR),
            ("ping", {"channel": CHANNEL, "bytes": True}, Reason.OPTIONS_ERROR),
            ("status", {"channel": "NONE"}, Reason.CHANNEL_NOT_FOUND),
            ("dance", {}, Reason.COMMAND_FAILED),
        ]
        for name, arguments, reason in cases:
            with pytest.raises(Refusal) as caught:
                await x.command(name, **arguments)
            assert caught.value.reason is reason, (name, arguments)


@simulated
async def test_status_shows_the_whole_group_and_inactive_channels() -> None:
    async with town("X", "Y", batch_messages=50, heartbeat_ms=250) as t:
        (line,) = (await t.stations["Y"].command("status"))["channels"]
        assert (line["channel"], line["status"], line["depth"]) == (CHANNEL, "INACTIVE", 0)
        for arguments, size in (({}, 16), ({"bytes": 32_768}, 32_768)):
            answer = await t.stations["X"].command("ping", channel=CHANNEL, **arguments)
            assert (answer["address"], answer["bytes"]) == ("R:1414", size)
        first, _ = await sending(t, 3)
        await asyncio.sleep(1.5)
        (line,) = (await t.stations["Y"].command("status", channel="QSG*"))["channels"]
        assert (line["owner"], line["status"], line["messages"], line["last_sequence"]) == (first, "RUNNING", 3, 3)
        assert line["saved"]["open"] and not line["in_doubt"] and line["current_messages"] == 0
        agreed = {"batch_messages": 50, "heartbeat_ms": 250, "max_message_bytes": 104_857_600}
        assert line["negotiated"] == agreed
        assert line["owner_incarnation"] and line["owner_initiator"] == t.stations[first].pair.link.initiator
        group = await t.stations["Y"].command("group")
        assert [m["member"] for m in group["members"]] == ["Y", "X"] and all(m["initiator"] for m in group["members"])
        with pytest.raises(Refusal):
            await t.stations["Y"].command("ping", channel=CHANNEL)
        (inbound,) = (await t.stations["R"].command("status", channel=CHANNEL))["channels"]
        assert (inbound["type"], inbound["partner"], inbound["status"], inbound["owner"]) == ("receiver", "QSG", "RUNNING", "R")
        assert inbound["record"].startswith(line["stream"]) and inbound["negotiated"] == agreed
        assert "negotiated" not in await t.stations["Y"].command("stop", channel=CHANNEL)


@simulated
async def test_a_channel_that_never_bound_is_not_in_doubt() -> None:
    async with town("X", "Y") as t:
        await t.stations["R"].pair.stop_initiator()
        await t.put(texts(0, 1), t.stations["X"])
        assert not (await t.until(pb.RETRYING)).in_doubt
        await t.stations["R"].pair.start_initiator()
        await t.until_arrived(texts(0, 1))
        await t.stations["R"].pair.stop_initiator()
        assert (await t.until(pb.RETRYING)).in_doubt, "whether the last batch arrived, who fails to bind cannot know"


@simulated
async def test_resolve_commit_with_the_record_that_the_partner_showed() -> None:
    async with town("X", "Y") as t:
        first, _ = await sending(t, 3)
        (inbound,) = (await t.stations["R"].command("status", channel=CHANNEL))["channels"]
        await t.stations["R"].pair.stop_initiator()
        await t.until(pb.RETRYING)
        await t.put(texts(3, 5), t.stations["X"])
        await t.stations[first].command("stop", channel=CHANNEL)
        answer = await t.stations["Y"].command("resolve", channel=CHANNEL, action="commit", record=inbound["record"], force=True)
        assert answer["deleted"] <= 3 and "not fenced" in answer["risk"]
        await t.until(pb.STOPPED)
        (line,) = (await t.stations["Y"].command("status", channel=CHANNEL))["channels"]
        assert not line["saved"]["open"] and line["depth"] == 2


@simulated
async def test_reset_is_told_to_the_partner_at_the_next_bind() -> None:
    async with town("X") as t:
        x = t.stations["X"]
        await t.put(texts(0, 2), x)
        await t.until_arrived(texts(0, 2))
        await x.command("stop", channel=CHANNEL)
        await x.command("reset", channel=CHANNEL, sequence=100)
        await x.command("start", channel=CHANNEL)
        await t.put(texts(2, 3), x)
        await t.until_arrived(texts(0, 3))
        await asyncio.sleep(1.5)
        (line,) = (await x.command("status", channel=CHANNEL))["channels"]
        assert line["last_sequence"] == 100 and line["saved"]["reset_to"] == 0


@simulated
async def test_a_stop_with_a_reset_still_to_be_told_fences_the_partner() -> None:
    """More than half of the numbers were used: the stop was refused as if R had lost data, and left the channel in doubt."""
    async with town("X", sequence_wrap=100) as t:
        x, r = t.stations["X"], t.stations["R"]
        await r.catalog.define_channel(Channel(name=CHANNEL, type="receiver", partner="QSG", sequence_wrap=100))
        await t.put(texts(0, 60), x)
        await t.until_arrived(texts(0, 60))
        await x.command("stop", channel=CHANNEL)
        await x.command("reset", channel=CHANNEL, sequence=1)
        await r.pair.stop_initiator()
        await x.command("start", channel=CHANNEL)
        await t.until(pb.RETRYING)
        await x.command("stop", channel=CHANNEL)
        await r.pair.start_initiator()
        assert not (await t.until(pb.STOPPED)).in_doubt
