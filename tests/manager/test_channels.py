"""Channels of a group, end to end in memory: triggers, takeovers, retries, stops, drain. Nothing lost, nothing twice, in order."""

from __future__ import annotations

import asyncio

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from support.channel_group import CHANNEL, XMITQ, Town, town
from support.simulated import simulated

APART = pytest.mark.parametrize("apart", [False, True], ids=["one store", "two structures"])


async def owner(made: Town) -> str:
    return (await made.until(pb.RUNNING)).owner


@APART
@simulated
async def test_a_put_triggers_the_channel(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        await t.put(["a", "b"], t.stations["X"])
        await t.until_arrived(["a", "b"])
        assert await owner(t) in "XY"


def texts(first: int, last: int) -> list[str]:
    return [f"m{i:04d}" for i in range(first, last)]


@APART
@simulated
async def test_another_member_goes_on_after_a_kill(apart: bool) -> None:
    async with town("X", "Y", "Z", apart=apart) as t:
        await t.put(texts(0, 5), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 5))
        loop = asyncio.get_running_loop()
        killed_at = loop.time()
        await t.kill(first)
        survivor = next(s for s in t.stations.values() if s.alive and s.name != "R")
        await t.put(texts(5, 10), survivor)
        await t.until_arrived(texts(0, 10))
        gap = loop.time() - killed_at

        entry = await t.until(pb.RUNNING)
        assert entry.owner != first and entry.takeovers == 1
        assert (getattr(entry.takeover, "from"), entry.takeover.to) == (first, entry.owner)
        assert "refused" in entry.takeover.cause
        assert 0 <= entry.takeover.claim_ms <= entry.takeover.resume_ms < 100
        assert gap < 0.1, "detection to new bind takes well below 100 ms"
        assert survivor.members is not None and first not in survivor.members.registered


@APART
@simulated
async def test_initiator_loss_moves_the_channel_and_keeps_the_member(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 3), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 3))
        await t.stations[first].pair.stop_initiator()
        await t.put(texts(3, 6), t.stations[first])
        await t.until_arrived(texts(0, 6))

        entry = await t.until(pb.RUNNING)
        assert entry.owner != first and entry.takeover.cause == "channel initiator failed"
        members = t.stations[entry.owner].members
        assert members is not None and first in members.registered


@APART
@simulated
async def test_without_any_initiator_the_channel_waits_for_one(apart: bool) -> None:
    async with town("X", apart=apart) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        await t.stations["X"].pair.stop_initiator()
        await t.until(pb.RECOVERING, owner="X")
        await t.put(texts(2, 4), t.stations["X"])
        await t.stations["X"].pair.start_initiator()
        await t.until_arrived(texts(0, 4))
        assert (await t.until(pb.RUNNING)).owner == "X"


@APART
@simulated
async def test_a_partner_out_of_reach_is_retried_by_every_member_in_turn(apart: bool) -> None:
    async with town("X", "Y", "Z", apart=apart) as t:
        r = t.stations["R"]
        await r.pair.stop_initiator()
        await t.put(texts(0, 2), t.stations["X"])
        owners: set[str] = set()
        async with asyncio.timeout(20):
            while len(owners) < 3:
                owners.add((await t.until(pb.RETRYING)).owner)
                await asyncio.sleep(0.01)
        entry = await t.until(pb.RETRYING)
        assert entry.short_retries_left < 20 and entry.reason == Reason.HOST_UNREACHABLE
        await r.pair.start_initiator()
        await t.until_arrived(texts(0, 2))
        await asyncio.sleep(1.5)
        entry = await t.until(pb.RUNNING)
        assert entry.short_retries_left == 20, "reset when a message gets through"


@simulated
async def test_exhausted_retries_stop_the_channel() -> None:
    async with town("X", "Y", retry={"first_ms": 10, "short_count": 2, "short_ms": 20, "long_count": 1, "long_ms": 20}) as t:
        await t.stations["R"].pair.stop_initiator()
        await t.put(texts(0, 1), t.stations["X"])
        entry = await t.until(pb.STOPPED)
        assert "retries exhausted" in entry.detail


