"""Entries of inbound sessions in the shared status table: of the session that was bound last, and written again when the table is back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qsg.manager.inbound import InboundTable
from qsg.manager.receiving import ReceiverCounters
from qsg.manager.steps import Driver
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.reasons import Reason
from qsg.rules.unit import Cell
from qsg.store.contract import Unavailable
from support.channel_pair import STREAM, Rig


@asynccontextmanager
async def tables(two: Rig) -> AsyncIterator[tuple[InboundTable, InboundTable]]:
    """Those of X and of Y."""
    x = InboundTable(Driver("X", two.x.structures, two.xp.link), two.x.world)
    y = InboundTable(Driver("Y", two.y.structures, two.yp.link), two.y.world)
    try:
        yield x, y
    finally:
        await x.close()
        await y.close()


def begin(table: InboundTable, instance: int, stream: bytes = STREAM) -> None:
    table.inbound_started("C", "R", stream, "r", "group")
    tell(table, instance, stream=stream)


def tell(table: InboundTable, instance: int, messages: int = 0, stream: bytes = STREAM) -> None:
    table.inbound_progress("C", "R", stream, ReceiverCounters(epoch=1, instance=instance, messages=messages))


async def entry(two: Rig) -> pb.ChannelStatus | None:
    """As it is once what was told is written."""
    await asyncio.sleep(2.5)
    return status.parse((await two.x.structures["admin"].cell(keys.status_in("C", "R"))).value)


@pytest.mark.parametrize("stream", [STREAM, b"another"], ids=["of one stream", "of two"])
async def test_an_older_session_that_wakes_does_not_replace_the_newer(two: Rig, stream: bytes) -> None:
    """It was paused with counters to report while its partner bound elsewhere; and at its end it removed what it had put in place."""
    async with tables(two) as (x, y):
        begin(x, 1)
        await entry(two)
        begin(y, 2, stream)
        await entry(two)
        tell(x, 1, messages=5)
        found = await entry(two)
        assert found is not None and (found.owner, found.instance) == ("Y", 2)
        x.inbound_ended("C", "R", STREAM, Reason.NONE, "")
        found = await entry(two)
        assert found is not None and (found.owner, found.instance) == ("Y", 2)


async def test_a_session_whose_first_entry_comes_late_does_not_replace_the_newer(two: Rig) -> None:
    async with tables(two) as (x, y):
        begin(y, 2)
        await entry(two)
        begin(x, 1)
        found = await entry(two)
        assert found is not None and found.owner == "Y"
        begin(x, 3)
        found = await entry(two)
        assert found is not None and found.owner == "X"


async def test_an_entry_that_could_not_be_written_is_written_when_the_table_is_back(two: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(key: bytes) -> Cell:
        raise Unavailable("admin does not answer")

    async with tables(two) as (x, _):
        with monkeypatch.context() as patched:
            patched.setattr(two.x.structures["admin"], "cell", away)
            begin(x, 1)
            await asyncio.sleep(10)
        found = await entry(two)
        assert found is not None and found.owner == "X"
