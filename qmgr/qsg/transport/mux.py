"""Sessions on one stream: the socket between a queue manager and its channel initiator, the same at both ends.

Owns framing (one byte of type, eight bytes of session id, payload), beats both ways, the watch for silence, and credit per session.
Invariant: frames of a session keep their order, its end comes behind them, and no session holds up another: each may have `WINDOW`
bytes under way, then its sender waits (credit is given back in a `LOCAL_BEAT` that carries the session's id and the bytes taken so far).
Does not guarantee delivery: when the link is lost every session ends at once and what was under way is gone.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable

from google.protobuf.message import DecodeError, Message

from qsg.endings import ended
from qsg.pb import initiator_pb2 as pb
from qsg.rules.reasons import Reason
from qsg.transport.contract import Closed, Stream, TransportError
from qsg.transport.frames import FrameQueue
from qsg.transport.hearing import Hearing

BEAT_S = 0.3
SILENCE_S = 1.5
WINDOW = 4 << 20
_HEAD = struct.Struct(">BQ")
_COUNT = struct.Struct(">Q")
INBOUND = 1 << 63
"""Set in the ids of sessions that the initiator accepted."""


class LinkLost(TransportError):
    """The other process closed the socket, is silent, or sent nonsense. `silent`: it may still be alive. `bad`: it sent nonsense."""

    def __init__(self, detail: str, *, silent: bool = False, bad: bool = False) -> None:
        super().__init__(detail)
        self.silent = silent
        self.bad = bad


def last_word(reason: Reason, detail: str) -> bytes:
    """The frame that ends the link itself: session 0."""
    return _HEAD.pack(pb.LOCAL_END, 0) + pb.End(reason=int(reason), detail=detail).SerializeToString()


class SessionOver(Exception):
    """The session has ended; `end` says why."""

    def __init__(self, end: pb.End) -> None:
        super().__init__(f"{end.reason} {end.detail}")
        self.end = end


Control = Callable[[int, int, bytes], None]
"""Called with (type, session id, payload) of frames that are not about relaying."""


class MuxSession:
    """One session. What `receive` has not taken yet counts against the other side's credit."""

    def __init__(self, mux: Mux, number: int) -> None:
        self.id = number
        self.over: pb.End | None = None
        self.on_over: Callable[[pb.End], None] = lambda end: None
        """Called at once when the session ends."""
        self._mux = mux
        self._inbox = FrameQueue()
        self._sent = 0
        self._acknowledged = 0
        self._taken = 0
        self._reported = 0
        self._credit = asyncio.Event()

    async def send(self, frame: bytes) -> None:
        """Relays a channel frame; waits for credit. Raises `SessionOver`."""
        while self.over is None and self._sent - self._acknowledged > WINDOW:
            self._credit.clear()
            await self._credit.wait()
        if self.over is not None:
            raise SessionOver(self.over)
        self._sent += len(frame)
        self._mux.put(pb.LOCAL_RELAY, self.id, frame)

    async def receive(self) -> bytes:
        """The next channel frame. Raises `SessionOver` behind the last one."""
        try:
            frame = await self._inbox.get()
        except Closed:
            assert self.over is not None
            raise SessionOver(self.over) from None
        self._taken += len(frame)
        if self._taken - self._reported > WINDOW // 4 and self.over is None:
            self._reported = self._taken
            self._mux.put(pb.LOCAL_BEAT, self.id, _COUNT.pack(self._taken))
        return frame

    def send_last(self, frame: bytes) -> None:
        """Relays a frame without waiting for credit, before the session is ended here."""
        self._mux.put(pb.LOCAL_RELAY, self.id, frame)

    def end(self, end: pb.End) -> None:
        """Ends the session at both sides, behind what was sent. Of no effect when it is over."""
        if self.over is None:
            self._mux.put(pb.LOCAL_END, self.id, end.SerializeToString())
            self.ended(end)

    # Called by the link

    def ended(self, end: pb.End) -> None:
        if self.over is not None:
            return
        self.over = end
        self._inbox.end(end.detail)
        self._credit.set()
        self._mux.sessions.pop(self.id, None)
        self.on_over(end)

    def arrived(self, frame: bytes) -> None:
        if self._inbox.ended is None:
            self._inbox.put_nowait(frame)

    def credited(self, total: int) -> None:
        self._acknowledged = max(self._acknowledged, total)
        self._credit.set()


