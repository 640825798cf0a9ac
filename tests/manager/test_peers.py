"""Peer links: verdicts in milliseconds, none against the living, requests."""

from __future__ import annotations

import asyncio

import pytest

from qsg.manager.peers import SERVICE, SILENT_S, PeerUnreachable
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.verdict import SILENCE_MS
from qsg.store.contract import Delete, Get
from qsg.store.faults import Fault, Faults
from qsg.transport.codec import encode
from qsg.transport.contract import TransportError
from support.channel_group import sending, texts, town
from support.simulated import simulated


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
        first, _ = await sending(t, 1)
        for other in {"X", "Y", "Z"} - {first}:
            t.network.cut(f"{first}-qm", f"{other}-qm")
        began = asyncio.get_running_loop().time()
        async with asyncio.timeout(4):
            while (await t.until(pb.RUNNING)).owner == first:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert 1.2 < asyncio.get_running_loop().time() - began < 2.5
        assert t.stations[first].structures["admin"].fenced.is_set()


@simulated
async def test_a_killed_member_is_dead_within_milliseconds() -> None:
    async with town("X", "Y") as t:
        y = t.stations["Y"]
        assert y.members is not None
        gone: list[tuple[str, str]] = []
        y.members.on_gone.append(lambda member, incarnation, cause, ms: gone.append((member, cause)))
        began = asyncio.get_running_loop().time()
        t.network.kill("X-qm")
        for store in t.stations["X"].stores.values():
            store.cut()
        async with asyncio.timeout(5):
            while not gone:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        assert asyncio.get_running_loop().time() - began < 0.02
        assert gone == [("X", "link broke, reconnecting refused")]
        assert t.prefix("admin", keys.MEMBERS) == [b"m/Y"]


@simulated
async def test_a_broken_link_to_a_living_member_is_made_again() -> None:
    async with town("X", "Y") as t:
        t.network.reset("X-qm", "Y-qm")
        await asyncio.sleep(0.5)
        for name in ("X", "Y"):
            group = await t.stations[name].command("group")
            assert all(m["linked"] for m in group["members"])
        assert sorted(t.prefix("admin", keys.MEMBERS)) == [b"m/X", b"m/Y"]


@simulated
async def test_a_member_that_leaves_is_not_accused() -> None:
    async with town("X", "Y", "Z") as t:
        x = t.stations["X"]
        executed: list[str] = []
        for name in ("Y", "Z"):
            members = t.stations[name].members
            assert members is not None
            members.on_gone.append(lambda member, incarnation, cause, ms: executed.append(cause))
        await x.supervisor.drain()
        await asyncio.sleep(0.01)
        await x.close()
        await asyncio.sleep(2.0)
        assert executed == ["member key gone"] * 2


@simulated
async def test_a_member_that_comes_back_is_linked_in_its_new_incarnation() -> None:
    async with town("X", "Y") as t:
        before = t.stations["X"].structures["admin"].incarnation
        await t.kill("X")
        await asyncio.sleep(0.2)
        x = await t.station("X")
        await asyncio.sleep(0.5)
        (line,) = [m for m in (await t.stations["Y"].command("group"))["members"] if m["member"] == "X"]
        assert line["incarnation"] == x.structures["admin"].incarnation > before and line["linked"]


@simulated
async def test_a_verdict_half_done_is_finished_by_whoever_sees_it() -> None:
    """N14: the accuser died behind the admin structure."""
    async with town("X", "Y", apart=True) as t:
        for store in t.stations["X"].stores.values():
            store.cut()
        t.servers["admin"].txn([], [Delete(b"m/X")], [])
        async with asyncio.timeout(3):
            while b"m/X" in t.prefix("app1", keys.MEMBERS):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert t.prefix("app1", keys.MEMBERS) == [b"m/Y"]


class _Slow(Faults):
    def request(self, kind: str) -> Fault:
        return Fault(delay_s=0.25)

    def watch_delay_s(self) -> float:
        return 0.15


@simulated
async def test_a_verdict_that_the_successor_has_forestalled_leaves_it_alone() -> None:
    """Simulation seed 519: the accuser saw the new key in one structure before it saw that the old one was gone from admin."""
    async with town("X", "Y", apart=True) as t:
        y = t.stations["Y"]
        assert y.members is not None
        before = t.stations["X"].structures["admin"].incarnation
        y.stores["admin"].faults = _Slow()
        await t.kill("X")
        x = await t.station("X")
        await asyncio.sleep(0.05)
        assert y.members.registered["X"] == before, "it does not know better yet"
        assert "X" in y.members.in_structure("app1")
        y.members.execute("X", before, "test", 0.0)
        await asyncio.sleep(1.0)
        assert y.members.registered["X"] == x.structures["admin"].incarnation
        assert not any(s.fenced.is_set() for s in x.structures.values())


