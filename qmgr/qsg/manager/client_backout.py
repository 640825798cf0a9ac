"""Backing out a unit of work of a client connection: goes on until what it claims is given back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from qsg.endings import ended
from qsg.manager.client_port import Work
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown
from qsg.store.contract import StoreError

if TYPE_CHECKING:
    from qsg.manager.clients import ClientService

log = structlog.get_logger()

BACKOUT_S = 1.0
"""How long a backout may take once the service closes: its incarnation ends then, and all claims with it."""
BACKOUT_AGAIN_S = 0.2


async def give_back(work: Work, service: ClientService, connection: str) -> None:
    """`back_out` for somebody who has gone."""
    try:
        await back_out(work, service, connection)
    except (Refusal, Fenced, OutcomeUnknown, CompareFailed) as problem:
        # Its claims carry our incarnation, and are void with it.
        log.warning("backout failed", connection=connection, problem=str(problem))


async def back_out(work: Work, service: ClientService, connection: str) -> None:
    """Goes on until the claims are given back: while this incarnation lives nobody else does that."""
    if work.empty:  # as behind every get that found nothing
        await work.backout()
        return
    backing = asyncio.ensure_future(_try_to_back_out(work, connection))
    try:
        while not backing.done():
            closing = service.closing
            await asyncio.wait([backing], timeout=BACKOUT_S)
            if closing and not backing.done():
                raise Refusal(Reason.Q_MGR_STOPPING, "the structure does not answer")
    finally:
        await ended(backing)
    backing.result()


async def _try_to_back_out(work: Work, connection: str) -> None:
    while True:
        try:
            return await work.backout()
        except StoreError as problem:
            log.warning("backout is tried again", connection=connection, problem=str(problem))
            await asyncio.sleep(BACKOUT_AGAIN_S)
