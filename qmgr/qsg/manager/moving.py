"""Internal channels at work: sessions within the queue manager, between the sender of an internal transmission queue and its receiver.

Owns the sessions of internal channels that run on this member (design, queues of other structures). Both ends are the ordinary ones, so
everything holds that holds for a channel: the sender's lock and fence in the home structure, the record of the stream in the target
structure written in one unit with the messages, one owner in the status table, recovery by any member. A session counts as one of the
initiator that was joined when it was opened, and ends with it: internal channels fail and are recovered by the same rules (patent,
scenarios 3 and 4). Does not decide what goes where (`qsg.manager.placing`).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import structlog

from qsg.manager.catalog import Catalog
from qsg.manager.link import InboundSession, Session, SessionFailed
from qsg.manager.receiving import Receivers, ReceiverServices
from qsg.pb import channel_pb2, initiator_pb2
from qsg.rules import internal, ping
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason
from qsg.transport.codec import parse
from qsg.transport.contract import Closed
from qsg.transport.frames import FrameQueue
from qsg.transport.mux import SessionOver

log = structlog.get_logger()


class LoopEnd:
    """One end of a session inside the process; see `qsg.manager.link.Carrier`."""

    def __init__(self) -> None:
        self.over: initiator_pb2.End | None = None
        self.other = self
        self._inbox = FrameQueue()

    @classmethod
    def pair(cls) -> tuple[LoopEnd, LoopEnd]:
        near, far = cls(), cls()
        near.other, far.other = far, near
        return near, far

    async def send(self, frame: bytes) -> None:
        if self.over is not None:
            raise SessionOver(self.over)
        try:
            await self.other._inbox.put(frame)
        except Closed as closed:
            raise SessionOver(self.over or initiator_pb2.End(detail=str(closed))) from None

    async def receive(self) -> bytes:
        try:
            return await self._inbox.get()
        except Closed as closed:
            raise SessionOver(self.over or initiator_pb2.End(detail=str(closed))) from None

    def send_last(self, frame: bytes) -> None:
        if self.other.over is None:
            self.other._inbox.put_nowait(frame)

    def end(self, end: initiator_pb2.End) -> None:
        self._ended(end)
        self.other._ended(end)

    def _ended(self, end: initiator_pb2.End) -> None:
        if self.over is None:
            self.over = end
            self._inbox.end(end.detail)


class InternalChannels:
    """`InitiatorLink.internal`: opens the sessions of internal channels."""

    def __init__(self, catalog: Catalog, services: ReceiverServices) -> None:
        self._catalog = catalog
        self._member = services.member
        # Not shown as inbound channels: the sender's entry tells all of it.
        self._receivers = Receivers(replace(services, channel=self._receiver, observer=None))
        self._sessions: dict[asyncio.Task[None], LoopEnd] = {}

    def _receiver(self, name: str) -> Channel | None:
        queue = self._catalog.queue(name)
        return internal.receiving(queue) if queue is not None and queue.internal_target else None

    async def open(self, order: initiator_pb2.Open, initiator: int) -> Session:
        """Returns once the receiver has answered. Raises `SessionFailed`."""
        queue = self._catalog.queue(order.channel)
        if queue is None or not queue.internal_target:
            raise SessionFailed(Reason.UNKNOWN_CHANNEL_NAME, f"no internal channel {order.channel} here")
        only = internal.only_at(queue)
        if only not in ("", self._member):
            raise SessionFailed(Reason.CHANNEL_CONFIG_ERROR, f"{order.channel} leads to the private store of {only}")
        near, far = LoopEnd.pair()
        accept = initiator_pb2.Accept(portal="local" if only else "group", address=internal.ADDRESS)
        self._serve(InboundSession(far, initiator, accept), near)
        session = Session(near, initiator, internal.ADDRESS)
        try:
            session.bound = await self._ask(session, order)
        except BaseException:
            session.abort()
            raise
        return session

    @staticmethod
    async def _ask(session: Session, order: initiator_pb2.Open) -> channel_pb2.Bound:
        if order.ping:
            await session.send(channel_pb2.FRAME_PING, ping.ping_of(order))
        else:
            await session.send(channel_pb2.FRAME_QUERY if order.query else channel_pb2.FRAME_BIND, order.bind)
        while True:
            kind, payload = await session.receive()
            if kind == channel_pb2.FRAME_BOUND:
                return parse(channel_pb2.Bound, payload)
            if kind == channel_pb2.FRAME_PONG:
                if problem := ping.fault(order, parse(channel_pb2.Ping, payload)):
                    raise SessionFailed(Reason.PROTOCOL_ERROR, f"a ping's answer: {problem}")
                session.ping_bytes = ping.size_of(order)
                return channel_pb2.Bound()

    def _serve(self, inbound: InboundSession, near: LoopEnd) -> None:
        task = asyncio.get_running_loop().create_task(self._run(inbound), name="receiver of an internal channel")
        self._sessions[task] = near
        task.add_done_callback(lambda done: self._sessions.pop(done, None))

    async def _run(self, inbound: InboundSession) -> None:
        try:
            await self._receivers.accept(inbound)
        except Exception:
            log.exception("internal session failed")
            await inbound.refuse(channel_pb2.Refused(reason=int(Reason.UNEXPECTED_ERROR), detail="internal error"))
        finally:
            inbound.abort()

    def lose(self) -> None:
        """The initiator is gone, and with it every session."""
        for task, near in list(self._sessions.items()):
            near.end(initiator_pb2.End(reason=int(Reason.NO_INITIATOR), detail="the channel initiator is gone"))
            task.cancel()

    async def close(self) -> None:
        tasks = list(self._sessions)
        self.lose()
        await asyncio.gather(*tasks, return_exceptions=True)
