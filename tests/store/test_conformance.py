"""The conformance suite on every store there is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

for _part in ("txn", "reads", "watch", "faults", "restore"):
    pytest.register_assert_rewrite(f"store.conformance_{_part}")

from store.conformance import ConnectionConformance, RestartConformance, RestoreConformance, StoreConformance  # noqa: E402
from support.stores import CUTTABLE, RESTARTABLE, RESTORABLE, STORES, Harness  # noqa: E402


@pytest.fixture
async def harness(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
    async with STORES[request.param](tmp_path) as harness:
        yield harness


def on(*names: str) -> pytest.MarkDecorator:
    marked = [pytest.param(name, marks=[pytest.mark.etcd] if name == "etcd" else []) for name in names]
    return pytest.mark.parametrize("harness", marked, indirect=True)


@on(*STORES)
class TestStores(StoreConformance):
    pass


@on(*CUTTABLE)
class TestConnections(ConnectionConformance):
    pass


@on(*RESTARTABLE)
class TestRestart(RestartConformance):
    pass


@on(*RESTORABLE)
class TestRestore(RestoreConformance):
    @pytest.fixture
    async def harness(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Harness]:
        async with RESTORABLE[request.param](tmp_path) as harness:
            yield harness
