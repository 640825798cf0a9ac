"""What a planned stop does with the channels that it has, without them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from qsg.manager.planned import hand_all_over
from support import virtual_time

LOOKS = 100


class Care:
    """A channel of which nobody else takes care until it is told to."""

    def __init__(self, channels: dict[str, Any]) -> None:
        self.channels = channels
        self.handed_over = False
        self.looked = 0
        self.ended = asyncio.Event()

    def hand_over(self) -> None:
        self.handed_over = True

    async def finished(self) -> None:
        self.looked += 1
        if self.looked > LOOKS:
            self.channels.clear()  # or it would for ever
        await self.ended.wait()


def test_a_drain_that_has_waited_long_enough_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop carries out a timer that is due within the resolution of its clock: whoever then waits for what is left of the time, less than
    that, is woken at once, again and again, for as long as the clock stands still."""
    monkeypatch.setattr(virtual_time, "BEHIND_S", 0.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        channels: dict[str, Any] = {}
        channels["C"] = care = Care(channels)
        began = loop.time()
        loop.call_at(began + 1.0 - loop._clock_resolution / 2, lambda: None)  # type: ignore[attr-defined]
        await hand_all_over(channels, 1.0)
        assert (care.handed_over, care.looked) == (True, 1)
        assert loop.time() - began == pytest.approx(1.0)

    virtual_time.run(main())


def test_a_drain_ends_when_the_last_channel_has_gone_also_one_that_came_late() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        channels: dict[str, Any] = {}
        channels["A"] = first = Care(channels)
        late = Care(channels)

        def gone(name: str, care: Care) -> None:
            del channels[name]
            care.ended.set()

        loop.call_later(1.0, channels.__setitem__, "B", late)
        loop.call_later(2.0, gone, "A", first)
        loop.call_later(3.0, gone, "B", late)
        await hand_all_over(channels, 60.0)
        assert 3.0 <= loop.time() < 4.0 and not channels

    virtual_time.run(main())
