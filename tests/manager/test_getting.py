"""Getting: order, waiting, ids, expiry, competing members, claims of the dead, transmission queues."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from random import Random

import pytest

from qsg.bell import Once
from qsg.manager.getting import GetSpec, GetterLoop
from qsg.manager.structure import Structure
from qsg.manager.window import Window
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.definitions import Queue
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import Unit
from qsg.store.contract import Get, GetResult, Put
from qsg.store.faults import RandomFaults
from qsg.store.follow import Follower
from support.members import Group, Member, group, shared
from support.simulated import simulated
from support.units import CLAIMS, left_over, refused

REMOTE = Queue(name="R", type="remote", remote_queue="Q", remote_queue_manager="RR", transmission_queue="A")


async def members(g: Group, *names: str, sole: bool = False, **attributes: object) -> list[Member]:
    """Members that share queue A."""
    g.sole = sole
    made = [await g.member(name) for name in names]
    await made[0].queues.define(shared("A", **attributes))
    await asyncio.sleep(0.01)
    return made


async def test_put_order_is_get_order() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        for i in range(30):
            await (x if i % 3 else y).put("A", b"%d" % i)

        got = [await x.get("A") for _ in range(10)]
        got += [await y.get("A", 7), await x.get("A", 100)]
        while sum(map(len, got)) < 30:
            got.append(await y.get("A", 100))

        assert [int(p) for page in got for p in page] == list(range(30))
        assert await left_over(x) == []
        assert (await x.queues.depth("A")).messages == 0


@CLAIMS
async def test_higher_priority_first(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", b"low", priority=1)
        await x.put("A", b"high", priority=8)
        await x.put("A", b"low2", priority=1)

        assert await x.get("A") == [b"high"]
        await x.put("A", b"higher", priority=9)
        assert await x.get("A", 5) == [b"higher", b"low", b"low2"]


@CLAIMS
async def test_no_message(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await refused(x.get("A"), Reason.NO_MSG_AVAILABLE)
        started = asyncio.get_running_loop().time()
        await refused(x.get("A", wait_ms=80), Reason.NO_MSG_AVAILABLE)
        assert 0.07 <= asyncio.get_running_loop().time() - started < 1
        await refused(x.get("NO.SUCH"), Reason.UNKNOWN_OBJECT_NAME)
        await refused(x.get("A", 0), Reason.OPTIONS_ERROR)


@pytest.mark.parametrize("putter", [0, 1])
async def test_waiting_getter_is_woken(putter: int) -> None:
    async with group() as g:
        both = await members(g, "X", "Y")
        waiting = asyncio.create_task(both[0].get("A", wait_ms=5_000))
        await asyncio.sleep(0.05)
        started = asyncio.get_running_loop().time()

        await both[putter].put("A", b"1")

        assert await waiting == [b"1"]
        assert asyncio.get_running_loop().time() - started < 0.5


@CLAIMS
async def test_many_waiters_are_served_in_turn(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        waiting = [asyncio.create_task(x.get("A", wait_ms=5_000)) for _ in range(20)]
        await asyncio.sleep(0.02)

        await x.put("A", *(b"%d" % i for i in range(12)))
        await x.put("A", *(b"%d" % i for i in range(12, 20)))

        assert [await w for w in waiting] == [[b"%d" % i] for i in range(20)]


@CLAIMS
async def test_cancel_ends_a_wait_and_loses_nothing(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        cancel = Once()
        waiting = asyncio.create_task(x.queues.get(GetSpec("A", wait_ms=60_000), cancel=cancel))
        await asyncio.sleep(0.02)
        cancel.set()
        await refused(waiting, Reason.NO_MSG_AVAILABLE)

        dropped = asyncio.create_task(x.get("A", wait_ms=60_000))
        await asyncio.sleep(0.02)
        dropped.cancel()
        await asyncio.gather(dropped, return_exceptions=True)
        await x.put("A", b"1")
        assert await x.get("A") == [b"1"]


@pytest.mark.parametrize("cancelled", [False, True])
@simulated
async def test_a_wait_ends_in_time_though_the_store_goes_before_the_watch_begins(cancelled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with group() as g:
        (x,) = await members(g, "X")
        structure, cancel = x.structures["app1"], Once()
        follow = structure.follow

        def late(prefix: bytes) -> Follower:
            x.stores["app1"].pause()
            return follow(prefix)

        monkeypatch.setattr(structure, "follow", late)
        spec = GetSpec("A", wait_ms=60_000 if cancelled else 100)
        waiting = asyncio.create_task(x.queues.get(spec, cancel=cancel))
        await asyncio.sleep(0.2)
        if cancelled:
            cancel.set()
        done, _ = await asyncio.wait([waiting], timeout=8.0)
        x.stores["app1"].resume()
        assert done
        reason = Reason.NO_MSG_AVAILABLE if cancelled else Reason.STRUCTURE_NOT_AVAILABLE
        await refused(waiting, reason)


@simulated
async def test_who_waits_on_an_empty_queue_asks_hardly_anything_until_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch tells of what is put. A message that another has claimed is looked at now and then: who claimed it may have died."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        read, reads = Structure.read, Counter[str]()

        async def counted(structure: Structure, *gets: Get) -> tuple[int, list[GetResult]]:
            reads[structure.member] += any(get.key.startswith(keys.queue("A")) for get in gets)
            return await read(structure, *gets)

        monkeypatch.setattr(Structure, "read", counted)
        waiting = asyncio.create_task(x.get("A", wait_ms=20_000))
        await asyncio.sleep(9.0)
        assert reads["X"] <= 3
        await y.put("A", b"1")
        assert await waiting == [b"1"]
        assert asyncio.get_running_loop().time() < 10.0
        reads.clear()
        await refused(x.get("A", wait_ms=10_000), Reason.NO_MSG_AVAILABLE)
        assert 1 <= reads["X"] <= 3

        await y.put("A", b"2")
        unit = y.queues.begin()
        await y.queues.get(GetSpec("A"), unit=unit)
        reads.clear()
        await refused(x.get("A", wait_ms=10_000), Reason.NO_MSG_AVAILABLE)
        assert reads["X"] >= 9
        await unit.backout()


async def test_by_message_and_correlation_id() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        ids = await x.put("A", *(b"%d" % i for i in range(50)))
        red, blue = b"r" * 24, b"b" * 24
        await y.put("A", b"red", correlation_id=red)
        (blue_id,) = await y.put("A", b"blue", correlation_id=blue)

        assert await x.get("A", message_id=ids[33]) == [b"33"]
        await refused(x.get("A", message_id=ids[33]), Reason.NO_MSG_AVAILABLE)
        assert await x.get("A", correlation_id=red) == [b"red"]
        await refused(x.get("A", message_id=ids[1], correlation_id=blue), Reason.NO_MSG_AVAILABLE)
        assert await x.get("A", message_id=blue_id, correlation_id=blue) == [b"blue"]
        assert await x.get("A", 2) == [b"0", b"1"]

        waiting = asyncio.create_task(x.get("A", correlation_id=red, wait_ms=5_000))
        await asyncio.sleep(0.02)
        await y.put("A", b"other", correlation_id=blue)
        await y.put("A", b"mine", correlation_id=red)
        assert await waiting == [b"mine"]


@CLAIMS
async def test_by_id_behind_a_deep_window(monkeypatch: pytest.MonkeyPatch, sole: bool) -> None:
    monkeypatch.setattr("qsg.manager.window.HEADERS_BYTES", 4_000)
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        red = b"r" * 24
        for i in range(100):
            await x.put("A", b"%d" % i * 20)
        await x.put("A", b"deep", correlation_id=red)

        assert await x.get("A", correlation_id=red) == [b"deep"]
        await refused(x.get("A", correlation_id=red), Reason.NO_MSG_AVAILABLE)
        waiting = asyncio.create_task(x.get("A", correlation_id=red, wait_ms=5_000))
        await asyncio.sleep(0.05)
        await x.put("A", b"deeper", correlation_id=red)
        assert await waiting == [b"deeper"]
        got: list[bytes] = []
        while len(got) < 100:
            got += await x.get("A", 1000)
        assert got == [b"%d" % i * 20 for i in range(100)]


@CLAIMS
@pytest.mark.parametrize("late", [False, True])
async def test_who_waits_by_id_on_a_deep_queue_reads_it_no_more_than_is_put(
    monkeypatch: pytest.MonkeyPatch, late: bool, sole: bool
) -> None:
    """`late`: the window is full only of what was the whole queue at its last read."""
    reads = 0
    read = Window.read

    async def counted(window: Window, *, ahead: bool) -> None:
        nonlocal reads
        reads += 1
        assert reads < 100
        await read(window, ahead=ahead)

    monkeypatch.setattr(Window, "read", counted)
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        blue, red = b"b" * 24, b"r" * 24
        for i in range(100):
            await x.put("A", b"%d" % i * 20)
        if late:
            await x.put("A", b"first", correlation_id=blue)
            assert await x.get("A", correlation_id=blue) == [b"first"]
        monkeypatch.setattr("qsg.manager.window.HEADERS_BYTES", 4_000)
        waiting = asyncio.create_task(x.get("A", correlation_id=red, wait_ms=5_000))
        await asyncio.sleep(0.5)
        assert reads < 20
        await x.put("A", b"other")
        await x.put("A", b"deep", correlation_id=red)
        assert await waiting == [b"deep"]
        assert reads < 20


@CLAIMS
async def test_expired_messages_are_skipped_and_removed(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", b"short", b"short too", expires_at_ms=g.wall.ms + 100)
        await x.put("A", b"long", expires_at_ms=g.wall.ms + 10_000)
        await x.put("A", b"ever")
        g.wall.ms += 200

        assert await x.get("A", 10) == [b"long", b"ever"]
        assert (await x.queues.depth("A")).messages == 0
        assert await left_over(x) == []

        await x.put("A", b"gone", expires_at_ms=g.wall.ms)
        await refused(x.get("A"), Reason.NO_MSG_AVAILABLE)
        assert (await x.queues.depth("A")).messages == 0


@pytest.mark.parametrize("wait_ms", [0, 60_000])
@simulated
async def test_what_is_behind_a_window_full_of_expired_messages_is_got_at_once(wait_ms: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.manager.window.SEGMENTS_MAX", 40)
    async with group() as g:
        (x,) = await members(g, "X")
        for _ in range(200):
            await x.put("A", b"old", expires_at_ms=g.wall.ms + 1_000)
        await x.put("A", b"live")
        g.wall.ms += 2_000
        assert await x.get("A", wait_ms=wait_ms) == [b"live"]
        assert asyncio.get_running_loop().time() < 0.5
        assert (await x.queues.depth("A")).messages == 0


@CLAIMS
async def test_bytes_max_bounds_a_get_but_one_message_always_comes(sole: bool) -> None:
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", *(bytes(1000) for _ in range(6)))

        assert len(await x.get("A", 6, bytes_max=2_500)) == 2
        assert len(await x.get("A", 6, bytes_max=1)) == 1
        assert len(await x.get("A", 6)) == 3


@pytest.mark.parametrize(("fast", "slow"), [(0, 0), (1, 1), (0.5, 2)], ids=["in step", "alike", "one is slow"])
@pytest.mark.parametrize("size", [10, 1])
@pytest.mark.parametrize("seed", range(2))
@simulated
async def test_competing_members_get_each_message_once(size: int, fast: float, slow: float, seed: int) -> None:
    """Interleaving M2b: both make progress, nothing is got twice; who loses every race is not starved (delays in ms)."""
    async with group() as g:
        x, y, z = await members(g, "X", "Y", "Z")
        for i in range(600 // size):
            await z.put("A", *(b"%d" % (i * size + k) for k in range(size)))
        for member, delay_ms in zip((x, y), (fast, slow), strict=True):
            member.stores["app1"].faults = RandomFaults(Random(f"{seed} {member.name}"), delay_ms / 1000)
        got: Counter[bytes] = Counter()
        shares: Counter[str] = Counter()

        async def getter(member: Member, count: int) -> None:
            while True:
                try:
                    page = await member.get("A", count)
                except Refusal as refusal:
                    assert refusal.reason is Reason.NO_MSG_AVAILABLE
                    return
                got.update(page)
                shares[member.name] += len(page)

        await asyncio.gather(*(getter(m, n) for m in (x, y) for n in (1, 3, 1)))

        assert got == Counter(b"%d" % i for i in range(600))
        assert min(shares[n] for n in "XY") > (5 if fast < slow else 60)
        assert await left_over(x) == []
        assert (await x.queues.depth("A")).messages == 0


async def test_claims_of_a_dead_member_are_void() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", b"1", b"2")
        await x.queues.get(GetSpec("A", messages_max=2), unit=x.queues.begin())
        await refused(y.get("A"), Reason.NO_MSG_AVAILABLE)
        waiting = asyncio.create_task(y.get("A", 2, wait_ms=5_000))
        await asyncio.sleep(0.02)

        await x.crash()

        assert await waiting == [b"1", b"2"]
        assert await left_over(y) == []


@pytest.mark.parametrize("told", [True, False])
@simulated
async def test_what_another_member_gives_back_is_found_by_getters_that_wait_a_little_each(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulation seed 91446: who gave back had put nothing, and its lane was taken for one with something new; nobody waited long enough
    to look at the claim once more, and the message stayed where it was."""
    async with group() as g:
        x, y = await members(g, "X", "Y")
        if not told:
            monkeypatch.setattr(GetterLoop, "_heard", lambda loop, events: None)
        await x.put("A", b"1")
        unit = y.queues.begin()
        await y.queues.get(GetSpec("A"), unit=unit)

        async def asking(begin_s: float) -> list[bytes]:
            await asyncio.sleep(begin_s)
            while True:
                with suppress(Refusal):
                    return await x.get("A", wait_ms=800)

        two = [asyncio.create_task(asking(begin_s)) for begin_s in (0.0, 0.4)]
        await asyncio.sleep(3.0)
        await unit.backout()
        done, waiting = await asyncio.wait(two, timeout=0.1 if told else 1.5, return_when=asyncio.FIRST_COMPLETED)
        for one in waiting:
            one.cancel()
        assert [one.result() for one in done] == [[b"1"]]


