"""Calls of a unit of work that their caller gives up, or is not told the outcome of: a commit does not take what nobody saw."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any
from unittest import mock

import pytest

import qsg
from support.client_group import ClientGroup
from support.group import eventually

PATH_S = 0.05


async def given_up(group: ClientGroup, call: Coroutine[Any, Any, Any]) -> None:
    """The member has done it, and its answer is on the way."""
    group.network.delay = lambda source, target: PATH_S
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1.5 * PATH_S):
            await call


async def test_a_message_whose_get_was_given_up_is_not_gone_with_the_commit(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        unit = qmgr.unit()
        await unit.put("OUT", b"done")
        await given_up(group, unit.get("IN", wait_ms=60_000))
        with pytest.raises(qsg.BackedOut, match="given up"):
            await unit.commit()
        await eventually(lambda: group.payloads("IN") == [b"1"])
    assert group.payloads("OUT") == []


async def test_a_unit_whose_get_was_given_up_before_it_got_anything_is_committed(group: ClientGroup) -> None:
    """As who collects what comes within a second."""
    async with group.connect() as qmgr:
        await qmgr.put_many("IN", [b"1", b"2"])
        got = []
        async with qmgr.unit() as unit:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1):
                    while True:
                        got.append((await unit.get("IN", wait_ms=-1)).payload)
        assert got == [b"1", b"2"]
        assert not [unit for connection in group.services[qmgr.member].connections for unit in connection._units]
    await asyncio.sleep(0.1)
    assert group.payloads("IN") == []


async def test_a_unit_in_which_nothing_else_was_done_ends_quietly(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        async with qmgr.unit() as unit:
            await given_up(group, unit.get("IN", wait_ms=60_000))
        await eventually(lambda: group.payloads("IN") == [b"1"])


async def test_a_put_that_was_given_up_is_not_committed(group: ClientGroup) -> None:
    async with group.connect() as qmgr:
        unit = qmgr.unit()
        await unit.put("OUT", b"1")
        await given_up(group, unit.put("OUT", b"2"))
        with pytest.raises(qsg.BackedOut, match="given up"):
            await unit.commit()
    assert group.payloads("OUT") == []


@pytest.mark.parametrize("end", ["commit", "backout"])
@pytest.mark.parametrize("begun_s", [0, 0.1])
async def test_a_unit_does_not_end_behind_a_get_that_waits_in_another_task(group: ClientGroup, end: str, begun_s: float) -> None:
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        unit = qmgr.unit()
        await unit.put("OUT", b"done")
        await unit.get("IN")
        waiting = [asyncio.create_task(unit.get("IN", wait_ms=wait_ms)) for wait_ms in (60_000, -1)]
        await asyncio.sleep(begun_s)
        async with asyncio.timeout(1):
            await getattr(unit, end)()
            for get in waiting:
                with pytest.raises(qsg.OptionsError, match="is over"):
                    await get
        assert group.payloads("IN") == ([] if end == "commit" else [b"1"])
        assert not [unit for connection in group.services[qmgr.member].connections for unit in connection._units]
    assert group.payloads("OUT") == ([b"done"] if end == "commit" else [])


async def test_a_backout_is_not_sent_before_a_call_that_was_begun_just_now(group: ClientGroup) -> None:
    """The member would begin the unit anew, and hold it as long as the connection lives."""
    async with group.connect() as qmgr:
        await qmgr.put_many("IN", [b"1", b"2"])
        unit = qmgr.unit()
        await unit.get("IN")
        await asyncio.gather(unit.get("IN"), unit.backout())
        assert sorted(group.payloads("IN")) == [b"1", b"2"]


async def test_a_put_that_another_task_waits_for_is_in_the_commit(group: ClientGroup) -> None:
    group.network.delay = lambda source, target: PATH_S
    async with group.connect() as qmgr:
        unit = qmgr.unit()
        put = asyncio.create_task(unit.put("OUT", b"1"))
        await asyncio.sleep(0)
        await unit.commit()
        await put
    assert group.payloads("OUT") == [b"1"]


async def test_a_get_that_fails_behind_its_claim_is_not_committed(group: ClientGroup) -> None:
    """UNEXPECTED_ERROR does not tell what was done."""
    async with group.connect() as qmgr:
        await qmgr.put("IN", b"1")
        unit = qmgr.unit()
        await unit.put("OUT", b"done")
        with mock.patch("qsg.manager.client_connection._tell", side_effect=RuntimeError), pytest.raises(qsg.QsgError):
            await unit.get("IN")
        with pytest.raises(qsg.BackedOut):
            await unit.commit()
        await eventually(lambda: group.payloads("IN") == [b"1"])
    assert group.payloads("OUT") == []


async def test_a_call_that_is_given_up_may_end_with_its_connection(group: ClientGroup, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for its answer then, and nobody complains of that."""
    async with group.connect() as qmgr:
        unit = qmgr.unit()
        await unit.put("OUT", b"1")
        await given_up(group, unit.get("IN", wait_ms=60_000))
        group.network.reset("app", qmgr.member)
        await asyncio.sleep(1)
        with pytest.raises(qsg.BackedOut):
            await unit.commit()
        other = qmgr.unit()
        await given_up(group, other.get("IN", wait_ms=60_000))
    del unit, other
    assert caplog.records == []
