"""A group of processes with traffic that goes on beside everything that is done to it; one for each file of tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from support.group import ConfiguredGroup, Flow, connected, flowing, running
from support.hostile import CHANNEL, TARGET
from support.patient import HEARTBEAT_MS


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConfiguredGroup]:
    async with running(tmp_path_factory.mktemp("group"), members=("X", "Y"), patient=True) as made:
        for at, structure in (("X", "admin"), ("R", "private")):
            async with connected(made, at) as queue_manager:
                await queue_manager.command("define", kind="queue", definition={"name": TARGET, "structure": structure})
                for channel in ({"name": CHANNEL, "heartbeat_ms": HEARTBEAT_MS}, {"name": CHANNEL + ".P", "partner": "FRIEND"}):
                    await queue_manager.command("define", kind="channel", definition={"type": "receiver", **channel})
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flow(group: ConfiguredGroup) -> AsyncIterator[Flow]:
    """Traffic that goes on beside all of this; at the end nothing of it was lost, repeated or overtaken, and no process ended."""
    async with flowing(group) as made:
        yield made
    assert set(group.starts().values()) == {1}
    assert not group.logged(event="handler failed")
    assert not group.logged(event="inbound session failed")
    assert not group.logged(event="session failed")