@APART
@simulated
async def test_stop_and_start_by_command_from_any_member(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 3), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 3))
        other = next(s for s in t.stations.values() if s.name not in (first, "R"))
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
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        first = await owner(t)
        await t.stations["R"].pair.stop_initiator()
        await t.until(pb.RETRYING)
        answer = await t.stations[first].command("stop", channel=CHANNEL)
        assert (answer["status"], answer["note"]) == ("STOPPING", "partner not fenced")
        with pytest.raises(Refusal) as caught:
            await t.stations["Y"].command("resolve", channel=CHANNEL, action="backout")
        assert caught.value.reason is Reason.IN_DOUBT
        await t.stations["R"].pair.start_initiator()
        assert not (await t.until(pb.STOPPED)).partner_not_fenced


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
async def test_an_idle_channel_ends_clean_and_is_triggered_again(apart: bool) -> None:
    async with town("X", "Y", apart=apart, disconnect_interval_s=0.5) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        await t.until(pb.INACTIVE)
        assert t.prefix(t.home, keys.lock(XMITQ)) == []
        await t.put(texts(2, 4), t.stations["Y"])
        await t.until_arrived(texts(0, 4))
        await t.until(pb.INACTIVE)


@APART
@simulated
async def test_drain_hands_over_with_a_short_gap(apart: bool) -> None:
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 2), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 2))
        other = next(s for s in t.stations.values() if s.name not in (first, "R"))
        loop = asyncio.get_running_loop()
        began = loop.time()
        draining = asyncio.create_task(t.stations[first].supervisor.drain())
        await t.put(texts(2, 4), other)
        await t.until_arrived(texts(0, 4))
        assert loop.time() - began < 0.05
        await draining
        entry = await t.until(pb.RUNNING, owner=other.name)
        assert entry.takeover.cause == "drain"
        await t.stations[first].close()
        await t.put(texts(4, 6), other)
        await t.until_arrived(texts(0, 6))
        assert (await t.until(pb.RUNNING)).epoch == entry.epoch, "no second takeover"


@APART
@simulated
async def test_the_whole_group_restarts_with_messages_waiting(apart: bool) -> None:
    """H6b, and recovery at start: own left-overs first."""
    async with town("X", "Y", apart=apart) as t:
        await t.put(texts(0, 2), t.stations["X"])
        await t.until_arrived(texts(0, 2))
        await owner(t)
        await t.stations["R"].pair.stop_initiator()
        await t.put(texts(2, 4), t.stations["X"])
        for name in ("X", "Y"):
            await t.kill(name)
        await t.stations["R"].pair.start_initiator()
        for name in ("X", "Y"):
            await t.station(name)
        await t.until_arrived(texts(0, 4))


@simulated
async def test_a_queues_structure_out_of_the_owners_reach() -> None:
    """Scenario 1b (H7): the owner still reaches the table and its peers."""
    async with town("X", "Y", apart=True) as t:
        await t.put(texts(0, 2), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 2))
        other = next(s for s in t.stations.values() if s.name not in (first, "R"))
        t.stations[first].stores["app1"].cut()
        await t.put(texts(2, 4), other)
        await t.until_arrived(texts(0, 4), timeout_s=5.0)
        assert (await t.until(pb.RUNNING, owner=other.name)).epoch == 2
        async with asyncio.timeout(5):
            while first in other.members.in_structure("app1"):  # type: ignore[union-attr]  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@simulated
async def test_the_status_table_out_of_reach_ends_no_running_channel() -> None:
    """Scenario 1, first half."""
    async with town("X", "Y", apart=True) as t:
        await t.put(texts(0, 2), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 2))
        t.stations[first].stores["admin"].cut()
        await t.put(texts(2, 4), t.stations[first])
        await t.until_arrived(texts(0, 4), timeout_s=1.0)
        assert t.stations[first].supervisor.channels[CHANNEL].held is not None


@simulated
async def test_a_change_of_state_that_cannot_be_written_moves_the_channel() -> None:
    """Scenario 1, second half: the session breaks while the owner cannot reach the table."""
    async with town("X", "Y", apart=True) as t:
        await t.put(texts(0, 2), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 2))
        other = next(s for s in t.stations.values() if s.name not in (first, "R"))
        t.stations[first].stores["admin"].cut()
        await asyncio.sleep(2.0)
        t.network.reset(first, "R")
        await t.put(texts(2, 4), other)
        await t.until_arrived(texts(0, 4), timeout_s=8.0)
        assert (await t.until(pb.RUNNING, owner=other.name)).epoch >= 2


