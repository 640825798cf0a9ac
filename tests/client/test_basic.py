"""Put, get, browse, units of work, commands: the client against the real service over a network in memory."""

from __future__ import annotations

import asyncio

import pytest

import qsg
from qsg.client import waiting
from support.client_group import ClientGroup


async def test_put_and_get(group: ClientGroup) -> None:
    async with group.connect(application="test") as qmgr:
        message_id = await qmgr.put(
            "Q", b"hello", priority=4, correlation_id=b"c", reply_to=("R", "QM2"), properties={"a": "b"}, expiry_ms=5_000
        )
        message = await qmgr.get("Q")

    assert message.payload == b"hello"
    assert message.message_id == message_id
    assert message.correlation_id == b"c".ljust(24, b"\0")
    assert (message.priority, message.backout_count, message.properties) == (4, 0, {"a": "b"})
    assert message.reply_to == qsg.ReplyTo("R", "QM2")
    assert message.put_application == "test"
    assert message.put_at is not None
    assert message.expires_at is not None
    assert (message.expires_at - message.put_at).total_seconds() == 5
    assert message.dead_letter is None


@pytest.mark.parametrize("persistent", [True, False])
async def test_what_a_putter_says_of_persistence_is_told_to_the_getter(group: ClientGroup, persistent: bool) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("Q", b"one", persistent=persistent)
        await qmgr.put_many("Q", [b"many"], persistent=persistent)
        async with qmgr.unit() as unit:
            await unit.put("Q", b"unit", persistent=persistent)
        got = await qmgr.get_many("Q", 3)

    assert [(m.payload, m.persistent) for m in got] == [(b"one", persistent), (b"many", persistent), (b"unit", persistent)]


async def test_names(group: ClientGroup) -> None:
    async with group.connect("X") as qmgr:
        assert (qmgr.name, qmgr.member) == ("QSG1", "X")
    async with group.connect("X", queue_manager="X") as qmgr:
        assert (qmgr.name, qmgr.member) == ("X", "X")


async def test_another_queue_manager_than_asked_for(group: ClientGroup) -> None:
    with pytest.raises(qsg.QueueManagerNameError) as raised:
        await group.connect(queue_manager="QSG2").open()

    assert raised.value.reason == 2058


async def test_the_member_asked_for_is_found_among_the_addresses(group: ClientGroup) -> None:
    async with group.connect(queue_manager="Z") as qmgr:
        assert qmgr.member == "Z"


async def test_nobody_there() -> None:
    async with ClientGroup("") as group:
        with pytest.raises(qsg.HostNotAvailable, match="connection refused"):
            await group.connect("X", connect_s=0.2).open()


async def test_no_message(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        with pytest.raises(qsg.NoMessageAvailable) as raised:
            await qmgr.get("Q", wait_ms=10)

    assert int(raised.value.reason) == 2033


async def test_a_waiting_get_gets_what_comes(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        waiting = asyncio.create_task(qmgr.get("Q", wait_ms=-1))
        await asyncio.sleep(0.01)
        await qmgr.put("Q", "text")

        assert (await waiting).payload == b"text"


async def test_a_cancelled_get_takes_nothing(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        waiting = asyncio.create_task(qmgr.get("Q", wait_ms=60_000))
        await asyncio.sleep(0.01)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await asyncio.sleep(0.01)
        await qmgr.put("Q", b"1")
        await asyncio.sleep(0.01)

        assert group.payloads("Q") == [b"1"]


async def test_get_by_id(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("Q", b"1")
        wanted = await qmgr.put("Q", b"2")
        await qmgr.put("Q", b"3", correlation_id=b"x")

        assert (await qmgr.get("Q", message_id=wanted)).payload == b"2"
        assert (await qmgr.get("Q", correlation_id=b"x")).payload == b"3"


async def test_many(group: ClientGroup) -> None:
    payloads = [b"%d" % i for i in range(2_500)]
    async with group.connect() as qmgr:
        ids = await qmgr.put_many("Q", payloads)
        browsed = [message.payload async for message in qmgr.browse("Q")]
        got = await qmgr.get_many("Q", 3_000)

    assert len(set(ids)) == 2_500
    assert browsed == payloads
    assert [message.payload for message in got] == payloads
    assert [message.message_id for message in got] == ids


async def test_a_wait_for_ever_goes_on_behind_its_slices(group: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "SLICE_MS", 20)
    async with group.connect() as qmgr:
        for wait_ms in (-1, 10_000):
            alone = asyncio.create_task(qmgr.get("Q", wait_ms=wait_ms))
            await asyncio.sleep(0.1)
            await qmgr.put("Q", "alone")
            assert (await alone).payload == b"alone"
            async with qmgr.unit() as unit:
                within = asyncio.create_task(unit.get("Q", wait_ms=wait_ms))
                await asyncio.sleep(0.1)
                await qmgr.put("Q", "within")
                assert (await within).payload == b"within"
        began = asyncio.get_running_loop().time()
        with pytest.raises(qsg.NoMessageAvailable):
            await qmgr.get("Q", wait_ms=90)
        assert asyncio.get_running_loop().time() - began >= 0.085


async def test_what_is_no_wait_is_refused_before_anything_is_asked(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        with pytest.raises(qsg.QsgError, match="wait_ms -2") as raised:
            await qmgr.get("Q", wait_ms=-2)
        assert raised.value.reason is qsg.Reason.WAIT_INTERVAL_ERROR
        async with qmgr.unit() as unit:
            with pytest.raises(qsg.QsgError) as raised:
                await unit.get_many("Q", wait_ms=-2)
            assert raised.value.reason is qsg.Reason.WAIT_INTERVAL_ERROR


async def test_waiting_puts_share_commits(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i) for i in range(500)))

    assert sorted(group.payloads("Q"), key=int) == [b"%d" % i for i in range(500)]
    assert group.durable.commits <= 5


@pytest.mark.parametrize("producer", ["", "P"])
async def test_puts_with_and_without_expiry_keep_their_order(group: ClientGroup, producer: str) -> None:
    async with group.connect(producer=producer) as qmgr:
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i, expiry_ms=60_000 if i % 5 else 0) for i in range(20)))

    assert group.payloads("Q") == [b"%d" % i for i in range(20)]
    assert max(group.durable.frames) == 4, "neighbours still share a frame"


