"""Reads of a near state that lags: as a follower of a cluster answers that has not applied the newest commits yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from qsg.store.contract import Compacted, Get, Op, TxnResult
from qsg.store.memory import MemoryStore


def lag(store: MemoryStore, behind: Callable[[], int]) -> list[int]:
    """From now on near reads show a state `behind()` revisions old (where history goes back so far). The revisions shown."""
    shown: list[int] = []
    txn = store.txn

    async def lagging(compares: Sequence[Any], ops: Sequence[Op], else_ops: Sequence[Op] = (), **more: Any) -> TxnResult:
        if compares or not ops or not all(isinstance(op, Get) and op.near for op in ops):
            return await txn(compares, ops, else_ops, **more)
        revision = store.server.state.revision - behind()
        gets = [replace(op, revision=revision, near=False) for op in ops if isinstance(op, Get)]
        try:
            result = await txn([], gets, **more)
        except Compacted:
            return await txn([], ops, **more)
        shown.append(revision)
        return TxnResult(True, revision, tuple(replace(result.got(i), revision=revision) for i in range(len(gets))))

    store.txn = lagging  # type: ignore[method-assign]
    return shown