@simulated
async def test_a_link_whose_beats_have_ended_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect, or frames that are stuck: what the others know of a member must not stand still for ever."""
    async with town("X", "Y") as t:
        x, y = t.stations["X"].peers, t.stations["Y"].peers
        assert x is not None and y is not None
        beat = x._beat

        def fresh() -> bool:
            (line,) = y.status()
            return bool(line["linked"]) and float(str(line["silent_ms"])) < 500

        def fail() -> peer_pb2.PeerBeat:
            monkeypatch.setattr(x, "_beat", beat)
            raise KeyError("a defect")

        monkeypatch.setattr(x, "_beat", fail)
        await asyncio.sleep(1.0)
        assert fresh()

        async def stuck(stream: object) -> None:
            monkeypatch.undo()
            await asyncio.Event().wait()

        monkeypatch.setattr(x, "_send_beats", stuck)
        t.network.reset("X-qm", "Y-qm")
        await asyncio.sleep(1.0)
        assert not fresh()
        await asyncio.sleep(SILENT_S)
        assert fresh()
        assert sorted(t.prefix("admin", keys.MEMBERS)) == [b"m/X", b"m/Y"]


@simulated
async def test_who_stood_still_judges_nobody_before_it_has_listened(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long, and whenever: what the others said meanwhile is unread, and counts as heard before their silence does."""
    async with town("X", "Y", "Z") as t:
        peers = t.stations["X"].peers
        assert peers is not None
        seen: list[float] = []
        judge = peers._judge

        def judged() -> bool:
            seen.extend(float(str(line["silent_ms"])) for line in peers.status() if line["linked"])
            return judge()

        monkeypatch.setattr(peers, "_judge", judged)
        loop = asyncio.get_running_loop()
        for n in range(60):
            loop.pass_by(0.05 * n)  # type: ignore[attr-defined]
            await asyncio.sleep(0.7 + 0.031 * n)
        assert seen and max(seen) < SILENCE_MS
        t.network.cut("X-qm", "Y-qm")
        await asyncio.sleep(2.0)
        assert max(seen) >= SILENCE_MS, "a silence that lasts is judged"


class Lagging(Faults):
    """Requests pass, watches are told late."""

    def watch_delay_s(self) -> float:
        return 1.0


@simulated
async def test_a_successor_is_not_taken_for_a_verdict_half_done() -> None:
    """Y's copy of admin lags behind that of the other structure: when it shows the death of X, the new X is in both."""
    async with town("X", "Y", apart=True) as t:
        t.stations["Y"].stores["admin"].faults = Lagging()
        await t.kill("X")
        x = await t.station("X")
        before = {name: x.structures[name].incarnation for name in ("admin", "app1")}
        await asyncio.sleep(8.0)
        assert not any(structure.fenced.is_set() for structure in x.structures.values())
        for name, incarnation in before.items():
            kv = t.servers[name].get(Get(keys.member("X"))).first
            assert kv is not None and kv.create_revision == incarnation


@simulated
async def test_strangers_at_the_peers_door_get_nothing() -> None:
    async with town("X", "Y") as t:
        for frame in (
            b"",
            b"\xff",
            encode(peer_pb2.PEER_REQUEST, peer_pb2.Request(id=1)),
            encode(peer_pb2.PEER_HELLO, peer_pb2.Hello(group="OTHER")),
        ):
            stream = await t.network.transport("stranger").connect("X-qm:1416", SERVICE)
            await stream.send(frame)
            with pytest.raises(TransportError):
                while True:
                    await asyncio.wait_for(stream.receive(), 5)
        await asyncio.sleep(0.5)
        assert all(m["linked"] for m in (await t.stations["Y"].command("group"))["members"])


@simulated
async def test_requests_are_answered_refused_or_unreachable() -> None:
    async with town("X", "Y") as t:
        peers = t.stations["Y"].peers
        assert peers is not None
        with pytest.raises(Refusal) as caught:
            await peers.request("X", peer_pb2.Request(start=peer_pb2.StartChannel(channel="NONE")))
        assert caught.value.reason is Reason.CHANNEL_NOT_FOUND
        with pytest.raises(Refusal):
            await peers.request("X", peer_pb2.Request())
        with pytest.raises(PeerUnreachable):
            await peers.request("W", peer_pb2.Request())
        t.network.cut("X-qm", "Y-qm")
        with pytest.raises(PeerUnreachable):
            await peers.request("X", peer_pb2.Request(start=peer_pb2.StartChannel(channel="NONE")), 0.2)


@simulated
async def test_whoever_has_no_members_certificate_is_no_member() -> None:
    """An application, or a partner, whose certificate the same authority has signed."""
    async with town("X", "Y", identity="QSG") as t:
        transport = t.network.transport("elsewhere", identity="orders-client")
        stream = await transport.connect("X-qm:1416", SERVICE)
        hello = peer_pb2.Hello(member="Y", incarnation=t.stations["Y"].structures["admin"].incarnation, group="QSG")
        with pytest.raises(TransportError):
            await stream.send(encode(peer_pb2.PEER_HELLO, hello))
            async with asyncio.timeout(1):
                await stream.receive()
        assert (await t.stations["X"].command("group"))["members"][1]["linked"], "members hear each other"
