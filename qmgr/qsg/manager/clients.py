"""The server side of the client API "qsg.v1.Client": one connection of an application, as a service of its queue manager.

Owns connections, their requests in flight and their units of work. Invariants: plain puts of one connection and queue, requests of one
unit of work, and puts of one producer and structure run in the order in which they came; everything else may overtake. What is begun is
never cut in the middle: when a connection ends, waiting gets and `watch` are cancelled, the rest runs to its end (but a command waits no
longer for what comes of it), and an open unit of work is backed out once no request of its own is under way. A reason other than
CALL_INTERRUPTED means that nothing was changed.

Does not guarantee that an answer arrives: a message got outside a unit of work whose answer is lost on the way is gone (as in MQ); a
producer number says what became of a put or of a commit (the patent's Figure 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import structlog

from qsg.manager.client_connection import Connection
from qsg.manager.client_port import SERVICE, Backend, ClientLimits, Got, Work
from qsg.rules.world import World
from qsg.transport.contract import Stream

log = structlog.get_logger()

LEAVE_S = 0.5
"""How long a member that is to end serves on, so that its applications find another one first."""

__all__ = ["SERVICE", "Backend", "ClientLimits", "ClientService", "Got", "Work"]


class ClientService:
    """Serves connections of applications. `names`: the queue manager names that may be asked for (LOCAL NAME and GROUP NAME).

    `allowed`: names in certificates that may connect; () = any.
    """

    def __init__(
        self,
        *,
        member: str,
        group: str,
        backend: Backend,
        world: World,
        names: Collection[str] = (),
        limits: ClientLimits | None = None,
        allowed: Collection[str] = (),
    ) -> None:
        self.allowed = frozenset(allowed)
        self.member = member
        self.name = group or member
        self.names = frozenset(names) | {name for name in (member, group) if name}
        self.backend = backend
        self.world = world
        self.limits = limits or ClientLimits()
        self.leaving = 0.0
        """Loop time until which a member that is to end serves on; 0 = it is not to end."""
        self.draining = False
        self.closing = False
        self.connections: dict[Connection, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self._number = 0

    async def handler(self, stream: Stream) -> None:
        """Runs one connection; give it to `Transport.listen` under `SERVICE`."""
        task = asyncio.current_task()
        assert task is not None
        self._number += 1
        connection = Connection(self, stream, f"{self.member}/client/{self._number}")
        self.connections[connection] = None
        self._tasks.add(task)
        self._empty.clear()
        try:
            await connection.run()
        finally:
            self.connections.pop(connection, None)
            self._tasks.discard(task)
            if not self.connections:
                self._empty.set()

    def announce(self) -> None:
        """Tells applications that this member is to end, and takes no more of them. For `LEAVE_S` they are served as ever."""
        if not self.leaving:
            self.leaving = asyncio.get_running_loop().time() + LEAVE_S
            for connection in list(self.connections):
                connection.tell_leaving()

    async def drain(self, limit_s: float = 10.0) -> bool:
        """Refuses new work with Q_MGR_QUIESCING, ends waiting gets, lets units of work finish; returns when no connection is left.

        Applications are told first (`announce`), and those that know how leave by themselves. After `limit_s` it returns anyway, False:
        `close` backs out what is still open.
        """
        self.announce()
        try:
            async with asyncio.timeout_at(self.leaving):
                await self._empty.wait()
        except TimeoutError:
            log.info("applications have not left by themselves", connections=len(self.connections))
        self.draining = True
        for connection in list(self.connections):
            connection.quiesce()
        try:
            async with asyncio.timeout(limit_s):
                await self._empty.wait()
        except TimeoutError:
            log.info("applications still have units of work open", connections=len(self.connections))
            return False
        return True

    async def close(self) -> None:
        """Ends all connections at once; open units of work are backed out."""
        self.draining = self.closing = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
