"""Units of work: puts and gets that are done together or not at all, and what became of a commit whose answer was lost.

A unit lives on one connection to one member; when that is lost before the commit was sent, the unit is backed out (`BackedOut`, 2003).
A commit carries a number of a producer of its own (one per commit in flight), so that after a loss any member that reaches the structure
says whether it was done (the patent's Figure 5): the answer is committed or backed out. Only when the record itself is gone, or nobody
can be asked within `reconnect_s`, it is `OutcomeUnknown`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from qsg.client.errors import BackedOut, NoMessageAvailable, OptionsError, OutcomeUnknown, QsgError, error_for
from qsg.client.link import Link
from qsg.client.message import Message, Options, from_record, pad_id, to_record
from qsg.client.numbering import Outcome, Settlement, Window
from qsg.client.puts import Route, check_put, frames
from qsg.client.session import RETRY_ELSEWHERE, Session, SessionLost
from qsg.client.waiting import Wait
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.reasons import Reason

log = logging.getLogger("qsg.client")

LIFETIME_MS = 24 * 3600 * 1000
ASK_AGAIN_S = 0.05
NOT_AUTHORITATIVE = RETRY_ELSEWHERE | {
    int(Reason.CALL_INTERRUPTED),
    int(Reason.STRUCTURE_NOT_AVAILABLE),
    int(Reason.CF_NOT_AVAILABLE),
    int(Reason.UNKNOWN_OBJECT_NAME),
}
"""Answers to the question of a commit's outcome after which another member is asked."""


@dataclass(slots=True)
class CommitProducer:
    """A producer that numbers commits, one at a time. One window per structure."""

    name: str
    windows: dict[str, Window[None]] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)
    """Where it was last opened, by structure."""
    written_s: dict[str, float] = field(default_factory=dict)
    """When its record was last written, by structure: members forget it once its lifetime is over."""

    def wrote(self, structure: str) -> None:
        self.written_s[structure] = asyncio.get_running_loop().time()

    def is_open(self, session: Session, structure: str) -> bool:
        """Whether it is there still, as far as time tells."""
        if self.sessions.get(structure) is not session:
            return False
        return asyncio.get_running_loop().time() < self.written_s[structure] + LIFETIME_MS / 2000  # half of it


class Commits:
    """Numbers commits, and settles those whose answer was lost."""

    def __init__(self, link: Link, base_name: str) -> None:
        self._link = link
        self._base_name = base_name
        self._idle: list[CommitProducer] = []
        self._made = 0
        self._homes: dict[tuple[str, str], str] = {}

    async def commit(self, session: Session, unit: int, queue: tuple[str, str]) -> None:
        """Returns when committed; raises OutcomeUnknown, or another QsgError: backed out. `queue`: one that the unit touched."""
        producer = self._idle.pop() if self._idle else self._new()
        structure = await self._opened(session, producer, queue)
        window = producer.windows[structure]
        frame = window.send(1, None)
        end = pb.EndUnit(unit=unit, commit=True, producer_number=frame.first, structure=structure, producer=producer.name)
        error: QsgError | None = None
        try:
            response = await session.call(pb.ClientRequest(end_unit=end))
        except SessionLost as lost:
            outcome, why = Outcome.UNKNOWN if lost.sent else Outcome.REFUSED, str(lost)
            error = BackedOut(f"the connection was lost before the commit: {lost}")
        else:
            outcome, why = _outcome(response), response.detail
            if response.reason in RETRY_ELSEWHERE:
                session.retire(f"{session.address}: {response.detail}")
            if response.reason == Reason.OBJECT_CHANGED:
                self._homes.pop(queue, None)
            if outcome is Outcome.REFUSED:
                error = error_for(response.reason, response.detail)
        window.answer(frame, outcome)
        if outcome is Outcome.UNKNOWN:
            outcome = await self._ask(producer, structure, queue, why)
            error = BackedOut(f"the commit was interrupted ({why}) and had not been done")
        if outcome is Outcome.DONE:
            producer.wrote(structure)
            self._idle.append(producer)
            return
        window.settle()
        assert error is not None
        if error.reason not in (Reason.PRODUCER_FENCED, Reason.PRODUCER_GAP):
            self._idle.append(producer)
            raise error
        # Its record is not what we thought (its lifetime was over): this producer is not used again.
        raise BackedOut(f"the commit's number was refused: {error}")

    def _new(self) -> CommitProducer:
        self._made += 1
        return CommitProducer(f"{self._base_name}.u{self._made}")

    def _opening(self, producer: CommitProducer, queue: tuple[str, str], structure: str) -> pb.OpenProducer:
        opening = pb.OpenProducer(producer=producer.name, structure=structure, lifetime_ms=LIFETIME_MS, opener=self._link.opener)
        opening.queue, opening.queue_manager = queue
        return opening

    async def _opened(self, session: Session, producer: CommitProducer, queue: tuple[str, str]) -> str:
        """The structure, with the producer opened there on this session. A failure here means that nothing was committed."""
        structure = self._homes.get(queue, "")
        if producer.is_open(session, structure):
            return structure
        opening = self._opening(producer, queue, structure)
        try:
            response = await session.call(pb.ClientRequest(open_producer=opening))
        except SessionLost as lost:
            raise BackedOut(f"the connection was lost before the commit: {lost}") from lost
        if response.reason:
            # A producer whose opening failed may have been opened or not: it is dropped. The queue may lie elsewhere by now.
            self._homes.pop(queue, None)
            raise BackedOut(f"the commit was not sent: {error_for(response.reason, response.detail)}")
        structure = self._homes[queue] = response.structure
        window = producer.windows[structure] = Window()
        window.opened(response.producer_epoch, response.producer_last)
        producer.sessions[structure] = session
        producer.wrote(structure)
        return structure

    async def _ask(self, producer: CommitProducer, structure: str, queue: tuple[str, str], why: str) -> Outcome:
        """What became of the commit: opening the producer again ends every earlier attempt, and its last number tells."""
        window = producer.windows[structure]
        opening = self._opening(producer, queue, structure)
        problem = why
        try:
            async with asyncio.timeout(self._link.options.reconnect_s):
                while True:
                    session = await self._link.session()
                    try:
                        response = await session.call(pb.ClientRequest(open_producer=opening))
                    except SessionLost as lost:
                        window.opens_unanswered += 1
                        problem = str(lost)
                        continue
                    if not response.reason:
                        break
                    problem = f"{session.address}: {error_for(response.reason, response.detail)}"
                    if response.reason not in NOT_AUTHORITATIVE:
                        raise OutcomeUnknown(f"the commit was interrupted ({why}), and asking for its outcome was refused: {problem}")
                    window.opens_unanswered += 1
                    session.retire(problem)
                    await asyncio.sleep(ASK_AGAIN_S)
        except TimeoutError as timeout:
            raise OutcomeUnknown(f"the commit was interrupted ({why}), and no member could tell its outcome: {problem}") from timeout
        except QsgError as error:
            raise error if isinstance(error, OutcomeUnknown) else OutcomeUnknown(f"the commit was interrupted ({why}): {error}") from error
        if window.opened(response.producer_epoch, response.producer_last) is not Settlement.KNOWN:
            raise OutcomeUnknown(f"the commit was interrupted ({why}), and its producer's record is gone")
        producer.sessions[structure] = session
        producer.wrote(structure)
        (frame,) = window.settle()
        return frame.outcome


