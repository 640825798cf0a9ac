"""The real world: the machine's clock and its randomness."""

from __future__ import annotations

import time

from qsg.rules.world import World


def real_world() -> World:
    return World(lambda: time.time_ns() // 1_000_000)
