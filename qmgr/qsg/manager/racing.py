"""Pauses of who loses compare-and-swaps to faster members and cannot leave what it wants to them."""

from __future__ import annotations

import asyncio

from qsg.rules.world import World

PAUSE_S = 0.005
DOUBLINGS = 5


async def pause(world: World, losses: int) -> None:
    """Behind every second loss: the first try after a pause learns what is there by now, the next one has the better chance."""
    if losses % 2 == 0:
        await asyncio.sleep(PAUSE_S * 2 ** min(losses // 2 - 1, DOUBLINGS) * (0.5 + world.random.random()))