async def test_put_and_get_inhibited() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        await x.put("A", b"1")
        waiting = asyncio.create_task(y.get("A", correlation_id=b"c" * 24, wait_ms=3_000))
        await asyncio.sleep(0.02)
        await x.queues.define(shared("A", get_enabled=False))

        await refused(x.get("A"), Reason.GET_INHIBITED)
        await refused(waiting, Reason.GET_INHIBITED)
        await x.queues.define(shared("A"))
        await asyncio.sleep(0.01)
        assert await y.get("A") == [b"1"]


async def test_transmission_queue_in_a_channels_hands_is_refused() -> None:
    """Interleavings N1, P5: every get compares the sender's fence."""
    async with group() as g:
        x, y = await members(g, "X", "Y", usage="transmission")
        await y.queues.define(
            shared("R", type="remote", structure="private", remote_queue="Q", remote_queue_manager="RR", transmission_queue="A")
        )
        structure = x.structures["app1"]
        await y.put("R", b"1", b"2", b"3")
        assert await x.get("A") == [b"1"]
        fence = pb.SenderFence(epoch=1, open=False)
        await structure.commit(Unit(ops=[Put(keys.sender_fence("A"), fence.SerializeToString())]))
        assert await x.get("A") == [b"2"]
        fence.open = True
        await structure.commit(Unit(ops=[Put(keys.sender_fence("A"), fence.SerializeToString())]))

        await refused(x.get("A"), Reason.OBJECT_IN_USE)
        await refused(x.queues.get(GetSpec("A"), unit=x.queues.begin()), Reason.OBJECT_IN_USE)
        assert (await x.queues.depth("A")).messages == 1


