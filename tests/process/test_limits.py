"""Limits and full stores, with real processes: the reason that a caller is told, nothing acknowledged lost, work going on afterwards."""

from __future__ import annotations

import asyncio
import hashlib
import random
import signal
import urllib.request
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

import qsg
from qsg.process.children import free_ports
from qsg.process.local import DEAD_LETTER_QUEUE, GROUP, IN_CHANNEL, OUT_CHANNEL, REMOTE
from qsg.rules.reasons import Reason
from support.group import READY_S, ConfiguredGroup, connected, eventually, flowing, is_running, running, status

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]

MIB = 1 << 20
RETRY = {"message_retry_count": 2, "message_retry_ms": 100}
WAIT_MS = 60_000
"""For a message that will come, on a machine that is slow or stands still."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConfiguredGroup]:
    async with running(tmp_path_factory.mktemp("group"), members=("X",), patient=True) as made:
        async with connected(made, "X") as x, connected(made, REMOTE) as r:
            await channel(x, IN_CHANNEL, "receiver", **RETRY)
            await channel(r, OUT_CHANNEL, "receiver", **RETRY)
        yield made
    assert set(made.starts().values()) == {1}, "no process ended"


@pytest_asyncio.fixture(loop_scope="module")
async def x(group: ConfiguredGroup) -> AsyncIterator[qsg.QueueManager]:
    async with connected(group, "X") as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def r(group: ConfiguredGroup) -> AsyncIterator[qsg.QueueManager]:
    async with connected(group, REMOTE) as made:
        yield made


async def queue(at: qsg.QueueManager, name: str, **values: Any) -> None:
    await at.command("define", kind="queue", definition={"name": name, **values})


async def channel(at: qsg.QueueManager, name: str, kind: str, **values: Any) -> None:
    await at.command("define", kind="channel", definition={"name": name, "type": kind, **values})


async def road(x: qsg.QueueManager, name: str) -> None:
    """A remote definition at X for the queue `name` at R."""
    await queue(x, name, type="remote", remote_queue=name, remote_queue_manager=REMOTE, transmission_queue=REMOTE)


async def depth(at: qsg.QueueManager, name: str) -> int:
    return int((await at.inquire_queue(name))["depth"])


async def drained(at: qsg.QueueManager, name: str) -> list[qsg.Message]:
    found: list[qsg.Message] = []
    while True:
        try:
            found += await at.get_many(name, 1000)
        except qsg.NoMessageAvailable:
            return found


async def refused(work: Any, reason: Reason) -> qsg.QsgError:
    with pytest.raises(qsg.QsgError) as error:
        await work
    assert error.value.reason == reason, error.value
    assert error.value.detail
    return error.value


# What a put and a get are refused with


@pytest.mark.parametrize("structure", ["private", "admin"])
async def test_a_queue_at_its_limit(x: qsg.QueueManager, structure: str) -> None:
    name = f"SMALL.{structure}"
    await queue(x, name, structure=structure, max_depth=3)
    for text in "abc":
        await x.put(name, text)
    error = await refused(x.put(name, "d"), Reason.Q_FULL)
    assert isinstance(error, qsg.QueueFull)
    async with x.unit() as unit:
        await refused(unit.put(name, "d"), Reason.Q_FULL)
    assert (await x.get(name)).payload == b"a"
    await x.put(name, "d")
    assert [m.payload for m in await drained(x, name)] == [b"b", b"c", b"d"]
    await refused(x.put_many(name, ["1", "2", "3", "4"]), Reason.Q_FULL)


async def test_sizes(x: qsg.QueueManager, r: qsg.QueueManager) -> None:
    await queue(x, "SHORT", max_message_bytes=10)
    await x.put("SHORT", b"0123456789")
    await refused(x.put("SHORT", b"0123456789a"), Reason.MSG_TOO_BIG_FOR_Q)
    await x.put("SHORT", b"")
    assert [m.payload for m in await drained(x, "SHORT")] == [b"0123456789", b""]
    for at in (x, r):
        await queue(at, "LONG")
        await refused(at.put("LONG", bytes(100 * MIB + 1)), Reason.MSG_TOO_BIG_FOR_Q_MGR)
        assert await depth(at, "LONG") == 0


async def test_inhibited_queues(x: qsg.QueueManager) -> None:
    await queue(x, "SHUT", put_enabled=False)
    await refused(x.put("SHUT", "a"), Reason.PUT_INHIBITED)
    await queue(x, "SHUT", get_enabled=False)
    await x.put("SHUT", "a")
    await refused(x.get("SHUT"), Reason.GET_INHIBITED)
    await queue(x, "SHUT")
    assert (await x.get("SHUT")).payload == b"a"
    waiting = asyncio.create_task(x.get("SHUT", wait_ms=2 * WAIT_MS))
    await asyncio.sleep(0.3)
    await queue(x, "SHUT", get_enabled=False)
    async with asyncio.timeout(READY_S):
        await refused(waiting, Reason.GET_INHIBITED)


async def test_unknown_names(group: ConfiguredGroup, x: qsg.QueueManager) -> None:
    await refused(x.put("NOWHERE", "a"), Reason.UNKNOWN_OBJECT_NAME)
    await refused(x.get("NOWHERE"), Reason.UNKNOWN_OBJECT_NAME)
    await refused(x.put("Q", "a", queue_manager="NOBODY"), Reason.UNKNOWN_REMOTE_Q_MGR)
    with pytest.raises(qsg.QsgError) as error:
        async with qsg.connect(group.addresses["X"], queue_manager="SOMEBODY", connect_s=READY_S):
            pass
    assert error.value.reason == Reason.Q_MGR_NAME_ERROR
    for right in ("X", GROUP):
        async with qsg.connect(group.addresses["X"], queue_manager=right, connect_s=READY_S) as named:
            assert named.name == right


@pytest.mark.parametrize("structure", ["private", "admin"])
async def test_a_unit_of_work_beyond_its_limit_goes_on_without_what_was_too_much(x: qsg.QueueManager, structure: str) -> None:
    name = f"UNIT.{structure}"
    await queue(x, name, structure=structure)
    body = bytes(200_000)
    put = 0
    async with x.unit() as unit:
        with pytest.raises(qsg.SyncpointLimitReached) as error:
            for _ in range(200):
                await unit.put(name, body)
                put += 1
        assert error.value.reason == Reason.SYNCPOINT_LIMIT_REACHED
    assert put >= 3
    assert await depth(x, name) == put, "the unit was committed with all that was accepted"
    await x.put_many(name, [b"%d" % n for n in range(3_000)])
    got = 0
    async with x.unit() as unit:
        try:
            while got < put + 3_000:
                got += len(await unit.get_many(name, 100))
        except qsg.SyncpointLimitReached:
            pass
    assert got
    assert await depth(x, name) == put + 3_000 - got


# Through a channel


@pytest.mark.timeout(600)
async def test_the_largest_message_both_ways(group: ConfiguredGroup, x: qsg.QueueManager, r: qsg.QueueManager) -> None:
    body = random.Random(5).randbytes(100 * MIB)
    digest = hashlib.sha256(body).digest()
    for source, target, at_source, at_target in (("X", r, "TO.R", "FROM.QSG"), (REMOTE, x, "TO.QSG", "FROM.R")):
        async with connected(group, source, producer="largest") as putter:  # it repeats a put during which nobody was heard for long
            for payload in (b"before", body, b""):
                await putter.put(at_source, payload)
        found = [await target.get(at_target, wait_ms=2 * WAIT_MS) for _ in range(3)]
        assert [m.payload for m in (found[0], found[2])] == [b"before", b""]
        assert hashlib.sha256(found[1].payload).digest() == digest
        with pytest.raises(qsg.NoMessageAvailable):
            await target.get(at_target)


async def _restart(at: qsg.QueueManager, name: str) -> None:
    stopped = await at.command("stop", channel=name, wait_s=READY_S)
    assert stopped["status"] == "STOPPED", stopped
    await at.command("start", channel=name)


async def test_what_a_channel_cannot_put_goes_to_the_dead_letter_queue_and_the_rest_goes_on(
    x: qsg.QueueManager, r: qsg.QueueManager
) -> None:
    await queue(r, "FULL.AT.R", max_depth=2)
    await queue(r, "SHUT.AT.R", put_enabled=False)
    await queue(r, "SHORT.AT.R", max_message_bytes=5)
    for name in ("FULL.AT.R", "SHUT.AT.R", "SHORT.AT.R", "MISSING.AT.R"):
        await road(x, name)
    for n in range(4):
        await x.put("FULL.AT.R", f"full {n}")
    await x.put("SHUT.AT.R", "shut")
    await x.put("SHORT.AT.R", "too long")
    await x.put("MISSING.AT.R", "missing")
    await x.put("Q", "two hops", queue_manager=REMOTE)
    await x.put("TO.R", "behind all of them")
    assert (await r.get("FROM.QSG", wait_ms=WAIT_MS)).payload == b"behind all of them"
    assert [m.payload for m in await drained(r, "FULL.AT.R")] == [b"full 0", b"full 1"]
    letters = {m.payload: m.dead_letter for m in await drained(r, DEAD_LETTER_QUEUE)}
    told = {body: (Reason(d.reason), d.queue, d.channel) for body, d in letters.items() if d is not None}
    assert told == {
        b"full 2": (Reason.Q_FULL, "FULL.AT.R", OUT_CHANNEL),
        b"full 3": (Reason.Q_FULL, "FULL.AT.R", OUT_CHANNEL),
        b"shut": (Reason.PUT_INHIBITED, "SHUT.AT.R", OUT_CHANNEL),
        b"too long": (Reason.MSG_TOO_BIG_FOR_Q, "SHORT.AT.R", OUT_CHANNEL),
        b"missing": (Reason.UNKNOWN_OBJECT_NAME, "MISSING.AT.R", OUT_CHANNEL),
        b"two hops": (Reason.UNKNOWN_OBJECT_NAME, "Q", OUT_CHANNEL),
    }


async def test_a_queue_that_gets_room_during_message_retry_takes_its_message(x: qsg.QueueManager, r: qsg.QueueManager) -> None:
    await channel(r, OUT_CHANNEL, "receiver", message_retry_count=1_000, message_retry_ms=100)
    await _restart(x, OUT_CHANNEL)
    await queue(r, "TIGHT", max_depth=1)
    await road(x, "TIGHT")
    for n in range(4):
        await x.put("TIGHT", f"{n}")
    for n in range(4):
        assert (await r.get("TIGHT", wait_ms=WAIT_MS)).payload == b"%d" % n
        await asyncio.sleep(0.3)
    assert await depth(r, DEAD_LETTER_QUEUE) == 0
    await channel(r, OUT_CHANNEL, "receiver", **RETRY)
    await _restart(x, OUT_CHANNEL)


async def test_without_a_dead_letter_queue_the_channel_stops_and_loses_nothing(x: qsg.QueueManager, r: qsg.QueueManager) -> None:
    await r.command("define", kind="settings", definition={"dead_letter_queue": ""})
    await road(x, "LATE")
    await x.put("TO.R", "first")
    await x.put("LATE", "late")
    await x.put("TO.R", "behind")

    async def held() -> bool:
        line = await status(x, OUT_CHANNEL)
        return line["status"] in ("RETRYING", "STOPPED") and line["reason"] == Reason.UNKNOWN_OBJECT_NAME

    await eventually(held, what="the channel says why it stands still")
    await queue(r, "LATE")
    try:
        await x.command("start", channel=OUT_CHANNEL)
    except qsg.QsgError as error:
        assert error.reason == Reason.CHANNEL_ALREADY_RUNNING
    assert [(await r.get("FROM.QSG", wait_ms=WAIT_MS)).payload for _ in range(2)] == [b"first", b"behind"]
    assert (await r.get("LATE", wait_ms=WAIT_MS)).payload == b"late"
    await r.command("define", kind="settings", definition={"dead_letter_queue": DEAD_LETTER_QUEUE})


# Full and lost stores

QUOTA = 24 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConfiguredGroup]:
    """Little room in the group's store, and less at R."""
    directory = tmp_path_factory.mktemp("narrow")
    monitors = {name: f"127.0.0.1:{port}" for name, port in zip(("X", REMOTE), free_ports(2), strict=True)}
    configure = {"X": {"monitor": monitors["X"]}, REMOTE: {"monitor": monitors[REMOTE], "private_quota_bytes": QUOTA // 2}}
    async with running(directory, members=("X", "Y"), configure=configure, store_quota_bytes=QUOTA, patient=True) as made:
        yield made


async def has_room(group: ConfiguredGroup) -> None:
    """Returns once nothing is left in both stores of what earlier traffic filled them with: its history is kept for some seconds."""

    def in_use(at: str, structure: str) -> int:
        with urllib.request.urlopen(f"http://{group.config(at)['monitor']}/metrics", timeout=READY_S) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = [s for family in families for s in family.samples if s.name == "qsg_structure_bytes_in_use"]
        return max(int(s.value) for s in samples if s.labels["structure"] == structure)

    for at, structure in (("X", "admin"), (REMOTE, "private")):

        async def is_small(at: str = at, structure: str = structure) -> bool:
            return await asyncio.to_thread(in_use, at, structure) < QUOTA // 10

        await eventually(is_small, what=f"room in the {structure} store of {at}")


async def fill(at: qsg.QueueManager, name: str, size: int = 100_000) -> int:
    """Puts until that is refused as it should be; how many were acknowledged."""
    count = 0
    while True:
        try:
            await at.put(name, b"%d " % count + bytes(size))
        except qsg.StorageNotAvailable as error:
            assert error.detail
            return count
        count += 1
        assert count * size < 2 * QUOTA, "the quota is not kept"


async def numbers(at: qsg.QueueManager, name: str, count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        async with at.unit() as unit:
            found += [int(m.payload.split(b" ")[0]) for m in await unit.get_many(name, 10, wait_ms=WAIT_MS)]
    return found


async def test_a_full_store_refuses_puts_goes_on_with_gets_and_recovers(narrow: ConfiguredGroup) -> None:
    async with connected(narrow, "X") as x, connected(narrow, "Y") as y:
        for _ in range(2):
            await has_room(narrow)
            count = await fill(x, "SHARED")
            assert count > 20
            more = await fill(y, "SHARED")
            assert more < 20, "for other members it is full too"
            assert await numbers(y, "SHARED", count + more) == [*range(count), *range(more)]

            async def again() -> bool:
                return bool(await x.put("SHARED", b"0 again"))

            await eventually(again, what="puts are taken again")
            assert len(await numbers(x, "SHARED", 1)) == 1
        async with flowing(narrow) as flow:
            await flow.moves()


async def test_a_full_transmission_queue_is_drained_by_its_channel(narrow: ConfiguredGroup) -> None:
    async with connected(narrow, "X") as x, connected(narrow, REMOTE) as r:
        await has_room(narrow)
        await x.command("stop", channel=OUT_CHANNEL, wait_s=READY_S)
        count = await fill(x, "TO.R")
        await x.command("start", channel=OUT_CHANNEL)
        assert await numbers(r, "FROM.QSG", count) == list(range(count)), "through a full store here and little room there"
        await eventually(lambda: x.put("TO.R", b"0 again"), what="puts are taken again")
        assert await numbers(r, "FROM.QSG", 1) == [0]
        assert await depth(r, DEAD_LETTER_QUEUE) == 0


async def test_a_full_store_at_the_partner_holds_the_channel_until_there_is_room(narrow: ConfiguredGroup) -> None:
    async with connected(narrow, "X") as x, connected(narrow, REMOTE) as r:
        await has_room(narrow)
        mine = await fill(r, "FROM.QSG")
        sent = 60
        for n in range(sent):
            await x.put("TO.R", b"%d " % (mine + n) + bytes(100_000))
        await eventually(lambda: narrow.logged(at=REMOTE, event="puts are refused"))
        await asyncio.sleep(2)
        assert await depth(x, REMOTE) > 0, "it does not fit"
        assert await numbers(r, "FROM.QSG", mine + sent) == list(range(mine + sent))
        assert await depth(r, DEAD_LETTER_QUEUE) == 0
        await eventually(lambda: is_running(x, OUT_CHANNEL))


async def test_a_killed_and_a_paused_store_lose_nothing(narrow: ConfiguredGroup) -> None:
    async with flowing(narrow, rate_per_s=100) as flow:
        narrow.supervisor.signal("store", signal.SIGKILL)
        await flow.moves()
        narrow.supervisor.signal("store", signal.SIGSTOP)
        await asyncio.sleep(3)
        narrow.supervisor.signal("store", signal.SIGCONT)
        await flow.moves()
