"""The way to members: the status table is followed by long poll, whole after every change of member, and a loss is said soon."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

import qsg
from qsg.rules.reasons import Reason
from qsg_operator import members as module
from qsg_operator.members import Members, NotConnected, Way
from qsg_operator.seen import Backlog

WAY = Way(("10.0.0.1:1416",), "ORDERS")


def line(channel: str, status: str = "RUNNING", **fields: Any) -> dict[str, Any]:
    return {"channel": channel, "type": "sender", "partner": "BANK", "status": status} | fields


class Table:
    """A status table, and members that answer for it."""

    def __init__(self) -> None:
        self.revision = 1
        self.lines: dict[str, tuple[int, dict[str, Any]]] = {}
        self.changed = asyncio.Event()
        self.member = "ORDERS.0"
        self.asked: list[int] = []
        self.down: qsg.QsgError | None = None
        self.blind: set[str] = set()
        """Members that do not reach the store."""

    def write(self, *lines: dict[str, Any], gone: str = "") -> None:
        self.revision += 1
        for one in lines:
            self.lines[one["channel"]] = self.revision, one
        self.lines.pop(gone, None)
        self.changed.set()

    def fail(self, error: qsg.QsgError | None) -> None:
        self.down = error
        self.changed.set()


class FakeQmgr:
    def __init__(self, table: Table) -> None:
        self.table = table

    @property
    def member(self) -> str:
        return self.table.member

    async def __aenter__(self) -> FakeQmgr:
        if self.table.down is not None:
            raise self.table.down
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def command(self, name: str, /, **arguments: Any) -> Any:
        if name != "watch":
            return {"did": name}
        table, after = self.table, arguments["after"]
        table.asked.append(after)
        if after >= table.revision and table.down is None:
            table.changed.clear()
            try:
                async with asyncio.timeout(0.2):
                    await table.changed.wait()
            except TimeoutError:
                pass
        if table.down is not None:
            raise table.down
        return {
            "revision": table.revision,
            "channels": [one for revision, one in table.lines.values() if revision > after],
            "there": [[name, ""] for name in table.lines],
            "structures": {"admin": table.member not in table.blind},
            "member": table.member,
            "members": [{"member": table.member, "silent_ms": table.revision, "linked": True}],
        }

    async def inquire(self, kind: str, name: str = "") -> Any:
        return {"queues": [{"name": "BANK", "usage": "transmission", "depth": 2}, {"name": "IN", "usage": "normal", "depth": 5}]}

    async def browse(self, queue: str, *, headers_only: bool) -> AsyncGenerator[Any, None]:
        assert headers_only
        yield SimpleNamespace(put_at=datetime.now(UTC) - timedelta(seconds=90))


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Table:
    made = Table()
    monkeypatch.setattr(qsg, "connect", lambda addresses, **_: FakeQmgr(made))
    monkeypatch.setattr(module, "RETRY_S", (0.01, 0.02))
    monkeypatch.setattr(module, "GRACE_S", 0.1)
    return made


async def until(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.005)


async def test_the_table_is_followed(table: Table) -> None:
    told = 0

    def changed() -> None:
        nonlocal told
        told += 1

    table.write(line("A"), line("B"))
    members = Members("shop/orders", changed)
    members.reach(WAY)
    await until(lambda: members.seen.told)
    assert members.seen.connected and {name for name, _ in members.seen.channels} == {"A", "B"}
    table.write(line("A", "RETRYING"))
    await until(lambda: members.seen.channels["A", ""]["status"] == "RETRYING")
    table.write(gone="B")
    await until(lambda: ("B", "") not in members.seen.channels)
    assert await members.command("ping") == {"did": "ping"}
    await until(lambda: members.seen.backlogs)
    assert members.seen.depths == {"BANK": 2, "IN": 5} and members.seen.backlogs == {"BANK": Backlog(2, 90)}
    before = told
    await asyncio.sleep(0.5)
    assert told == before, "nothing has changed"
    await members.close()


async def test_of_more_queues_than_one_round_looks_at_each_has_its_turn(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGES_MAX", 2)
    looked: list[list[str]] = []
    depths = dict.fromkeys("ABCDE", 1)

    class Many(FakeQmgr):
        async def inquire(self, kind: str, name: str = "") -> Any:
            looked.append([])
            return {"queues": [{"name": name, "usage": "transmission", "depth": depth} for name, depth in depths.items()]}

        async def browse(self, queue: str, *, headers_only: bool) -> AsyncGenerator[Any, None]:
            looked[-1].append(queue)
            yield SimpleNamespace(put_at=datetime.now(UTC) - timedelta(seconds=90))

    members = Members("shop/orders", lambda: None)
    qmgr: Any = Many(table)
    for _ in range(3):
        await members._count(qmgr)
    assert looked == [["A", "B"], ["C", "D"], ["E", "A"]]
    assert all(members.seen.backlogs[name].oldest_age_s == 90 for name in depths), "what was seen in an earlier round stays"
    depths["A"] = 0
    await members._count(qmgr)
    assert looked[-1] == ["B", "C"] and members.seen.backlogs["A"] == Backlog(0)
    depths["C"] = 3
    await members._count(qmgr)
    assert looked[-1] == ["D", "E"] and members.seen.backlogs["C"] == Backlog(3, 90)
    depths["C"] = 2
    await members._count(qmgr)
    assert looked[-1] == ["B", "C"] and members.seen.backlogs["C"] == Backlog(2, 90)
    depths["C"] = 1
    await members._count(qmgr)
    assert looked[-1] == ["D", "E"] and members.seen.backlogs["C"] == Backlog(1), "something has gone: perhaps the oldest"
    await members.close()


async def test_a_loss_is_said_and_what_follows_it_is_whole(table: Table) -> None:
    table.write(line("A"), line("B"))
    members = Members("shop/orders", lambda: None)
    members.reach(WAY)
    await until(lambda: members.seen.told)
    table.fail(qsg.QsgError("gone", Reason.CONNECTION_BROKEN))
    await until(lambda: not members.seen.connected)
    assert "gone" in members.seen.error
    with pytest.raises(NotConnected):
        await members.command("ping")
    table.write(gone="B")
    table.fail(None)
    await until(lambda: members.seen.connected)
    assert {name for name, _ in members.seen.channels} == {"A"}
    await members.close()


async def test_a_loss_that_another_member_makes_up_for_is_not_said(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else every channel would be Unknown for a moment whenever the member that was asked ends."""
    monkeypatch.setattr(module, "GRACE_S", 60.0)
    told: list[tuple[bool, bool]] = []
    table.write(line("A"))
    members = Members("shop/orders", lambda: told.append((members.seen.connected, members.seen.told)))
    members.reach(WAY)
    await until(lambda: members.seen.told)
    table.fail(qsg.QsgError("gone", Reason.CONNECTION_BROKEN))
    await until(lambda: members.seen.error)
    with pytest.raises(NotConnected, match="gone"):
        await members.command("ping")
    table.member = "ORDERS.1"
    table.write(line("A", "RETRYING"))
    table.fail(None)
    await until(lambda: members.seen.channels["A", ""]["status"] == "RETRYING")
    assert all(connected and known for connected, known in told) and not members.seen.error
    await members.close()


