"""Keeps a session to some member: connects, reconnects, to whichever member answers.

Invariant: at most one session is current; a caller gets the current one or waits for the next. All addresses are tried in turn, the next
one as soon as one fails or has not answered for `STAGGER_S`, and the first that answers is taken, so that one frozen member costs a
fraction of a second. A member that says that it is to end is left when the next session is there, not before. Does not know what the calls
mean; who calls decides what may be repeated.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from qsg.client.errors import (
    ConnectionBroken,
    HostNotAvailable,
    NotAuthorized,
    QsgError,
    QueueManagerNameError,
    ReconnectFailed,
)
from qsg.client.session import Session, connect_frame
from qsg.endings import to_the_end
from qsg.rules.world import World
from qsg.transport.contract import Transport, TransportError

log = logging.getLogger("qsg.client")

STAGGER_S = 0.25
BACKOFF_FIRST_S = 0.03
BACKOFF_MAX_S = 1.0
BACKOFF_SERVED_S = 0.1
"""While a member that is to end still serves us."""
LINGER_S = 30.0
"""How long calls and units of work may go on at a member that takes no new work."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    addresses: tuple[str, ...]
    application: str = ""
    queue_manager: str = ""
    producer: str = ""
    connect_s: float = 10.0
    """How long the first connect may take."""
    reconnect_s: float = 60.0
    """How long a call waits for a member after a loss."""
    attempt_s: float = 1.0
    """How long one address has to answer."""
    resolve: Callable[[str], Awaitable[list[str]]] | None = None
    """All addresses behind one; None: each is one."""