@simulated
async def test_silence_needs_a_majority() -> None:
    """H3: only the link between two members is cut."""
    async with town("X", "Y") as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        before = await t.until(pb.RUNNING)
        t.network.cut("X-qm", "Y-qm")
        await asyncio.sleep(6.0)
        assert (await t.until(pb.RUNNING)).epoch == before.epoch
        assert sorted(t.prefix("admin", keys.MEMBERS)) == [b"m/X", b"m/Y"]


@simulated
async def test_a_member_silent_to_the_majority_is_replaced() -> None:
    async with town("X", "Y", "Z") as t:
        await t.put(texts(0, 1), t.stations["X"])
        first = await owner(t)
        await t.until_arrived(texts(0, 1))
        for other in {"X", "Y", "Z"} - {first}:
            t.network.cut(f"{first}-qm", f"{other}-qm")
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(4):
            while (await t.until(pb.RUNNING)).owner == first:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert 1.2 < asyncio.get_running_loop().time() - began < 2.5
        assert t.stations[first].structures["admin"].fenced.is_set()


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
            ("ping", {"channel": CHANNEL, "bytes": 1}, Reason.OPTIONS_ERROR),
            ("status", {"channel": "NONE"}, Reason.CHANNEL_NOT_FOUND),
            ("dance", {}, Reason.COMMAND_FAILED),
        ]
        for name, arguments, reason in cases:
            with pytest.raises(Refusal) as caught:
                await x.command(name, **arguments)
            assert caught.value.reason is reason, (name, arguments)


@simulated
async def test_status_shows_the_whole_group_and_inactive_channels() -> None:
    async with town("X", "Y") as t:
        (line,) = (await t.stations["Y"].command("status"))["channels"]
        assert (line["channel"], line["status"], line["depth"]) == (CHANNEL, "INACTIVE", 0)
        assert (await t.stations["X"].command("ping", channel=CHANNEL))["address"] == "R:1414"
        await t.put(texts(0, 3), t.stations["X"])
        await t.until_arrived(texts(0, 3))
        first = await owner(t)
        await asyncio.sleep(1.5)
        (line,) = (await t.stations["Y"].command("status", channel="QSG*"))["channels"]
        assert (line["owner"], line["status"], line["messages"], line["last_sequence"]) == (first, "RUNNING", 3, 3)
        assert line["saved"]["open"] and not line["in_doubt"]
        group = await t.stations["Y"].command("group")
        assert [m["member"] for m in group["members"]] == ["Y", "X"] and all(m["initiator"] for m in group["members"])
        with pytest.raises(Refusal):
            await t.stations["Y"].command("ping", channel=CHANNEL)
        (inbound,) = (await t.stations["R"].command("status", channel=CHANNEL))["channels"]
        assert (inbound["type"], inbound["partner"], inbound["status"], inbound["owner"]) == ("receiver", "QSG", "RUNNING", "R")
        assert inbound["record"].startswith(line["stream"])


@simulated
async def test_resolve_commit_with_the_record_that_the_partner_showed() -> None:
    async with town("X", "Y") as t:
        await t.put(texts(0, 3), t.stations["X"])
        await t.until_arrived(texts(0, 3))
        first = await owner(t)
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
async def test_nothing_is_left_after_many_kills() -> None:
    """Invariant 7: counts return to the baseline."""
    async with town("X", "Y", apart=True) as t:
        sent = 0
        for _ in range(8):
            alive = [s for s in t.stations.values() if s.alive and s.name != "R"]
            await t.put(texts(sent, sent + 2), alive[0])
            sent += 2
            await t.until_arrived(texts(0, sent))
            victim = await owner(t)
            await t.kill(victim)
            await t.until(pb.RUNNING, timeout_s=5)
            await t.station(victim)
        await t.until_arrived(texts(0, sent))
        await asyncio.sleep(3.0)
        assert len(t.prefix("admin", keys.STATUS_OUT)) == 1
        assert len(t.prefix("private R", keys.STATUS_IN)) == 1
        assert t.prefix("app1", keys.headers(XMITQ)) == [] and t.prefix("app1", keys.consumptions(XMITQ)) == []
        assert len(t.prefix("app1", keys.FENCES)) == len(t.prefix("app1", keys.PROGRESS)) == 1
