"""`watch`: the status table by long poll, from any member; nothing that happens is missed between two calls."""

from __future__ import annotations

import asyncio

import pytest

from qsg.rules.reasons import Refusal
from support.channel_group import CHANNEL, owner, texts, town
from support.simulated import simulated


@simulated
async def test_all_at_first_and_then_what_has_changed() -> None:
    async with town("X", "Y") as t:
        member = t.stations["X"]
        await t.put(texts(0, 3), member)
        await t.until_arrived(texts(0, 3))
        first = await member.command("watch")
        assert [line["channel"] for line in first["channels"]] == [CHANNEL]
        assert first["there"] == [[CHANNEL, ""]]
        assert first["member"] == "X" and {m["member"] for m in first["members"]} == {"X", "Y"}
        assert all(first["structures"].values())
        began = asyncio.get_running_loop().time()
        nothing = await member.command("watch", after=first["revision"] + 1_000, wait_s=2)
        assert asyncio.get_running_loop().time() - began >= 2
        assert nothing["channels"] == [] and nothing["there"] == first["there"]


@simulated
async def test_a_change_ends_the_wait() -> None:
    async with town("X", "Y") as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        await owner(t)
        seen = (await t.stations["Y"].command("watch"))["revision"]
        began = asyncio.get_running_loop().time()
        waiting = asyncio.create_task(t.stations["Y"].command("watch", after=seen, wait_s=60))
        await asyncio.sleep(1)
        await t.stations["X"].command("stop", channel=CHANNEL)
        states = []
        while "STOPPED" not in states:
            answer = await waiting
            states += [line["status"] for line in answer["channels"]]
            waiting = asyncio.create_task(t.stations["Y"].command("watch", after=answer["revision"], wait_s=60))
        waiting.cancel()
        assert asyncio.get_running_loop().time() - began < 10


@simulated
async def test_an_entry_that_is_gone_ends_the_wait_too() -> None:
    async with town("X", "Y") as t:
        await t.put(texts(0, 1), t.stations["X"])
        await t.until_arrived(texts(0, 1))
        await owner(t)
        answer = await t.stations["X"].command("stop", channel=CHANNEL, status="inactive")
        assert answer["status"] == "INACTIVE"
        seen = 0
        async with asyncio.timeout(10):
            while True:
                answer = await t.stations["Y"].command("watch", after=seen, wait_s=60)
                if not answer["there"]:
                    break
                seen = answer["revision"]


@simulated
async def test_a_revision_that_is_none_is_refused() -> None:
    async with town("X") as t:
        for wrong in (-1, "x", True):
            with pytest.raises(Refusal, match="revision"):
                await t.stations["X"].command("watch", after=wrong)
