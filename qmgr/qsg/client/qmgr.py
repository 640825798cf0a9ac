"""`connect`: what an application uses. One `QueueManager` may be used by many tasks at once.

Reconnects by itself, to any member of the group. What that means for a call under way:

- put with a producer name, and a unit's commit: settled by number, done exactly once;
- put without: done again elsewhere if it provably was not done, else `OutcomeUnknown`;
- get outside a unit: asked again (a message whose answer was lost on the way is gone: use a unit of work where that matters);
- browse and inquire: asked again; a unit of work before its commit: `BackedOut`.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from qsg.client import network
from qsg.client.errors import ConnectionBroken, NoMessageAvailable, OptionsError, OutcomeUnknown, ProtocolError, QsgError, error_for
from qsg.client.link import Link, LinkOptions
from qsg.client.message import Message, Options, from_record, pad_id, to_record
from qsg.client.producer import ProducerPuts
from qsg.client.puts import MESSAGE_OVERHEAD, Item, PlainPuts, Route, check_put, frames
from qsg.client.room import Room
from qsg.client.session import RETRY_ELSEWHERE, SessionLost
from qsg.client.unit import Commits, UnitOfWork
from qsg.client.waiting import Wait
from qsg.endings import to_the_end
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.world import World
from qsg.transport.contract import Transport

DEFAULT_ADDRESS = "localhost:1416"
WAITING_BYTES_MAX = 64 * 1024 * 1024
BROWSE_MESSAGES = 200


def connect(
    addresses: str | Sequence[str] = "",
    *,
    application: str = "",
    queue_manager: str = "",
    producer: str = "",
    connect_s: float = 10.0,
    reconnect_s: float = 60.0,
    ca: str | Path = "",
    certificate: str | Path = "",
    key: str | Path = "",
    server_name: str = "",
    transport: Transport | None = None,
    world: World | None = None,
) -> QueueManager:
    """A connection to a queue manager or to whichever member of a group answers: `async with qsg.connect("a:1416,b:1416") as qmgr`.

    `addresses`: host:port, separated by commas, or a sequence; default: the environment's QSG_CONNECT.
    `queue_manager`: accept only this queue manager or group. `producer`: a name that is unique among living applications; puts are then
    done exactly once, and in order. `connect_s`, `reconnect_s`: how long the first connect, and a call after a loss, waits for a member.
    `ca`, `certificate`, `key`: PEM files for TLS; default: the environment's QSG_CA, QSG_CERTIFICATE, QSG_KEY. `transport` replaces gRPC.
    `server_name`, default QSG_SERVER_NAME: the name that members' certificates must have, where it is not the one that is connected to.
    """
    text = addresses or os.environ.get("QSG_CONNECT", "") or DEFAULT_ADDRESS
    listed = text.split(",") if isinstance(text, str) else list(text)
    cleaned = tuple(address.strip() for address in listed if address.strip())
    for address in cleaned:
        host, colon, port = address.rpartition(":")
        if not (host and colon and port.isdigit()):
            raise OptionsError(f"address {address!r} is not host:port")
    resolve = None
    if transport is None:
        tls = [
            str(given) or os.environ.get(name, "") for given, name in ((ca, "QSG_CA"), (certificate, "QSG_CERTIFICATE"), (key, "QSG_KEY"))
        ]
        transport = network.transport(*tls, server_name=server_name or os.environ.get("QSG_SERVER_NAME", ""))
        # With TLS the name is needed to check the certificate, so gRPC itself resolves it.
        resolve = None if any(tls) else network.resolve
    options = LinkOptions(cleaned, application, queue_manager, producer, connect_s, reconnect_s, resolve=resolve)
    return QueueManager(options, transport, world)


class QueueManager:
    """Made by `connect`; use it with `async with`, or `open` and `close`."""

    def __init__(self, options: LinkOptions, transport: Transport, world: World | None = None) -> None:
        self._options = options
        self._transport = transport
        self._world = world or World(wall_ms=lambda: time.time_ns() // 1_000_000)
        self._link: Link | None = None
        self._puts: PlainPuts | None = None
        self._producer: ProducerPuts | None = None
        self._commits: Commits | None = None
        self._units = 0
        self._room: Room | None = None

    # ---- life

    async def open(self) -> QueueManager:
        """Raises HostNotAvailable (2538), QueueManagerNameError (2058), NotAuthorized (2035)."""
        if self._link is not None:
            raise OptionsError("already open")
        link = Link(self._transport, self._options, self._world)
        await link.open()
        self._link = link
        self._puts = PlainPuts(link)
        self._producer = ProducerPuts(link, self._options.producer, self._world) if self._options.producer else None
        self._room = Room(WAITING_BYTES_MAX, (self._producer or self._puts).submit)
        self._commits = Commits(link, self._options.producer or f"auto.{self._world.id(8).hex()}")
        return self

    async def close(self) -> None:
        """Ends the connection. Calls under way fail; open units of work are backed out. Who is cancelled in it has closed it too."""
        link, self._link = self._link, None
        if self._room is not None:
            self._room.close(ConnectionBroken("the connection was closed"))
        await to_the_end(self._close(link))

    async def _close(self, link: Link | None) -> None:
        if self._producer is not None:
            await self._producer.close()
        if self._puts is not None:
            await self._puts.close()
        if link is not None:
            await link.close()

    async def __aenter__(self) -> QueueManager:
        return await self.open()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    def _open_link(self) -> Link:
        if self._link is None:
            raise ConnectionBroken("not connected")
        return self._link

    @property
    def name(self) -> str:
        """Name of the queue manager or group that answered."""
        session = self._open_link().current
        return session.queue_manager if session else ""

    @property
    def member(self) -> str:
        """The member that this connection is with now; "" while there is none."""
        session = self._open_link().current
        return session.member if session else ""

    @property
    def reconnections(self) -> int:
        """How often a member was lost or left."""
        return self._open_link().losses

    # ---- put

    async def put(
        self,
        queue: str,
        payload: bytes | str,
        *,
        priority: int | None = None,
        expiry_ms: int = 0,
        message_id: bytes = b"",
        correlation_id: bytes = b"",
        reply_to: str | tuple[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        persistent: bool = True,
        format: str = "",  # noqa: A002
        queue_manager: str = "",
    ) -> bytes:
        """Puts one message; its id once it is durable. Puts of many tasks share commits.

        `priority` 0 to 9, None = the queue's default; `expiry_ms` 0 = never; ids up to 24 bytes, "" = made for you;
        `reply_to`: queue, or (queue, queue manager); `persistent` only travels with the message, which is durable either way.
        Raises OutcomeUnknown (only without a producer name): perhaps done. Any other QsgError: not done.
        """
        if priority is None and not (message_id or correlation_id or reply_to or properties or format) and persistent:
            message = to_record(payload)
        else:
            message = to_record(payload, Options(priority, message_id, correlation_id, reply_to, properties, persistent, format))
        return (await self._put(Route(queue, queue_manager, expiry_ms), (message,), len(message.payload) + MESSAGE_OVERHEAD))[0]

    async def put_many(
        self,
        queue: str,
        payloads: Sequence[bytes | str],
        *,
        priority: int | None = None,
        expiry_ms: int = 0,
        correlation_id: bytes = b"",
        reply_to: str | tuple[str, str] | None = None,
        properties: Mapping[str, str] | None = None,
        persistent: bool = True,
        queue_manager: str = "",
    ) -> list[bytes]:
        """Puts messages in order; their ids. Not one unit of work: on an error, `error.done` has the ids of those that were put before."""
        route = Route(queue, queue_manager, expiry_ms)
        options = Options(priority, b"", correlation_id, reply_to, properties, persistent)
        plain = priority is None and not (correlation_id or reply_to or properties) and persistent
        ids: list[bytes] = []
        try:
            for messages in frames(to_record(payload) if plain else to_record(payload, options) for payload in payloads):
                ids += await self._put(route, messages, sum(len(message.payload) + MESSAGE_OVERHEAD for message in messages))
        except QsgError as error:
            error.done = ids
            raise
        return ids

    async def _put(self, route: Route, messages: Sequence[records.Message], size: int) -> list[bytes]:
        self._open_link()
        check_put(route, messages)
        room = self._room
        assert room is not None
        answer: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        item = Item(route, messages, size, answer)
        try:
            room.enter(item)
            return await answer
        finally:
            room.leave(item)

    async def producer_state(self, queue: str, queue_manager: str = "") -> tuple[str, int, int]:
        """(structure, epoch, last number committed) of this connection's producer, for the structure where `queue` lies.

        After a restart of the application, the number says how many of its puts were done.
        """
        self._open_link()
        if self._producer is None:
            raise OptionsError("this connection has no producer name")
        return await self._producer.state(queue, queue_manager)

    # ---- get

    async def get(self, queue: str, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b"") -> Message:
        """Gets one message; `wait_ms` -1 = wait for ever. Raises NoMessageAvailable (2033).

        Outside a unit of work a message is gone once it was sent: when the connection breaks then, it is lost. Use `unit` to be safe.
        """
        return (await self.get_many(queue, 1, wait_ms=wait_ms, message_id=message_id, correlation_id=correlation_id))[0]

    async def get_many(
        self, queue: str, max_messages: int = 100, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b""
    ) -> list[Message]:
        """Gets 1 to `max_messages` messages: what is there, or the first that comes. Raises NoMessageAvailable (2033)."""
        wait = Wait(wait_ms)
        get = pb.Get(queue=queue, messages_max=max_messages, message_id=pad_id(message_id), correlation_id=pad_id(correlation_id))
        while True:
            try:
                response = await self._ask(pb.ClientRequest(get=get), again=False, wait=wait)
            except SessionLost:
                continue
            except NoMessageAvailable:
                if wait.last:
                    raise
                continue
            return [from_record(got) for got in response.messages]

    async def browse(
        self, queue: str, *, message_id: bytes = b"", correlation_id: bytes = b"", headers_only: bool = False
    ) -> AsyncGenerator[Message, None]:
        """Shows the messages that are there, in order, without taking them."""
        cursor = b""
        while True:
            browse = pb.Browse(
                queue=queue,
                messages_max=BROWSE_MESSAGES,
                cursor=cursor,
                message_id=pad_id(message_id),
                correlation_id=pad_id(correlation_id),
                headers_only=headers_only,
            )
            try:
                response = await self._ask(pb.ClientRequest(browse=browse), again=True)
            except QsgError as error:
                if error.reason == 2033:
                    return
                raise
            for got in response.messages:
                yield from_record(got)
            cursor = response.cursor
            if not response.messages or not cursor:
                return

    # ---- units of work

    def unit(self) -> UnitOfWork:
        """A unit of work: `async with qmgr.unit() as unit: await unit.put(...)` commits at the end, or backs out on an exception."""
        link = self._open_link()
        assert self._commits is not None
        self._units += 1
        return UnitOfWork(link, self._commits, self._units)

    # ---- objects and commands

    async def inquire(self, kind: str, name: str = "") -> Any:
        """`kind`: "queue", "queues", "channel", "channels", "status", "group"."""
        response = await self._ask(pb.ClientRequest(inquire=pb.Inquire(object=kind, name=name)), again=True)
        return _result(response)

    async def inquire_queue(self, queue: str) -> dict[str, Any]:
        """Definition and depth of a queue. Raises UnknownObjectName (2085)."""
        found = await self.inquire("queue", queue)
        if not isinstance(found, dict):
            raise ProtocolError(f"the answer to an inquiry is {found!r:.100}")
        return found

    async def command(self, name: str, /, **arguments: Any) -> Any:
        """Runs an administrative command (start, stop, move, reset, resolve, ping, define, delete, …) and returns its result.

        Raises OutcomeUnknown when the connection was lost before the answer came.
        """
        request = pb.ClientRequest(command=pb.Command(name=name, arguments=json.dumps(arguments)))
        try:
            response = await self._ask(request, again=False)
        except SessionLost as lost:
            raise OutcomeUnknown(str(lost)) from lost
        return _result(response)

    async def _ask(self, request: pb.ClientRequest, *, again: bool, wait: Wait | None = None) -> pb.ClientResponse:
        """The answer of some member. `again`: also after a loss that leaves open whether it was done; else that raises SessionLost.

        `wait`: of a get. Each member that is asked is told what is left of it.
        """
        link = self._open_link()
        while True:
            session = await link.session()
            if wait is not None:
                request.get.wait_ms = wait.slice_ms()
            try:
                response = await session.call(request)
            except SessionLost as lost:
                if again or not lost.sent:
                    continue
                raise
            if response.reason in RETRY_ELSEWHERE:
                session.retire(f"{session.address}: {response.detail}")
                continue
            if response.reason:
                raise error_for(response.reason, response.detail)
            return response


def _result(response: pb.ClientResponse) -> Any:
    try:
        return json.loads(response.result or "null")
    except (ValueError, RecursionError) as problem:
        raise ProtocolError(f"a result that is not JSON: {problem}") from problem
