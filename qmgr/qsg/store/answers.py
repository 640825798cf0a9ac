"""Answers that may come when nobody waits for them any more."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from qsg.store.contract import StoreError

T = TypeVar("T")


def settle(answer: asyncio.Future[T], result: T | StoreError) -> None:
    """Gives a result, or raises an error, to whoever still waits."""
    if answer.done():
        return
    if isinstance(result, StoreError):
        answer.set_exception(result)
    else:
        answer.set_result(result)
