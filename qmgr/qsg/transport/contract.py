"""The transport contract: ordered streams of byte frames. Implementations: `grpc_` (network), `unix`, `memory` (simulation)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

EVERYWHERE = ("", "0.0.0.0", "[::]")
"""Hosts of a listener that takes connections at all addresses of its machine: no name by which anybody reaches it."""

MAX_FRAME = 128 << 20
"""Bytes of the largest frame that a network carries."""


class TransportError(Exception):
    """The stream cannot be had or has ended."""


class Refused(TransportError):
    """Nobody listens at the address: the process there is gone (as opposed to not answering)."""


class Unreachable(TransportError):
    """No answer in time, or a name that does not resolve."""


class Closed(TransportError):
    """The stream has ended; `detail` says how far that is known."""


class Stream(Protocol):
    peer: str
    """Address of the other side."""
    identity: str
    """Name on the other side's certificate, "" without TLS."""

    async def send(self, frame: bytes) -> None:
        """Waits while the other side is slow (flow control). Raises `Closed`; on any other exception nothing was sent."""
        ...

    async def receive(self) -> bytes:
        """The next frame. Raises `Closed` at the end."""
        ...

    async def close(self) -> None:
        """Ends the stream; frames sent before may still arrive. Never raises."""
        ...


Handler = Callable[[Stream], Awaitable[None]]
"""Runs one accepted stream; the stream is closed when it returns."""


class Listener(Protocol):
    address: str
    """host:port as bound (port 0 was replaced)."""

    async def close(self) -> None: ...


class Transport(Protocol):
    async def connect(self, address: str, service: str, *, timeout_s: float = 1.0) -> Stream:
        """Opens a stream of `service` ("qsg.v1.Channel", "qsg.v1.Peer", "qsg.v1.Client"). Raises `Refused` or `Unreachable`."""
        ...

    async def listen(self, address: str, handlers: Mapping[str, Handler]) -> Listener:
        """Serves the services at host:port."""
        ...