async def test_a_member_that_does_not_reach_the_store_is_left_for_another(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table that it knows stands still: nobody else's channels are to be told of by it."""
    monkeypatch.setattr(module, "GRACE_S", 0.5)
    told: list[bool] = []

    def connect(addresses: Any, **_: Any) -> FakeQmgr:
        table.member = "ORDERS.1" if told else "ORDERS.0"
        return FakeQmgr(table)

    monkeypatch.setattr(qsg, "connect", connect)
    members = Members("shop/orders", lambda: told.append(members.seen.connected))
    members.reach(Way(("10.0.0.1:1416", "10.0.0.2:1416"), "ORDERS"))
    await until(lambda: members.seen.told)
    table.blind.add("ORDERS.0")
    table.write(line("A"))
    await until(lambda: members.seen.structures == {"admin": False})
    await until(lambda: members.seen.structures == {"admin": True})
    assert members.seen.members[0]["member"] == "ORDERS.1" and all(told)
    await members.close()


async def test_the_only_member_is_asked_whatever_it_reaches(table: Table) -> None:
    table.blind.add("ORDERS.0")
    table.write(line("A"))
    members = Members("shop/orders", lambda: None)
    members.reach(WAY)
    await until(lambda: members.seen.told)
    before = table.asked.count(0)
    await asyncio.sleep(3 * module.GRACE_S)
    assert members.seen.connected and table.asked.count(0) == before == 1
    await members.close()


async def test_another_member_is_asked_for_all_of_it(table: Table) -> None:
    table.write(line("A"))
    members = Members("shop/orders", lambda: None)
    members.reach(WAY)
    await until(lambda: members.seen.told and len(table.asked) > 1)
    table.asked.clear()
    table.member = "ORDERS.1"
    table.write(line("A", "RETRYING"))
    await until(lambda: 0 in table.asked)
    await until(lambda: members.seen.channels["A", ""]["status"] == "RETRYING")
    await members.close()


async def test_without_a_pod_it_waits_and_begins_when_there_is_one(table: Table) -> None:
    members = Members("shop/orders", lambda: None)
    await asyncio.sleep(0.05)
    assert members.seen.error == "there is no pod yet" and not table.asked and not members.verdict
    members.reach(WAY)
    await until(lambda: members.seen.connected)
    assert members.verdict
    await members.close()


async def test_a_first_attempt_that_fails_is_a_verdict_and_is_told(table: Table) -> None:
    told = 0

    def changed() -> None:
        nonlocal told
        told += 1

    table.down = qsg.QsgError("there is no pod yet", Reason.HOST_NOT_AVAILABLE)
    members = Members("shop/orders", changed)
    members.reach(WAY)
    await until(lambda: members.verdict)
    assert told == 1 and not members.seen.connected
    await members.close()


async def test_an_answer_that_nobody_understands_is_a_loss(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nonsense(self: FakeQmgr, name: str, /, **_: Any) -> Any:
        return {"member": table.member, "revision": 1}

    monkeypatch.setattr(FakeQmgr, "command", nonsense)
    members = Members("shop/orders", lambda: None)
    members.reach(WAY)
    await until(lambda: "KeyError" in members.seen.error)
    assert not members.seen.connected
    await members.close()
