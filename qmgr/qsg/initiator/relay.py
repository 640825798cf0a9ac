"""Relays one channel session between the partner's stream and the socket to the queue manager, frames verbatim.

Owns heartbeats (sent when nothing else was for an interval, answered at once), the watch for a silent partner, and the check that what
comes in is a frame at all. Invariant: frames keep their order, and an end comes behind them. While the queue manager takes nothing
the partner is not read, and that time does not count as its silence. Does not look into batches.
"""

from __future__ import annotations

import asyncio

import structlog
from google.protobuf.message import DecodeError

from qsg.bell import Bell
from qsg.endings import ended, to_the_end
from qsg.failpoint import task_failpoint
from qsg.pb import channel_pb2 as pb
from qsg.pb import initiator_pb2
from qsg.rules.reasons import Reason
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Stream, TransportError
from qsg.transport.hearing import Hearing
from qsg.transport.mux import MuxSession, SessionOver

log = structlog.get_logger()

FRAME_MAX = 96 << 20
SMALL_FRAME_MAX = 64 << 10
BATCH_OVERHEAD = 4 << 20
"""What a batch may have beyond the bytes agreed on: its index, and a first message that is larger on its own."""
LINGER_S = 0.3
"""How long an orderly end waits for the partner to take it."""
HEARTBEAT_S = 0.5
HEARTBEAT_MIN_S = 0.05
_BOTH = {pb.FRAME_REFUSED, pb.FRAME_HEARTBEAT, pb.FRAME_BEAT_BACK, pb.FRAME_CLOSE}
FROM_SENDER = frozenset({pb.FRAME_BATCH, pb.FRAME_PART} | _BOTH)
FROM_RECEIVER = frozenset({pb.FRAME_CONFIRM, pb.FRAME_PROGRESS} | _BOTH)
_LARGE = frozenset({pb.FRAME_BATCH, pb.FRAME_PART})


class BadFrame(Exception):
    """What a partner sent is no frame that it may send now."""


def check(frame: bytes, allowed: frozenset[int], large_max: int = FRAME_MAX) -> int:
    """The type of a frame; batches and parts have at most `large_max` bytes. Raises `BadFrame`."""
    if not frame:
        raise BadFrame("empty frame")
    kind = frame[0]
    if kind not in allowed:
        raise BadFrame(f"frame of type {kind}")
    if len(frame) > (large_max if kind in _LARGE else SMALL_FRAME_MAX):
        raise BadFrame(f"frame of type {kind} with {len(frame)} bytes")
    return kind


async def refuse(stream: Stream, reason: Reason, detail: str) -> None:
    """Tells a partner why its stream ends, as far as it still listens."""
    try:
        await stream.send(encode(pb.FRAME_REFUSED, pb.Refused(reason=int(reason), detail=detail)))
        await linger(stream)
    except TransportError as e:
        log.debug("partner did not take a refusal", peer=stream.peer, error=str(e))


async def linger(stream: Stream) -> None:
    """Lets the partner read our last frame: waits for it to close, not long."""
    try:
        async with asyncio.timeout(LINGER_S):
            while True:
                await stream.receive()
    except (TimeoutError, TransportError):
        return


class Relay:
    """One session. `allowed`: frame types that the partner may send. `run` returns when the session is over at both ends."""

    def __init__(
        self, stream: Stream, session: MuxSession, allowed: frozenset[int], *, silence_s: float, heartbeat_s: float = HEARTBEAT_S
    ) -> None:
        self.stream = stream
        self.session = session
        self.silence_s = silence_s
        self.heartbeat_s = max(HEARTBEAT_MIN_S, heartbeat_s)
        self._allowed = allowed
        self._large_max = FRAME_MAX
        self._sent_at = 0.0
        self._owed = False
        self._wake = Bell()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        self._sent_at = loop.time()
        tasks = [loop.create_task(work, name=f"{self.stream.peer}") for work in (self._in(), self._out(), self._beat())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done() and not task.cancelled():
                    task.result()
        finally:
            await to_the_end(self._clear(tasks))

    async def _clear(self, tasks: list[asyncio.Task[None]]) -> None:
        await ended(*tasks)
        self.session.end(initiator_pb2.End(reason=int(Reason.PARTNER_CLOSED), detail="the initiator gave the session up"))
        await self.stream.close()

    def _end(self, reason: Reason, detail: str) -> None:
        self.session.end(initiator_pb2.End(reason=int(reason), detail=detail))

    async def _in(self) -> None:
        """Partner to queue manager."""
        hearing = Hearing(self.stream, self.silence_s)
        while True:
            hearing.silence_s = self.silence_s
            try:
                frame = await hearing.receive()
                kind = check(frame, self._allowed, self._large_max)
            except TimeoutError:
                self._end(Reason.PARTNER_SILENT, f"{self.stream.peer} said nothing for {self.silence_s:g} s")
                return
            except Closed as e:
                self._end(Reason.PARTNER_CLOSED, f"{self.stream.peer}: {e}")
                return
            except BadFrame as e:
                log.warning("bad bytes on a channel", peer=self.stream.peer, detail=str(e))
                self._end(Reason.PROTOCOL_ERROR, f"{self.stream.peer}: {e}")
                await refuse(self.stream, Reason.PROTOCOL_ERROR, str(e))
                return
            if kind == pb.FRAME_HEARTBEAT:
                self._owed = True
                self._wake.set()
            elif kind != pb.FRAME_BEAT_BACK:
                await task_failpoint("relay.before_queue_manager")
                try:
                    await self.session.send(frame)
                except SessionOver:
                    return

    async def _out(self) -> None:
        """Queue manager to partner."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                frame = await self.session.receive()
                if frame[0] == pb.FRAME_BOUND:
                    self._agreed(frame)
                await task_failpoint("relay.before_partner")
                await self.stream.send(frame)
                self._sent_at = loop.time()
        except SessionOver as e:
            if e.end.orderly:
                await linger(self.stream)
        except Closed as e:
            self._end(Reason.PARTNER_CLOSED, f"{self.stream.peer}: {e}")

    def _agreed(self, frame: bytes) -> None:
        """An inbound session is bound: from now on its heartbeat and its limits count."""
        try:
            parameters = pb.Bound.FromString(frame[1:]).parameters
        except DecodeError as e:
            raise AssertionError("our queue manager sends what can be read") from e
        heartbeat_s = parameters.heartbeat_ms / 1000
        if parameters.batch_bytes:
            self._large_max = min(FRAME_MAX, parameters.batch_bytes + BATCH_OVERHEAD)
        if heartbeat_s:
            self.heartbeat_s = max(HEARTBEAT_MIN_S, heartbeat_s)
            self.silence_s = max(1.5, 3 * heartbeat_s)
            self._wake.set()

    async def _beat(self) -> None:
        """Answers heartbeats, and sends one when nothing was sent for an interval."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                due = self._sent_at + self.heartbeat_s
                if not self._owed and loop.time() < due:
                    if await self._wake.wait(due):
                        self._wake.clear()
                    continue
                kind = pb.FRAME_BEAT_BACK if self._owed else pb.FRAME_HEARTBEAT
                self._owed = False
                self._sent_at = loop.time()
                await self.stream.send(encode(kind, pb.Beat()))
        except Closed as e:
            self._end(Reason.PARTNER_CLOSED, f"{self.stream.peer}: {e}")
