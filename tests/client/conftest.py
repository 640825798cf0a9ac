"""In virtual time, but for what is marked `real_time`. `group`: services of a group over a network in memory."""

from collections.abc import AsyncIterator

import pytest

from support.client_group import ClientGroup
from support.virtual_time import pytest_asyncio_loop_factories as pytest_asyncio_loop_factories


@pytest.fixture
async def group() -> AsyncIterator[ClientGroup]:
    async with ClientGroup() as made:
        yield made
