"""A channel from X (or Y) to R, for tests of its two ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.channel_pair import Rig, rig


@pytest.fixture
async def two() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made