def _outcome(response: pb.ClientResponse) -> Outcome:
    if not response.reason:
        return Outcome.DONE
    return Outcome.UNKNOWN if response.reason == Reason.CALL_INTERRUPTED else Outcome.REFUSED


_TELLS_NOTHING = frozenset({int(Reason.CALL_INTERRUPTED), int(Reason.UNEXPECTED_ERROR)})


def _did_nothing(call: asyncio.Task[pb.ClientResponse]) -> bool:
    """Whether a call that has ended provably did nothing. Fetches its exception, so that the loop need not complain that nobody did."""
    if call.cancelled() or call.exception() is not None:
        return False
    reason = call.result().reason
    return bool(reason) and reason not in _TELLS_NOTHING


class UnitOfWork:
    """Made by `QueueManager.unit()`. As a context manager it commits, or backs out when the block raises.

    After `commit` or `backout` it is over. Every method may raise BackedOut: the connection was lost, nothing of the unit was done.
    """

    def __init__(self, link: Link, commits: Commits, number: int) -> None:
        self._link = link
        self._commits = commits
        self._number = number
        self._session: Session | None = None
        self._queue: tuple[str, str] | None = None
        """Of the first call that did something in it."""
        self._doubtful: dict[asyncio.Task[pb.ClientResponse], pb.ClientRequest] = {}
        """Calls that were not answered, or were given up, or not told what they did."""
        self._over = ""
        self._lost = ""

    async def __aenter__(self) -> UnitOfWork:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            await self.backout()
        elif self._lost:
            # The block caught the error; leaving it quietly would look like a commit.
            raise BackedOut(self._lost)
        elif not self._over:
            await self.commit()

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
        """Puts one message in this unit; its id. A refusal (SyncpointLimitReached: the unit gets too large) leaves the unit as it was."""
        options = Options(priority, message_id, correlation_id, reply_to, properties, persistent, format)
        return (await self._put(queue, [to_record(payload, options)], expiry_ms, queue_manager))[0]

    async def put_many(self, queue: str, payloads: Sequence[bytes | str], *, expiry_ms: int = 0, queue_manager: str = "") -> list[bytes]:
        """Puts messages in this unit; their ids. Raises SyncpointLimitReached when it gets too large: then back it out."""
        ids: list[bytes] = []
        for messages in frames(to_record(payload) for payload in payloads):
            ids += await self._put(queue, messages, expiry_ms, queue_manager)
        return ids

    async def _put(self, queue: str, messages: list[records.Message], expiry_ms: int, queue_manager: str) -> list[bytes]:
        check_put(Route(queue, queue_manager, expiry_ms), messages)
        put = pb.Put(queue=queue, queue_manager=queue_manager, messages=messages, unit=self._number, expires_in_ms=expiry_ms)
        return list((await self._call(pb.ClientRequest(put=put), (queue, queue_manager))).message_ids)

    async def get(self, queue: str, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b"") -> Message:
        """Gets one message in this unit: it is gone once the unit is committed. Raises NoMessageAvailable."""
        return (await self.get_many(queue, 1, wait_ms=wait_ms, message_id=message_id, correlation_id=correlation_id))[0]

    async def get_many(
        self, queue: str, max_messages: int = 100, *, wait_ms: int = 0, message_id: bytes = b"", correlation_id: bytes = b""
    ) -> list[Message]:
        """Gets 1 to `max_messages` messages in this unit. Raises NoMessageAvailable."""
        wait = Wait(wait_ms)
        get = pb.Get(
            queue=queue,
            messages_max=max_messages,
            message_id=pad_id(message_id),
            correlation_id=pad_id(correlation_id),
            unit=self._number,
        )
        while True:
            get.wait_ms = wait.slice_ms()
            try:
                response = await self._call(pb.ClientRequest(get=get), (queue, ""))
            except NoMessageAvailable:
                self._check()  # a wait that its end cut short is not told as 2033
                if wait.last:
                    raise
                continue
            return [from_record(got) for got in response.messages]

    async def _call(self, request: pb.ClientRequest, queue: tuple[str, str]) -> pb.ClientResponse:
        self._check()
        if self._session is None:
            session = await self._link.session()
            self._check()  # it may have ended meanwhile, and a sibling may have found a member
            if self._session is None:
                self._session = session
                session.units += 1
        # In a task of its own: when the caller gives it up, its answer still tells what it did.
        call = asyncio.create_task(self._session.call(request))
        self._doubtful[call] = request
        try:
            await asyncio.wait([call])
        except asyncio.CancelledError:
            self._session.give_up(request)
            call.add_done_callback(_did_nothing)
            raise
        try:
            response = call.result()
        except SessionLost as lost:
            # Whatever the call did was in the unit, and the member backs that out.
            raise self._fail(f"the connection was lost: {lost}") from lost
        if response.reason not in _TELLS_NOTHING:
            self._doubtful.pop(call, None)
        if response.reason in RETRY_ELSEWHERE:
            session = self._session
            session.retire(f"{session.address}: {response.detail}")
            session.tell(self._end_unit())  # the connection may live on for a while
            raise self._fail(f"{session.address}: {response.detail}")
        if response.reason:
            raise error_for(response.reason, response.detail)
        self._queue = self._queue or queue
        return response

    def _fail(self, why: str) -> BackedOut:
        self._lost = why
        if not self._over:
            self._end("backed out")
        return BackedOut(why)

    def _end(self, how: str) -> None:
        self._over = how
        if self._session is not None:
            self._session.end_unit()

    async def commit(self) -> None:
        """Does what its calls that returned did, and no more. Raises OutcomeUnknown, or any other QsgError: the unit was backed out.

        A call that was given up or interrupted, and did something perhaps, cannot be taken out of it: BackedOut.
        """
        self._check()
        self._over = "committed"
        if self._session is None:
            return  # nothing was done in it
        try:
            await self._give_up_gets(self._session)
            if self._doubtful:
                await asyncio.wait(self._doubtful)
            unclear = not all(map(_did_nothing, self._doubtful))
            if self._queue is not None:
                if unclear:
                    raise BackedOut("a call of the unit was given up or interrupted, and what it did is not known to the application")
                await self._commits.commit(self._session, self._number, self._queue)
            elif unclear:
                self._session.tell(self._end_unit())
        except BaseException:
            # It may not have been sent, and the member would hold the unit as long as the connection lives. After a commit this is void.
            self._session.tell(self._end_unit())
            raise
        finally:
            self._session.end_unit()

    async def _give_up_gets(self, session: Session) -> None:
        """Gets that wait in other tasks have not returned, and the member ends the unit behind them."""
        try:
            await asyncio.sleep(0)  # what was begun just now is sent first, and has its number then
        finally:
            for call, request in self._doubtful.items():
                if not call.done():
                    session.give_up(request)

    def _end_unit(self) -> pb.ClientRequest:
        return pb.ClientRequest(end_unit=pb.EndUnit(unit=self._number, commit=False))

    def _check(self) -> None:
        if self._lost:
            raise BackedOut(self._lost)
        if self._over:
            raise OptionsError(f"this unit of work is over: it was {self._over}")

    async def backout(self) -> None:
        """Undoes all of it. Never fails: a member that cannot be told backs out by itself, and of a unit with nothing in it none knows."""
        if self._over:
            return
        self._over = "backed out"
        try:
            if self._session is not None and (self._queue is not None or self._doubtful):
                await self._give_up_gets(self._session)
                await self._session.call(self._end_unit())
        except SessionLost as lost:
            log.debug("backed out by the loss of the connection: %s", lost)
        except asyncio.CancelledError:
            if self._session is not None:
                self._session.tell(self._end_unit())  # the first may not have been sent
            raise
        finally:
            self._end("backed out")
