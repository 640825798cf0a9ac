"""Puts that wait are sent together: one frame per queue, in the order in which they came, without any added delay when idle.

`PlainPuts` are not numbered: a frame whose answer is lost was perhaps done, and its callers are told `OutcomeUnknown`; a frame that
provably was not done goes to another member. A frame is all or nothing, so when one message of many callers is refused the frame is cut
in halves, until each caller has an answer of his own. Numbered puts: `qsg.client.producer`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from qsg.client.errors import ConnectionBroken, MessageTooBig, OptionsError, OutcomeUnknown, QsgError, error_for
from qsg.client.link import Link
from qsg.client.session import RETRY_ELSEWHERE, SessionLost
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.reasons import Reason
from qsg.transport.contract import MAX_FRAME

log = logging.getLogger("qsg.client")

FRAME_MESSAGES = 1_000
FRAME_BYTES = 512 * 1024

OF_THE_QUEUE = frozenset(
    int(reason)
    for reason in (
        Reason.PUT_INHIBITED,
        Reason.UNKNOWN_OBJECT_NAME,
        Reason.UNKNOWN_OBJECT_Q_MGR,
        Reason.UNKNOWN_REMOTE_Q_MGR,
        Reason.UNKNOWN_ALIAS_BASE_Q,
        Reason.UNKNOWN_DEF_XMIT_Q,
        Reason.UNKNOWN_XMIT_Q,
        Reason.Q_DELETED,
        Reason.NOT_AUTHORIZED,
        Reason.STORAGE_NOT_AVAILABLE,
        Reason.STRUCTURE_NOT_AVAILABLE,
        Reason.STRUCTURE_RESTORED,
        Reason.CF_NOT_AVAILABLE,
        Reason.Q_MGR_NOT_AVAILABLE,
        Reason.HANDLE_NOT_AVAILABLE,
    )
)
"""Refusals that would meet every message of a frame: everybody in it is told at once."""


MESSAGE_OVERHEAD = 100
"""Bytes counted for a message beyond its payload."""
PUT_BYTES_MAX = MAX_FRAME - (1 << 16)
"""Of the messages of one put; the rest is for what the frame says beside them."""


def frames(messages: Iterable[records.Message]) -> Iterator[list[records.Message]]:
    """Cuts messages into pieces for one frame each."""
    piece: list[records.Message] = []
    size = 0
    for message in messages:
        length = len(message.payload) + MESSAGE_OVERHEAD
        if piece and (len(piece) == FRAME_MESSAGES or size + length > FRAME_BYTES):
            yield piece
            piece, size = [], 0
        piece.append(message)
        size += length
    if piece:
        yield piece


class Route(NamedTuple):
    """Messages of one route may share a frame."""

    queue: str
    queue_manager: str = ""
    expires_in_ms: int = 0

    @property
    def target(self) -> tuple[str, str]:
        """What goes to one target keeps its order, whatever its route."""
        return self.queue, self.queue_manager


@dataclass(slots=True, eq=False)
class Item:
    """The messages of one caller, put together or not at all."""

    route: Route
    messages: Sequence[records.Message]
    size: int
    answer: asyncio.Future[list[bytes]]
    alone: bool = False
    """It was refused in company: it is sent on its own, to see whose fault that was."""

    @property
    def wanted(self) -> bool:
        return not self.answer.done()

    def done(self, ids: list[bytes]) -> None:
        if not self.answer.done():
            self.answer.set_result(ids)

    def failed(self, error: QsgError) -> None:
        if not self.answer.done():
            # One error object per caller: each raise adds to the traceback of its own.
            self.answer.set_exception(type(error)(error.detail, error.reason))


def take(waiting: deque[Item]) -> list[Item]:
    """The next items, up to a frame: as many of one route as fit, at least one, without those whose callers have gone."""
    items: list[Item] = []
    messages = size = 0
    while waiting:
        item = waiting[0]
        if item.wanted:
            messages += len(item.messages)
            size += item.size
            full = messages > FRAME_MESSAGES or size > FRAME_BYTES
            if items and (full or item.alone or items[-1].alone or item.route != items[-1].route):
                break
            items.append(item)
        waiting.popleft()
    return items


def put_request(items: Sequence[Item], number: int = 0, structure: str = "") -> pb.ClientRequest:
    request = pb.ClientRequest()
    put = request.put
    _direct(put, items[0].route)
    put.producer_number, put.structure = number, structure
    for item in items:
        put.messages.extend(item.messages)
    return request


def _direct(put: pb.Put, route: Route) -> None:
    put.queue, put.queue_manager, put.expires_in_ms = route


def check_put(route: Route, messages: Iterable[records.Message]) -> None:
    """What can never be sent fails here, at its caller, and not in a frame among others. Raises OptionsError, MessageTooBig."""
    try:
        _direct(pb.Put(), route)
    except (TypeError, ValueError) as problem:
        raise OptionsError(f"queue {route[0]!r}, queue manager {route[1]!r}, expiry_ms {route[2]!r}: {problem}") from problem
    size = sum(message.ByteSize() for message in messages)
    if size > PUT_BYTES_MAX:
        raise MessageTooBig(f"{size} bytes in one put, at most {PUT_BYTES_MAX}", Reason.MSG_TOO_BIG_FOR_Q_MGR)


def failed_here(problem: Exception) -> pb.ClientResponse:
    """The refusal of a frame that failed in this process, and never left it."""
    log.error("a put failed in this process", exc_info=problem)
    return pb.ClientResponse(reason=int(Reason.UNEXPECTED_ERROR), detail=f"the put failed in this process: {problem!r}")


def answer_done(items: Sequence[Item], ids: Sequence[bytes]) -> None:
    start = 0
    for item in items:
        item.done(list(ids[start : start + len(item.messages)]))
        start += len(item.messages)


def answer_failed(items: Sequence[Item], error: QsgError) -> None:
    for item in items:
        item.failed(error)


class PlainPuts:
    """Puts without a producer number."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._lanes: dict[tuple[str, str], deque[Item]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, item: Item) -> None:
        target = item.route.target
        lane = self._lanes.get(target)
        if lane is not None:
            lane.append(item)
            return
        # One frame of a target at a time: the queue manager would commit a second one behind it, and one larger frame is cheaper.
        self._lanes[target] = deque((item,))
        task = asyncio.create_task(self._pump(target), name=f"qsg put {item.route.queue}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pump(self, target: tuple[str, str]) -> None:
        lane = self._lanes[target]
        items: list[Item] = []
        try:
            while items := take(lane):
                await self._put(items)
        finally:
            del self._lanes[target]
            # Only when the connection is closed, or by a bug, is anything left here.
            answer_failed(items, OutcomeUnknown("the connection was closed"))
            answer_failed(list(lane), ConnectionBroken("the connection was closed"))

    async def _put(self, items: list[Item]) -> None:
        try:
            response = await self._call(items)
        except SessionLost as lost:
            answer_failed(items, OutcomeUnknown(str(lost)))
            return
        except QsgError as error:
            answer_failed(items, error)
            return
        except Exception as problem:  # no memory, or a bug: whose fault it was is found out as with a refusal
            response = failed_here(problem)
        if not response.reason:
            answer_done(items, response.message_ids)
        elif len(items) == 1 or response.reason in OF_THE_QUEUE or response.reason == Reason.CALL_INTERRUPTED:
            answer_failed(items, error_for(response.reason, response.detail))
        else:
            half = len(items) // 2
            await self._put(items[:half])
            await self._put(items[half:])

    async def _call(self, items: list[Item]) -> pb.ClientResponse:
        """Raises SessionLost when the frame may have been done, QsgError when no member can be had."""
        request = put_request(items)
        while True:
            session = await self._link.session()
            try:
                response = await session.call(request)
            except SessionLost as lost:
                if lost.sent:
                    raise
                continue
            if response.reason in RETRY_ELSEWHERE:
                session.retire(f"{session.address}: {response.detail}")
                continue
            return response

    async def close(self) -> None:
        """Callers that still wait are told."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