async def test_one_bad_message_does_not_harm_its_company(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        answers = await asyncio.gather(*(qmgr.put("Q", b"x" * (4_000_001 if i == 7 else 10)) for i in range(20)), return_exceptions=True)

    failed = [i for i, answer in enumerate(answers) if isinstance(answer, qsg.MessageTooBig)]
    assert failed == [7]
    assert len(group.payloads("Q")) == 19


async def test_as_many_as_fit(group: ClientGroup) -> None:
    group.durable.full["Q"] = 12
    async with group.connect() as qmgr:
        answers = await asyncio.gather(*(qmgr.put("Q", b"x") for _ in range(20)), return_exceptions=True)

    assert sum(isinstance(answer, qsg.QueueFull) for answer in answers) == 8
    assert len(group.payloads("Q")) == 12


async def test_put_many_tells_what_was_done(group: ClientGroup) -> None:
    group.durable.full["Q"] = 1_500
    async with group.connect() as qmgr:
        with pytest.raises(qsg.QueueFull) as raised:
            await qmgr.put_many("Q", [b"x"] * 2_500)

    assert len(raised.value.done) == len(group.payloads("Q")) == 1_000


async def test_unknown_queue(group: ClientGroup) -> None:
    group.durable.missing.add("NO")
    async with group.connect() as qmgr:
        with pytest.raises(qsg.UnknownObjectName, match="2085"):
            await qmgr.put("NO", b"")
        with pytest.raises(qsg.UnknownObjectName):
            await qmgr.inquire_queue("NO")


async def test_bad_arguments(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        with pytest.raises(qsg.OptionsError):
            await qmgr.put("Q", b"", priority=10)
        with pytest.raises(qsg.OptionsError):
            await qmgr.put("Q", b"", correlation_id=b"x" * 25)
        with pytest.raises(qsg.OptionsError):
            await qmgr.get_many("Q", 0)
    with pytest.raises(qsg.OptionsError):
        qsg.connect("nonsense")


async def test_unit_commits(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        async with qmgr.unit() as unit:
            message = await unit.get("IN")
            await unit.put("OUT", message.payload + b"!")
            assert group.payloads("OUT") == []

    assert (group.payloads("IN"), group.payloads("OUT")) == ([], [b"1!"])


async def test_unit_backs_out(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        with pytest.raises(ZeroDivisionError):
            async with qmgr.unit() as unit:
                await unit.get("IN")
                await unit.put("OUT", b"")
                raise ZeroDivisionError
        message = await qmgr.get("IN")

    assert group.payloads("OUT") == []
    assert message.backout_count == 1


async def test_unit_explicitly(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        unit = qmgr.unit()
        await unit.put_many("OUT", [b"1", b"2"])
        await unit.commit()
        with pytest.raises(qsg.OptionsError, match="over"):
            await unit.put("OUT", b"3")
        other = qmgr.unit()
        await other.put("OUT", b"4")
        await other.backout()
        async with qmgr.unit() as empty:
            pass
        with pytest.raises(qsg.OptionsError):
            await empty.commit()

    assert group.payloads("OUT") == [b"1", b"2"]


async def test_many_units_at_once(group: ClientGroup) -> None:
    async with group.connect() as qmgr:

        async def one(i: int) -> None:
            async with qmgr.unit() as unit:
                await unit.put("A", b"%d" % i)
                await unit.put("B", b"%d" % i)

        await asyncio.gather(*(one(i) for i in range(40)))

    assert sorted(group.payloads("A")) == sorted(group.payloads("B"))
    assert len(group.payloads("A")) == 40


async def test_open_units_are_backed_out_when_the_connection_ends(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        unit = qmgr.unit()
        await unit.get("IN")
        assert group.payloads("IN") == []
    await asyncio.sleep(0.01)

    assert group.payloads("IN") == [b"1"]


async def test_commands(group: ClientGroup) -> None:
    async with group.connect("X") as qmgr:
        assert await qmgr.command("start", channel="TO.R") == {"done": "start"}
        with pytest.raises(qsg.QsgError) as raised:
            await qmgr.command("refuse")
        assert await qmgr.inquire_queue("Q") == {"name": "Q", "depth": 0}

    assert group.backends["X"].commands[0] == ("start", {"channel": "TO.R"})
    assert raised.value.reason == qsg.Reason.CHANNEL_NOT_FOUND


async def test_after_close(group: ClientGroup) -> None:
    qmgr = await group.connect().open()
    await qmgr.close()

    with pytest.raises(qsg.ConnectionBroken):
        await qmgr.put("Q", b"")