class Link:
    def __init__(self, transport: Transport, options: LinkOptions, world: World) -> None:
        self.options = options
        self.opener = world.id()
        """Tells our openings of producers from those of other applications."""
        self.losses = 0
        """Sessions that were lost so far."""
        self._transport = transport
        self._world = world
        self._current: Session | None = None
        self._changed = asyncio.Condition()
        self._failure: QsgError | None = None
        self._problem = ""
        self._keeper: asyncio.Task[None] | None = None
        self._closing: dict[asyncio.Task[None], Session] = {}
        self._closed = False

    @property
    def current(self) -> Session | None:
        return self._current if self._current is not None and not self._current.left.is_set() else None

    async def open(self) -> None:
        """Connects for the first time. Raises HostNotAvailable, or the refusal when every member refuses."""
        self._keeper = asyncio.create_task(self._keep(), name="qsg client link")
        try:
            await self.session(self.options.connect_s, HostNotAvailable)
        except BaseException:
            await self.close()
            raise

    async def session(self, timeout_s: float | None = None, error: type[QsgError] = ReconnectFailed) -> Session:
        """The current session, or the next one. Raises `error` after `timeout_s` (default `reconnect_s`), ConnectionBroken once closed."""
        if (current := self.current) is not None:
            return current
        limit_s = self.options.reconnect_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s), self._changed:
                while True:
                    if self._closed:
                        raise ConnectionBroken("the connection is closed")
                    if self._failure is not None:
                        raise self._failure
                    if (current := self.current) is not None:
                        return current
                    await self._changed.wait()
        except TimeoutError as timeout:
            raise error(f"no member answered within {limit_s:g} s ({self._problem})") from timeout

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            await to_the_end(self._close(self._keeper))

    async def _close(self, keeper: asyncio.Task[None]) -> None:
        keeper.cancel()
        for session in self._closing.values():
            session.end("the connection is closed")
        await asyncio.gather(keeper, *self._closing, return_exceptions=True)
        async with self._changed:
            self._changed.notify_all()

    async def _keep(self) -> None:
        before: Session | None = None
        try:
            while True:
                session = await self._connect()
                await self._publish(session)
                if before is not None:
                    self._leave(before)
                await _either(session.left, session.leaving)
                before = session
                if session.left.is_set():
                    self._leave(session)
                    before = None
        except QsgError as refusal:
            # Every member refuses, and would again: callers are told instead of waiting.
            await self._fail(refusal)
        except Exception as problem:
            log.exception("the client cannot connect any more")
            await self._fail(QsgError(f"cannot connect any more: {problem!r}"))
        finally:
            for left in (before, self._current):
                if left is not None:
                    await left.close()

    def _leave(self, session: Session) -> None:
        session.retire(f"{session.address} is to end")
        self.losses += 1
        log.debug("left %s: %s", session.address, session.why)
        self._dispose(session)

    async def _fail(self, error: QsgError) -> None:
        self._failure = error
        async with self._changed:
            self._changed.notify_all()

    def _dispose(self, session: Session) -> None:
        """Closing may wait for a frozen member, or for calls that end there; connecting to the next one must not wait for that."""
        task = asyncio.create_task(self._close_when_idle(session), name="qsg client close")
        self._closing[task] = session
        task.add_done_callback(lambda done: self._closing.pop(done, None))

    async def _close_when_idle(self, session: Session) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                await session.idle()
        except TimeoutError:
            log.debug("calls to %s are still out", session.address)
        finally:
            await session.close()

    async def _publish(self, session: Session) -> None:
        self._current = session
        async with self._changed:
            self._changed.notify_all()

    async def _connect(self) -> Session:
        """Tries all addresses until one answers: the first round at once, then with short, jittered pauses."""
        pause_s = BACKOFF_FIRST_S
        while True:
            problems: dict[str, Exception] = {}
            session = await self._round(self._order(await self._addresses(problems)), problems)
            if session is not None:
                return session
            self._problem = "; ".join(_told(address, problem) for address, problem in problems.items())
            final = [p for p in problems.values() if isinstance(p, QueueManagerNameError | NotAuthorized)]
            if self._current is None and final and len(final) == len(problems):
                raise final[0]
            await asyncio.sleep(pause_s * self._world.random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 2, BACKOFF_MAX_S if self.current is None else BACKOFF_SERVED_S)

    async def _addresses(self, problems: dict[str, Exception]) -> list[str]:
        resolve = self.options.resolve
        if resolve is None:
            return list(self.options.addresses)
        found: list[str] = []
        for address in self.options.addresses:
            try:
                async with asyncio.timeout(self.options.attempt_s):
                    found += await resolve(address)
            except (TransportError, TimeoutError) as problem:
                problems[address] = problem
        return list(dict.fromkeys(found))

    def _order(self, addresses: list[str]) -> list[str]:
        """Applications spread over the members; the one that was just lost comes last."""
        self._world.random.shuffle(addresses)
        if self._current is not None and self._current.address in addresses:
            addresses.remove(self._current.address)
            addresses.append(self._current.address)
        return addresses

    async def _round(self, addresses: Sequence[str], problems: dict[str, Exception]) -> Session | None:
        frame = connect_frame(self.options.application, self.options.queue_manager, self.options.producer)
        attempts: dict[asyncio.Task[Session], str] = {}
        waiting = list(addresses)
        found: Session | None = None
        try:
            while waiting or attempts:
                if waiting:
                    address = waiting.pop(0)
                    attempt = Session.open(self._transport, address, frame, self.options.attempt_s)
                    attempts[asyncio.create_task(attempt)] = address
                done, _ = await asyncio.wait(attempts, timeout=STAGGER_S if waiting else None, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    address = attempts.pop(task)
                    try:
                        found = task.result()
                        return found
                    except (TransportError, QsgError) as problem:
                        problems[address] = problem
            return None
        finally:
            try:
                await to_the_end(_discard(attempts))
            except asyncio.CancelledError:
                if found is not None:
                    await found.close()
                raise


async def _either(*events: asyncio.Event) -> None:
    """Returns once one of them is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()


async def _discard(attempts: Iterable[asyncio.Task[Session]]) -> None:
    for task in attempts:
        task.cancel()
    for leftover in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(leftover, Session):
            await leftover.close()


def _told(address: str, problem: Exception) -> str:
    text = str(problem)
    return text if text.startswith(address) else f"{address}: {text}"
