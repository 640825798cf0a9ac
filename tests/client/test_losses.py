"""Connections lost at every point of a put and of a commit: done exactly once, or said to be unknown, or said not to be done."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

import qsg
from qsg.transport.contract import Stream, Transport
from support.client_group import ClientGroup
from support.virtual_time import run

PUT_STEPS = ["before put", "after put"]
COMMIT_STEPS = ["before commit", "after commit"]
OPEN_STEPS = ["before open", "after open"]


@pytest.mark.parametrize("times", [1, 2, 5])
@pytest.mark.parametrize("step", PUT_STEPS + OPEN_STEPS)
async def test_numbered_puts_are_done_exactly_once(group: ClientGroup, step: str, times: int) -> None:
    async with group.connect(producer="P") as qmgr:
        group.cut_at(step, times)
        for i in range(10):
            await qmgr.put("Q", b"%d" % i)

    assert group.payloads("Q") == [b"%d" % i for i in range(10)]


@pytest.mark.parametrize("step", PUT_STEPS + OPEN_STEPS)
async def test_numbered_puts_of_many_tasks_are_done_exactly_once(group: ClientGroup, step: str) -> None:
    async with group.connect(producer="P") as qmgr:
        group.cut_at(step, 7)
        await asyncio.gather(*(qmgr.put(f"Q{i % 3}", b"%d" % i) for i in range(300)))

    for queue in range(3):
        assert group.payloads(f"Q{queue}") == [b"%d" % i for i in range(queue, 300, 3)]


@pytest.mark.parametrize("step", PUT_STEPS)
async def test_plain_put_is_done_or_unknown(group: ClientGroup, step: str) -> None:
    async with group.connect() as qmgr:
        group.cut_at(step)
        with pytest.raises(qsg.OutcomeUnknown) as raised:
            await qmgr.put("Q", b"1")
        await qmgr.put("Q", b"2")

    assert raised.value.reason == 2549
    assert group.payloads("Q") == [b"1", b"2"]


async def test_plain_put_that_was_not_sent_goes_elsewhere(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        lost = qmgr.member
        group.network.kill(lost)
        await asyncio.sleep(0.005)
        await qmgr.put("Q", b"1")

        assert qmgr.member != lost
    assert group.payloads("Q") == [b"1"]


@pytest.mark.parametrize("step", COMMIT_STEPS)
async def test_interrupted_commit_is_settled(group: ClientGroup, step: str) -> None:
    committed = 0
    async with group.connect() as qmgr:
        await qmgr.put_many("IN", [b"x"] * 20)
        group.cut_at(step, 10)
        for i in range(20):
            try:
                async with qmgr.unit() as unit:
                    await unit.get("IN")
                    await unit.put("OUT", b"%d" % i)
                committed += 1
            except qsg.BackedOut:
                continue

    await asyncio.sleep(0.01)
    assert len(group.payloads("OUT")) == committed
    assert len(group.payloads("IN")) == 20 - committed


async def test_commit_that_was_done_is_told_so_by_another_member(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        group.cut_at("after commit", act=group.network.kill)
        async with qmgr.unit() as unit:
            await unit.put("OUT", b"1")

        assert qmgr.reconnections == 1
    assert group.payloads("OUT") == [b"1"]


async def test_commit_that_was_not_done_is_told_so_and_cannot_come_late(group: ClientGroup) -> None:
    wake = asyncio.Event()

    async with group.connect() as qmgr:
        unit = qmgr.unit()
        await unit.put("OUT", b"1")

        async def gate(step: str, member: str) -> None:
            if step == "before commit":
                group.network.reset("app", member)
                await wake.wait()

        group.durable.gate = gate
        with pytest.raises(qsg.BackedOut):
            await unit.commit()
        wake.set()
        await asyncio.sleep(0.01)

    assert group.payloads("OUT") == []


async def test_unit_whose_connection_is_lost_is_backed_out(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        with pytest.raises(qsg.BackedOut):
            async with qmgr.unit() as unit:
                await unit.get("IN")
                group.network.reset("app", qmgr.member)
                await asyncio.sleep(0.005)
                with pytest.raises(qsg.BackedOut):
                    await unit.put("OUT", b"1")
        assert (await qmgr.get("IN", wait_ms=1000)).payload == b"1"

    assert group.payloads("OUT") == []


async def test_commit_that_never_left_is_told_so_at_once(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        async with qmgr.unit() as unit:
            await unit.put("OUT", b"0")  # its producer is opened
        unit = qmgr.unit()
        await unit.put("OUT", b"1")
        for member in group.members:
            group.network.kill(member)
        await asyncio.sleep(0.1)
        with pytest.raises(qsg.BackedOut):
            async with asyncio.timeout(1):
                await unit.commit()
    assert group.payloads("OUT") == [b"0"]


async def without_a_member(group: ClientGroup, qmgr: qsg.QueueManager) -> None:
    """Returns while the connection is lost, and the next one is not there yet."""
    group.network.delay = lambda source, target: 0.1
    group.network.reset("app", qmgr.member)
    await asyncio.sleep(0.05)
    assert not qmgr.member


@pytest.mark.parametrize("end", ["commit", "backout"])
async def test_a_call_that_waits_for_a_member_does_not_begin_a_unit_that_is_over(group: ClientGroup, end: str) -> None:
    """The member would hold what it got as long as the connection lives."""
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        await without_a_member(group, qmgr)
        unit = qmgr.unit()
        get = asyncio.create_task(unit.get("IN"))
        await asyncio.sleep(0)
        await getattr(unit, end)()
        with pytest.raises(qsg.OptionsError, match="is over"):
            await get
        assert group.payloads("IN") == [b"1"]


async def test_first_calls_of_a_unit_that_wait_for_a_member_count_it_once(group: ClientGroup) -> None:
    """A session that was left would never be idle."""
    async with group.connect() as qmgr:
        await without_a_member(group, qmgr)
        async with qmgr.unit() as unit:
            await asyncio.gather(unit.put("OUT", b"1"), unit.put("OUT", b"2"))
        assert unit._session is not None and unit._session.units == 0
    assert group.payloads("OUT") == [b"1", b"2"]


async def test_waiting_get_is_asked_again(group: ClientGroup) -> None:
    async with group.connect() as qmgr, group.connect() as other:
        waiting = asyncio.create_task(qmgr.get("Q", wait_ms=60_000))
        await asyncio.sleep(0.01)
        group.network.reset("app", qmgr.member)
        await asyncio.sleep(0.05)
        await other.put("Q", b"1")

        assert (await waiting).payload == b"1"


async def test_browse_goes_on_after_a_loss(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put_many("Q", [b"%d" % i for i in range(500)])
        seen = []
        async for message in qmgr.browse("Q"):
            seen.append(message.payload)
            if len(seen) in (100, 300):
                group.network.reset("app", qmgr.member)

    assert seen == [b"%d" % i for i in range(500)]


async def test_command_whose_answer_is_lost_is_unknown(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        group.cut_at("before command")
        with pytest.raises(qsg.OutcomeUnknown):
            await qmgr.command("start")


async def test_a_refusal_refuses_what_was_sent_behind_it_only_for_a_moment(group: ClientGroup) -> None:
    group.durable.full["SMALL"] = 5
    async with group.connect(producer="P") as qmgr:
        answers = await asyncio.gather(*(qmgr.put("SMALL" if i % 2 else "Q", b"%d" % i) for i in range(40)), return_exceptions=True)
        structure, _, last = await qmgr.producer_state("Q")

    assert sum(isinstance(answer, qsg.QueueFull) for answer in answers) == 15
    assert group.payloads("Q") == [b"%d" % i for i in range(0, 40, 2)]
    assert len(group.payloads("SMALL")) == 5
    assert (structure, last) == ("admin", 25)


async def test_a_queue_moves_to_another_structure(group: ClientGroup) -> None:
    async with group.connect(producer="P") as qmgr:
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i) for i in range(10)))
        group.durable.homes["Q"] = "app1"
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i) for i in range(10, 20)))
        state = await qmgr.producer_state("Q")

    assert group.payloads("Q") == [b"%d" % i for i in range(20)]
    assert (state[0], state[2]) == ("app1", 10)


async def test_a_queue_moves_while_an_answer_is_lost(group: ClientGroup) -> None:
    """Interleaving N4: what is repeated under its number is settled in the structure in which it was put first."""
    async with group.connect(producer="P") as qmgr:
        await qmgr.put("Q", b"0")

        def act(member: str) -> None:
            group.durable.homes["Q"] = "app1"
            group.network.reset("app", member)

        group.cut_at("after put", act=act)
        await asyncio.gather(*(qmgr.put("Q", b"%d" % i) for i in range(1, 5)))

    assert group.payloads("Q") == [b"%d" % i for i in range(5)]


async def test_a_lost_producer_record_is_not_guessed(group: ClientGroup) -> None:
    async with group.connect(producer="P") as qmgr:
        await qmgr.put("Q", b"1")

        def act(member: str) -> None:
            group.durable.producers.clear()
            group.network.reset("app", member)

        group.cut_at("after put", act=act)
        with pytest.raises(qsg.OutcomeUnknown, match="record"):
            await qmgr.put("Q", b"2")
        await qmgr.put("Q", b"3")

    assert group.payloads("Q") == [b"1", b"2", b"3"]


@pytest.mark.parametrize("idle", [True, False])
async def test_a_unit_behind_an_idle_time_does_not_pay_for_its_forgotten_record(
    group: ClientGroup, monkeypatch: pytest.MonkeyPatch, idle: bool
) -> None:
    """Its producer is opened again before the commit; one that was just used is not, and then a lost record costs the unit."""
    monkeypatch.setattr("qsg.client.unit.LIFETIME_MS", 10_000)
    opened: list[str] = []

    async def gate(step: str, member: str) -> None:
        opened.extend([member] * (step == "before open"))

    group.durable.gate = gate

    async with group.connect() as qmgr:
        for i in range(3):
            async with qmgr.unit() as unit:
                await unit.put("Q", b"%d" % i)
            await asyncio.sleep(4)
        assert len(opened) == 1
        await asyncio.sleep(2 * idle)
        group.durable.producers.clear()
        unit = qmgr.unit()
        await unit.put("Q", b"3")
        if idle:
            await unit.commit()
        else:
            with pytest.raises(qsg.BackedOut, match="gone"):
                await unit.commit()

    assert group.payloads("Q") == [b"0", b"1", b"2"] + [b"3"] * idle


async def test_a_restarted_application_learns_its_last_number(group: ClientGroup) -> None:
    async with group.connect(producer="P") as qmgr:
        await qmgr.put_many("Q", [b"1", b"2", b"3"])
    async with group.connect(producer="P") as qmgr:
        _, epoch, last = await qmgr.producer_state("Q")
        await qmgr.put("Q", b"4")

    assert (epoch, last) == (2, 3)
    assert len(group.payloads("Q")) == 4


async def test_draining_member_hands_over_without_a_failed_call(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        first = qmgr.member
        waiting = asyncio.create_task(qmgr.get("W", wait_ms=60_000))
        unit = qmgr.unit()
        await unit.put("OUT", b"1")
        drained = asyncio.create_task(group.services[first].drain())
        await asyncio.sleep(0.01)
        await asyncio.gather(*(qmgr.put("Q", b"x") for _ in range(50)))
        assert not drained.done()
        await unit.put("OUT", b"2")
        await unit.commit()
        await drained
        await qmgr.put("W", b"1")

        assert qmgr.member != first
        assert (await waiting).payload == b"1"
    assert len(group.payloads("Q")) == 50
    assert group.payloads("OUT") == [b"1", b"2"]


def test_a_frozen_member_is_noticed_and_left() -> None:
    async def main() -> tuple[float, list[bytes]]:
        async with ClientGroup() as group, group.connect(producer="P") as qmgr:
            await qmgr.put("Q", b"1")
            group.network.cut("app", qmgr.member)
            start = asyncio.get_running_loop().time()
            await qmgr.put("Q", b"2")
            return asyncio.get_running_loop().time() - start, group.payloads("Q")

    took_s, payloads = run(main())
    assert took_s < 2.1
    assert payloads == [b"1", b"2"]


def test_one_frozen_address_does_not_hold_up_connecting() -> None:
    async def main() -> float:
        async with ClientGroup("XYZ") as group:
            group.network.cut("app", "X")
            group.network.cut("app", "Y")
            start = asyncio.get_running_loop().time()
            async with group.connect() as qmgr:
                assert qmgr.member == "Z"
                return asyncio.get_running_loop().time() - start

    assert run(main()) <= 0.55


def test_no_member_comes_back_in_time() -> None:
    async def main() -> list[object]:
        async with ClientGroup("XY") as group, group.connect(reconnect_s=3) as qmgr, group.connect(reconnect_s=3, producer="P") as numbered:
            await numbered.put("Q", b"0")
            unit = qmgr.unit()
            await unit.put("Q", b"")
            for member in "XY":
                group.network.cut("app", member)
            in_flight = [asyncio.create_task(call) for call in (qmgr.put("Q", b"1"), numbered.put("Q", b"2"), unit.commit())]
            await asyncio.sleep(2)
            late = [asyncio.create_task(call) for call in (qmgr.put("Q", b"3"), numbered.put("Q", b"4"))]
            return list(await asyncio.gather(*in_flight, *late, return_exceptions=True))

    plain, numbered, commit, late_plain, late_numbered = run(main())
    assert isinstance(plain, qsg.OutcomeUnknown)
    assert isinstance(numbered, qsg.OutcomeUnknown)
    assert isinstance(commit, qsg.OutcomeUnknown | qsg.BackedOut)
    assert isinstance(late_plain, qsg.ReconnectFailed)
    assert isinstance(late_numbered, qsg.ReconnectFailed)


@pytest.mark.parametrize("before", [[], [b"1"]], ids=["the first one", "a later one"])
def test_a_late_open_request_of_ours_does_not_look_like_another_application(before: list[bytes]) -> None:
    async def main() -> list[bytes]:
        async with ClientGroup() as group, group.connect(producer="P") as qmgr:
            await qmgr.put_many("Q", before)
            frozen = asyncio.Event()
            left = 1

            async def gate(step: str, member: str) -> None:
                nonlocal left
                if step == "before open" and left:
                    left -= 1
                    group.network.reset("app", member)
                    await frozen.wait()

            group.durable.gate = gate
            group.network.reset("app", qmgr.member)
            await qmgr.put("Q", b"2")
            frozen.set()
            await asyncio.sleep(0.1)
            await qmgr.put("Q", b"3")
            return group.payloads("Q")

    assert run(main()) == [*before, b"2", b"3"]


def test_a_large_message_on_a_slow_path_is_not_taken_for_silence() -> None:
    """5 MB at about 1 MB/s, both ways: heartbeats do not pass meanwhile."""

    async def main() -> tuple[int, int]:
        async with ClientGroup("X") as group:
            transport = SlowTransport(group.network.transport("app"))
            async with connect_slowly(group, transport) as qmgr:
                await qmgr.put("Q", b"x" * 3_900_000)
                message = await qmgr.get("Q", wait_ms=60_000)
                return len(message.payload), qmgr.reconnections

    assert run(main()) == (3_900_000, 0)


@dataclass
class SlowStream:
    inner: Stream
    peer: str = ""
    identity: str = ""

    async def send(self, frame: bytes) -> None:
        await asyncio.sleep(len(frame) / 1_100_000)
        await self.inner.send(frame)

    async def receive(self) -> bytes:
        frame = await self.inner.receive()
        await asyncio.sleep(len(frame) / 1_100_000)
        return frame

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class SlowTransport:
    inner: Transport
    listen: object = None

    async def connect(self, address: str, service: str, *, timeout_s: float = 1.0) -> SlowStream:
        return SlowStream(await self.inner.connect(address, service, timeout_s=timeout_s))


def connect_slowly(group: ClientGroup, transport: SlowTransport) -> qsg.QueueManager:
    return qsg.connect("X:1416", transport=transport, world=group.world)  # type: ignore[arg-type]


async def test_a_connection_outlives_a_time_in_which_only_others_answer(group: ClientGroup) -> None:
    """A service address may lead to another member while the one that was asked for restarts."""
    group.network.names["service"] = ["X"]
    async with qsg.connect("service:1416", queue_manager="X", transport=group.network.transport("app"), world=group.world) as qmgr:
        group.network.names["service"] = ["Y"]
        group.network.reset("app", "X")
        await asyncio.sleep(0.05)
        late = asyncio.create_task(qmgr.put("Q", b"1"))
        await asyncio.sleep(0.05)
        assert not late.done()
        group.network.names["service"] = ["X"]
        await late

    assert group.payloads("Q") == [b"1"]
