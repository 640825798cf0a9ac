"""A channel from X (or Y) to R, for tests of its two ends. In virtual time, but for what is marked `real_time`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from support.channel_pair import Rig, rig
from support.virtual_time import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories


@pytest.fixture
async def two() -> AsyncIterator[Rig]:
    async with rig() as made:
        yield made
