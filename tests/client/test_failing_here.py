"""Puts that cannot be sent: each fails at its own caller, and does nothing to those beside it.

On a real event loop: where such a put is repeated for ever, without a pause, virtual time stands still.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

import qsg
from qsg.client import puts
from qsg.client.puts import Item, put_request
from support.client_group import ClientGroup

pytestmark = pytest.mark.real_time

NAMED = pytest.mark.parametrize("producer", ["", "P"], ids=["plain", "numbered"])
UNFIT: list[dict[str, Any]] = [
    {"expiry_ms": -1},
    {"expiry_ms": 1 << 32},
    {"expiry_ms": 500.5},
    {"queue": 5},
    {"queue": "\ud800"},
    {"queue_manager": None},
]


async def ends(*calls: Any) -> list[Any]:
    tasks = [asyncio.ensure_future(call) for call in calls]
    done, _ = await asyncio.wait(tasks, timeout=5)
    assert [task in done for task in tasks] == [True] * len(tasks)
    return await asyncio.gather(*tasks, return_exceptions=True)


@NAMED
@pytest.mark.parametrize("unfit", UNFIT, ids=str)
async def test_an_unfit_argument_is_refused_at_once(group: ClientGroup, producer: str, unfit: dict[str, Any]) -> None:
    async with group.connect(producer=producer) as qmgr:
        bad = qmgr.put(**{"queue": "Q", "payload": b"bad"} | unfit)
        answers = await ends(bad, qmgr.put("Q", b"1"), qmgr.put("OTHER", b"2"))

    assert isinstance(answers[0], qsg.OptionsError)
    assert group.payloads("Q") + group.payloads("OTHER") == [b"1", b"2"]


async def test_an_unfit_queue_has_no_producer_state(group: ClientGroup) -> None:
    async with group.connect(producer="P") as qmgr:
        answers = await ends(qmgr.producer_state(5), qmgr.put("Q", b"1"))  # type: ignore[arg-type]

    assert isinstance(answers[0], qsg.OptionsError)
    assert group.payloads("Q") == [b"1"]


@NAMED
async def test_what_no_frame_can_carry_is_too_big(group: ClientGroup, producer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(puts, "PUT_BYTES_MAX", 1_000)
    async with group.connect(producer=producer) as qmgr, qmgr.unit() as unit:
        with pytest.raises(qsg.MessageTooBig):
            await qmgr.put("Q", b"x" * 1_001)
        with pytest.raises(qsg.MessageTooBig):
            await qmgr.put("Q", b"", properties={"p": "x" * 1_001})
        with pytest.raises(qsg.MessageTooBig):
            await unit.put("Q", b"x" * 1_001)
        await unit.put("Q", b"1")

    assert group.payloads("Q") == [b"1"]


def fails_with(payload: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes every frame that has it fail in this process."""

    def made(items: Sequence[Item], *arguments: Any) -> Any:
        if any(message.payload == payload for item in items for message in item.messages):
            raise MemoryError
        return put_request(items, *arguments)

    monkeypatch.setattr("qsg.client.producer.put_request", made)
    monkeypatch.setattr("qsg.client.puts.put_request", made)


@NAMED
async def test_a_frame_that_fails_here_fails_its_put_alone(group: ClientGroup, monkeypatch: pytest.MonkeyPatch, producer: str) -> None:
    fails_with(b"3", monkeypatch)
    async with group.connect(producer=producer) as qmgr:
        answers = await ends(*(qmgr.put("Q", b"%d" % i) for i in range(6)), qmgr.put("OTHER", b"7"))

    assert [type(answer) for answer in answers] == [bytes, bytes, bytes, qsg.QsgError, bytes, bytes, bytes]
    assert "MemoryError" in answers[3].detail
    assert group.payloads("Q") + group.payloads("OTHER") == [b"0", b"1", b"2", b"4", b"5", b"7"]


async def test_an_opening_that_fails_here_is_told(group: ClientGroup, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    async with group.connect(producer="P") as qmgr:
        with monkeypatch.context() as patch:
            patch.setattr("qsg.client.producer.ProducerPuts._open", fails)
            (answer,) = await ends(qmgr.put("Q", b"1"))
        await ends(qmgr.put("Q", b"2"))

    assert "MemoryError" in answer.detail
    assert group.payloads("Q") == [b"2"]
