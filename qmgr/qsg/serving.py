"""A gRPC server that stays: one that a request has ended is started again, at the same address.

grpc.aio takes a method's name apart in its serving loop, so that one request whose `:path` is not UTF-8 ends the loop, and with it the
server's port, while the process lives on (seen with grpcio 1.85). Invariant: until `stop` the address is served, but for
`CHECK_S` after such a request; calls that were under way then go on. Not guaranteed: that the caller of such a request is answered.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import grpc.aio
import structlog

from qsg.endings import ended

log = structlog.get_logger()

CHECK_S = 0.1
ENDED_MAX = 16
"""Servers that were ended and still have calls; of more than that the oldest lose them."""

Make = Callable[[], grpc.aio.Server]
Bind = Callable[[grpc.aio.Server, str], int]
"""Binds a server to an address; its port. Raises `RuntimeError`, or answers 0, when the address cannot be had."""


class KeptServer:
    def __init__(self, make: Make, bind: Bind) -> None:
        self.address = ""
        """As bound."""
        self._make, self._bind = make, bind
        self._server: grpc.aio.Server | None = None
        self._ended: deque[grpc.aio.Server] = deque()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self, address: str) -> None:
        """Raises `RuntimeError`."""
        server, port = await self._bound(address)
        self.address = address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"
        self._server = server
        await server.start()
        self._keeper = asyncio.get_running_loop().create_task(self._keep(server), name=f"server at {self.address}")

    async def stop(self, grace_s: float | None) -> None:
        """Ends every call, after `grace_s`."""
        if self._keeper is not None:
            await ended(self._keeper)
        for server in (*self._ended, *([self._server] if self._server is not None else [])):
            await _stop(server, grace_s)
        self._ended.clear()
        self._server = None

    async def _bound(self, address: str) -> tuple[grpc.aio.Server, int]:
        """A server that is not started. One that got no address is ended: gRPC does not do so when it is only dropped."""
        server = self._make()
        try:
            port = self._bind(server, address)
            if not port:
                raise RuntimeError("no port")
        except RuntimeError:
            await _stop(server, None)
            raise
        return server, port

    async def _keep(self, server: grpc.aio.Server) -> None:
        while True:
            try:
                await server.wait_for_termination(CHECK_S)
            except Exception as error:  # whatever ended its loop
                log.error("a request has ended the server, which is started again", address=self.address, error=repr(error))
                self._ended.append(server)
                server = await self._again()
                while len(self._ended) > ENDED_MAX:
                    await _stop(self._ended.popleft(), None)

    async def _again(self) -> grpc.aio.Server:
        while True:
            try:
                server, _ = await self._bound(self.address)
            except RuntimeError as error:
                log.error("the address cannot be had again", address=self.address, error=str(error))
                await asyncio.sleep(CHECK_S)
                continue
            self._server = server
            await server.start()
            return server


async def _stop(server: grpc.aio.Server, grace_s: float | None) -> None:
    try:
        await server.stop(grace_s)
    except Exception as error:  # what had ended it is told again
        log.debug("a server had ended", error=repr(error))
