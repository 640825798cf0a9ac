"""What a client connection needs of its queue manager, and how much one connection may take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qsg.bell import Once
from qsg.manager.producers import ProducerNumber, ProducerState, Wanted
from qsg.pb import client_pb2 as pb

SERVICE = "qsg.v1.Client"
ID_BYTES = 24
MESSAGES_MAX = 10_000
"""In one put or get frame."""


class Got(Protocol):
    """A message that was got or browsed: the stored record, serialised, and how often it was backed out."""

    @property
    def raw(self) -> bytes: ...

    @property
    def backouts(self) -> int: ...


class Work(Protocol):
    """A unit of work. A refused or failed commit leaves it to `backout`."""

    @property
    def empty(self) -> bool:
        """It holds nothing: `backout` asks no store."""
        ...

    async def commit(self, producer: ProducerNumber | None) -> None: ...

    async def backout(self) -> None: ...


class Backend(Protocol):
    """What the queue manager does for a connection. Raises Refusal, Fenced, OutcomeUnknown."""

    def begin(self) -> Work: ...

    async def put(self, put: pb.Put, *, work: Work | None, affinity: str, producer: ProducerNumber | None) -> list[bytes]:
        """All of its messages or none; their ids."""
        ...

    async def get(self, get: pb.Get, *, work: Work | None, cancel: Once) -> Sequence[Got]:
        """At least one message, or Refusal NO_MSG_AVAILABLE after `wait_ms` or once `cancel` is set."""
        ...

    async def browse(self, browse: pb.Browse) -> tuple[Sequence[Got], bytes]: ...

    async def open_producer(self, opening: pb.OpenProducer, wanted: Wanted) -> ProducerState:
        """Nothing is done once it is not `wanted` any more."""
        ...

    async def inquire(self, kind: str, name: str) -> object: ...

    async def command(self, name: str, arguments: dict[str, object]) -> object: ...


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Of one connection. Above `requests` or `bytes` no more is read from it until something is answered."""

    requests: int = 512
    bytes: int = 64 * 1024 * 1024
    waiting_gets: int = 10_000
    """As many requests may stand behind them in their units of work, beyond `requests`."""
    units: int = 1_000
    connect_timeout_s: float = 5.0
    silence_s: float = 15.0
    """Generous: an application may be busy for seconds, and its death is noticed by the closed stream."""