class Mux:
    """One end of the link. `run` serves it until it is lost."""

    def __init__(self, stream: Stream, control: Control) -> None:
        self.stream = stream
        self.sessions: dict[int, MuxSession] = {}
        self.on_lost: Callable[[LinkLost], None] = lambda error: None
        """Called once when the link is lost, before its sessions end."""
        self._control = control
        self._outbox = FrameQueue()
        self._idle = False
        """Everything is sent, and the task that sends waits for more."""
        self._send_now: Callable[[bytes], bool] | None = getattr(stream, "send_nowait", None)
        self._next_beat: asyncio.TimerHandle | None = None

    @property
    def closed(self) -> bool:
        return self._outbox.ended is not None

    def session(self, number: int) -> MuxSession:
        """A new session. Raises `LinkLost` when the other side has given its number twice."""
        if number in self.sessions:
            raise LinkLost(f"session {number} was begun twice", bad=True)
        session = self.sessions[number] = MuxSession(self, number)
        return session

    def put(self, kind: int, session: int = 0, payload: bytes | Message = b"") -> None:
        """Sends a frame, in order, without waiting (what sessions relay is bounded by their credit)."""
        if self._outbox.ended is None:
            frame = _HEAD.pack(kind, session) + (payload if isinstance(payload, bytes) else payload.SerializeToString())
            if not (self._idle and not self._outbox and self._send_now is not None and self._send_now(frame)):
                self._outbox.put_nowait(frame)

    async def run(self) -> None:
        """Relays until the link is lost; then every session has ended. Raises `LinkLost`. The stream is closed by the caller."""
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(work) for work in (self._read(), self._write())]
        self._beat()
        lost = LinkLost("given up here")
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except LinkLost as e:
            lost = e
            raise
        except TransportError as e:
            lost = LinkLost(str(e))
            raise lost from e
        finally:
            if self._next_beat is not None:
                self._next_beat.cancel()
            self.on_lost(lost)
            self.abandon()
            await ended(*tasks)

    def abandon(self) -> None:
        """Ends every session now; nothing more is sent."""
        self._outbox.end("the link is lost")
        self._outbox.drop()
        lost = pb.End(reason=int(Reason.NO_INITIATOR), detail="the link between queue manager and initiator is lost")
        for session in list(self.sessions.values()):
            session.ended(lost)

    async def _read(self) -> None:
        hearing = Hearing(self.stream, SILENCE_S)
        while True:
            before = self._received()
            try:
                frame = await hearing.receive()
            except TimeoutError:
                if self._received() != before:
                    continue  # a large frame is on its way
                raise LinkLost(f"silent for {SILENCE_S} s", silent=True) from None
            try:
                self._dispatch(frame)
            except (DecodeError, struct.error) as e:
                raise LinkLost(f"not a frame of this link: {e}", bad=True) from e

    def _received(self) -> int:
        """Bytes that came in, where the transport can tell before a frame is whole."""
        return int(getattr(self.stream, "received", 0))

    def _dispatch(self, frame: bytes) -> None:
        kind, number = _HEAD.unpack_from(frame)
        session = self.sessions.get(number)
        if kind == pb.LOCAL_RELAY:
            if session is not None:
                session.arrived(frame[_HEAD.size :])
        elif kind == pb.LOCAL_BEAT:
            if session is not None:
                session.credited(_COUNT.unpack_from(frame, _HEAD.size)[0])
        elif kind == pb.LOCAL_END:
            end = pb.End.FromString(frame[_HEAD.size :])
            if session is not None:
                session.ended(end)
            elif not number:
                raise LinkLost(f"the other side ended the link: {end.detail}")
        else:
            self._control(kind, number, frame[_HEAD.size :])

    async def _write(self) -> None:
        while True:
            self._idle = True
            frame = await self._outbox.get()
            self._idle = False
            await self.stream.send(frame)

    def _beat(self) -> None:
        self.put(pb.LOCAL_BEAT)
        self._next_beat = asyncio.get_running_loop().call_later(BEAT_S, self._beat)
