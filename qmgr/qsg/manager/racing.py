"""Pauses of who loses compare-and-swaps to faster members and cannot leave what it wants to them."""

from __future__ import annotations

import asyncio

from qsg.rules.world import World

TRIES = 16
"""In a row. The first learns what is there by now; of the others one soon comes between two writes of a winner that is about as fast."""
PAUSE_S = 0.005
DOUBLINGS = 5


async def pause(world: World, losses: int) -> None:
    """Behind every `TRIES` losses."""
    if losses % TRIES == 0:
        await asyncio.sleep(PAUSE_S * 2 ** min(losses // TRIES - 1, DOUBLINGS) * (0.5 + world.random.random()))
