"""The channel initiator as a process: joined to its queue manager by the Unix socket, with the group and the local listener."""

from __future__ import annotations

import asyncio
import os
import signal

import structlog

from qsg.initiator.resolving import resolve_host
from qsg.initiator.service import Initiator
from qsg.process.config import ConfigError, MemberConfig
from qsg.process.security import transport_of
from qsg.process.watched import watched
from qsg.process.world import real_world
from qsg.transport.contract import TransportError
from qsg.transport.unix import connect_unix

log = structlog.get_logger()

LINGER_LOOK_S = 0.05


async def run(config: MemberConfig) -> int:
    structlog.contextvars.bind_contextvars(at=config.member, process="initiator")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        transport = transport_of(config)
    except ConfigError as error:
        log.error("cannot start", error=str(error))
        return 1
    initiator = Initiator(
        real_world(),
        transport,
        lambda: connect_unix(str(config.socket)),
        member=config.member,
        group_listener=config.group_listener if config.group else "",
        local_listener=config.local_listener,
        aliases=config.aliases,
        # With TLS a certificate names the host, not its addresses: there the transport resolves the name.
        resolve=resolve_host if config.tls is None else None,
        pid=os.getpid(),
    )
    try:
        await initiator.start()
        with watched(config.initiator_monitor, lambda: "ending" if stop.is_set() else ""):
            failed = await _serve(initiator, stop, config.initiator_linger_s)
    except (TransportError, OSError) as error:
        log.error("cannot start", error=str(error))
        return 1
    finally:
        await initiator.close()
    if failed:
        log.error("initiator failed", error=repr(failed))
        return 1
    return 0


async def _serve(initiator: Initiator, stop: asyncio.Event, linger_s: float) -> BaseException | None:
    """Until told to end, and then on, for `linger_s` at most, while the queue manager is joined: it may be handing channels over."""
    loop = asyncio.get_running_loop()
    serving = loop.create_task(initiator.run())
    stopping = loop.create_task(stop.wait())
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    until = loop.time() + linger_s
    while not serving.done() and initiator.joined.is_set() and loop.time() < until:
        await asyncio.wait({serving}, timeout=LINGER_LOOK_S)
    failed = serving.exception() if serving.done() and not serving.cancelled() else None
    for task in (serving, stopping):
        task.cancel()
    await asyncio.gather(serving, stopping, return_exceptions=True)
    return failed
