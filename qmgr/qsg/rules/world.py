"""Time and chance, passed in so that a simulation can own them. Intervals use the event loop's clock."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class World:
    wall_ms: Callable[[], int]
    """Milliseconds since 1970."""
    random: random.Random = field(default_factory=random.SystemRandom)

    def id(self, size: int = 8) -> bytes:
        return self.random.randbytes(size)
