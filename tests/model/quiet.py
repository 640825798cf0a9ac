"""What surrounds a search: the services that it drives say nothing, since a million states would fill the log; and time stands still."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import structlog

from qsg.manager import membership, slot_driver


class _Timeless:
    """asyncio for services that run without a loop: time stands still, and a pause is over at once."""

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    def get_running_loop(self) -> Any:
        return SimpleNamespace(time=lambda: 0.0)

    async def sleep(self, seconds: float) -> None:
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    timeless = _Timeless()
    try:
        with mock.patch.object(membership, "asyncio", timeless), mock.patch.object(slot_driver, "asyncio", timeless):
            yield
    finally:
        structlog.configure(**before)