async def test_queue_deleted_under_waiting_getters() -> None:
    async with group() as g:
        x, y = await members(g, "X", "Y")
        waiting = asyncio.create_task(y.get("A", wait_ms=5_000))
        await asyncio.sleep(0.05)
        await x.queues.delete("A")
        await x.queues.define(shared("A"))
        await x.put("A", b"new")

        got = (await asyncio.gather(waiting, return_exceptions=True))[0]

        assert got == [b"new"] or (isinstance(got, Refusal) and got.reason in (Reason.Q_DELETED, Reason.UNKNOWN_OBJECT_NAME))


@CLAIMS
async def test_loop_ends_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch, sole: bool) -> None:
    monkeypatch.setattr("qsg.manager.getting.LINGER_S", 0.05)
    async with group() as g:
        (x,) = await members(g, "X", sole=sole)
        await x.put("A", *(b"%d" % i for i in range(50)))
        await x.get("A")
        await asyncio.sleep(0.1)
        (loop,) = x.queues._loops.values()

        assert loop.idle
        assert list(loop.window) == []
        assert await x.get("A", 100) == [b"%d" % i for i in range(1, 50)]


@pytest.mark.parametrize("depth_bytes", [2 << 20, 3_000])
async def test_members_race_by_id(depth_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interleaving M2b: getters by id of two members on the same segments; each finds its own."""
    monkeypatch.setattr("qsg.manager.window.HEADERS_BYTES", depth_bytes)
    async with group() as g:
        x, y = await members(g, "X", "Y")
        ids = [await x.put("A", *(b"%d.%d" % (s, i) for i in range(10))) for s in range(12)]
        wanted = [(message_id, b"%d.%d" % (s, i)) for s, some in enumerate(ids) for i, message_id in enumerate(some)]

        async def getter(member: Member, mine: list[tuple[bytes, bytes]]) -> None:
            for message_id, payload in mine:
                assert await member.get("A", message_id=message_id, wait_ms=2_000) == [payload]

        await asyncio.gather(*(getter(m, wanted[k::4]) for m, k in ((x, 0), (x, 1), (y, 2), (y, 3))))

        assert await left_over(x) == []
