"""The outbound message channel agent: finds the partner, binds, and relays (patent: MCA; session by name resolution or passing).

Owns one attempt: the addresses of an order in turn, each connected and asked; and streams that were connected ahead of a planned move.
Invariant: a bind goes to one address at a time, and (epoch, instance) in it makes at most one of several that were asked accept it,
whatever arrives late. A stream held ready has told the partner nothing: that it was closed meanwhile costs a new connection, no more.
Does not retry: the queue manager decides what follows an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from google.protobuf.message import DecodeError

from qsg.endings import to_the_end
from qsg.initiator.relay import FROM_RECEIVER, BadFrame, Relay, check, refuse
from qsg.pb import channel_pb2 as pb
from qsg.pb import initiator_pb2
from qsg.rules import ping
from qsg.rules.reasons import Reason, reason_of
from qsg.transport.codec import encode
from qsg.transport.contract import Closed, Refused, Stream, Transport, TransportError
from qsg.transport.mux import Mux, MuxSession

log = structlog.get_logger()

SERVICE = "qsg.v1.Channel"
BIND_S = 10.0
"""A bind may take so long while the partner shows signs of life."""
AVOID_S = 10.0
"""An address that took a connection and then failed is tried last for so long."""
READY_S = 3.0
"""How long a stream that was connected ahead is held; the partner ends one that says nothing for 5 s."""
_TRY_NEXT = frozenset(
    {
        Reason.Q_MGR_NOT_AVAILABLE,
        Reason.Q_MGR_QUIESCING,
        Reason.Q_MGR_STOPPING,
        Reason.DRAINING,
        Reason.NO_INITIATOR,
        Reason.STRUCTURE_NOT_AVAILABLE,
        Reason.STORAGE_NOT_AVAILABLE,
        Reason.PARTNER_SILENT,
        Reason.PARTNER_CLOSED,
        Reason.HOST_UNREACHABLE,
    }
)
_ANSWERS = FROM_RECEIVER | {pb.FRAME_BOUND, pb.FRAME_PONG}


class Failed(Exception):
    """This address, or the whole attempt, did not give a session."""

    def __init__(self, end: initiator_pb2.End) -> None:
        super().__init__(end.detail)
        self.end = end


def _failed(reason: Reason, detail: str) -> Failed:
    return Failed(initiator_pb2.End(reason=int(reason), detail=detail))


def first_frame(order: initiator_pb2.Open) -> bytes:
    if order.ping:
        return encode(pb.FRAME_PING, ping.ping_of(order))
    return encode(pb.FRAME_QUERY if order.query else pb.FRAME_BIND, order.bind)


Resolve = Callable[[str], Awaitable[list[str]]]


class Agents:
    """Runs outbound sessions over `transport`. `aliases`: connection name -> host:port. `resolve`: host:port -> all its addresses."""

    def __init__(self, transport: Transport, aliases: Mapping[str, str], resolve: Resolve | None = None) -> None:
        self._transport = transport
        self._aliases = aliases
        self._resolve = resolve
        self._closing: set[asyncio.Task[None]] = set()
        self._avoid: dict[str, float] = {}
        self._ready: dict[str, tuple[Stream, asyncio.TimerHandle]] = {}
        """By address: connected ahead, nothing sent yet."""

    async def run(self, mux: Mux, session: MuxSession, order: initiator_pb2.Open) -> None:
        """One instance, from connecting to its end."""
        stream: Stream | None = None
        work = asyncio.current_task()
        assert work is not None

        def given_up(end: initiator_pb2.End) -> None:
            if stream is None:
                work.cancel()

        session.on_over = given_up
        try:
            if order.prepare:
                address = await self._prepare(order)
                mux.put(initiator_pb2.LOCAL_OPENED, session.id, initiator_pb2.Opened(address=address))
                session.end(initiator_pb2.End(orderly=True))
                return
            stream, address, bound = await self._find(order)
        except Failed as e:
            session.end(e.end)
            return
        except asyncio.CancelledError:
            if session.over is None:
                raise
            return
        came_back = ping.size_of(order) if order.ping else 0
        mux.put(initiator_pb2.LOCAL_OPENED, session.id, initiator_pb2.Opened(address=address, bound=bound, ping_bytes=came_back))
        if order.ping or order.query:
            session.end(initiator_pb2.End(orderly=True))
            await _say_goodbye(stream)
            return
        silence_s = (order.silence_ms or 1500) / 1000
        heartbeat_s = (bound.parameters.heartbeat_ms or order.heartbeat_ms or 500) / 1000
        await Relay(stream, session, FROM_RECEIVER, silence_s=max(silence_s, 2 * heartbeat_s), heartbeat_s=heartbeat_s).run()

    def forget(self) -> None:
        """Streams that were connected ahead are of no use any more."""
        for address in list(self._ready):
            self._unready(address)

    async def close(self) -> None:
        """Waits until streams that were given up are closed."""
        self.forget()
        if self._closing:
            await asyncio.wait(self._closing)

    def _drop(self, stream: Stream) -> None:
        """Closes a stream that gave no session; the partner may be long in taking notice."""
        task = asyncio.ensure_future(stream.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def _in_order(self, order: initiator_pb2.Open) -> list[str]:
        """Addresses as configured, a name with several of them in turn, those that failed a moment ago last."""
        now = asyncio.get_running_loop().time()
        self._avoid = {a: until for a, until in self._avoid.items() if until > now}
        addresses: list[str] = []
        for name in order.addresses:
            address = self._aliases.get(name, name)
            addresses += [address] if self._resolve is None else await self._resolve(address)
        return sorted(dict.fromkeys(addresses), key=lambda a: a in self._avoid)

    async def _prepare(self, order: initiator_pb2.Open) -> str:
        """Connects to the first address that takes it, and holds the stream. Raises `Failed`."""
        failed = _failed(Reason.CHANNEL_CONFIG_ERROR, "no connection name")
        for address in await self._in_order(order):
            try:
                stream = await self._connect(address, order)
            except Failed as e:
                failed = e
                continue
            self._unready(address)
            self._ready[address] = stream, asyncio.get_running_loop().call_later(READY_S, self._unready, address)
            return address
        raise failed

    def _unready(self, address: str) -> None:
        held = self._ready.pop(address, None)
        if held is not None:
            held[1].cancel()
            self._drop(held[0])

    async def _bind_ahead(self, address: str, order: initiator_pb2.Open) -> tuple[Stream, pb.Bound] | None:
        """Asks on a stream that was connected ahead; None: there is none, or it is of no use. Raises `Failed` when the partner refuses."""
        held = self._ready.pop(address, None)
        if held is None:
            return None
        stream, timer = held
        timer.cancel()
        try:
            return stream, await self._ask(stream, order)
        except BaseException as e:
            self._drop(stream)
            if isinstance(e, Failed) and reason_of(e.end.reason) is Reason.PARTNER_CLOSED:
                return None
            raise

    async def _bind(self, address: str, order: initiator_pb2.Open) -> tuple[Stream, pb.Bound]:
        ahead = await self._bind_ahead(address, order)
        if ahead is not None:
            return ahead
        stream = await self._connect(address, order)
        try:
            return stream, await self._ask(stream, order)
        except BaseException:
            self._drop(stream)
            raise

    async def _find(self, order: initiator_pb2.Open) -> tuple[Stream, str, pb.Bound]:
        failures: list[Failed] = []
        for address in await self._in_order(order):
            try:
                stream, bound = await self._bind(address, order)
                return stream, address, bound
            except Failed as e:
                reason = reason_of(e.end.reason)
                if reason not in _TRY_NEXT:
                    raise
                if reason != Reason.HOST_UNREACHABLE:
                    self._avoid[address] = asyncio.get_running_loop().time() + AVOID_S
                failures.append(e)
        if not failures:
            raise _failed(Reason.CHANNEL_CONFIG_ERROR, "no connection name")
        if len(failures) == 1:
            raise failures[0]
        raise _failed(reason_of(failures[-1].end.reason), "; ".join(f.end.detail for f in failures))

    async def _connect(self, address: str, order: initiator_pb2.Open) -> Stream:
        timeout_s = (order.connect_timeout_ms or 1000) / 1000
        try:
            return await self._transport.connect(address, SERVICE, timeout_s=timeout_s)
        except Refused as e:
            raise _failed(Reason.HOST_UNREACHABLE, f"{address}: connection refused ({e})") from e
        except TransportError as e:
            raise _failed(Reason.HOST_UNREACHABLE, str(e)) from e

    async def _ask(self, stream: Stream, order: initiator_pb2.Open) -> pb.Bound:
        """Sends BIND, QUERY or PING and waits for the answer. Raises `Failed`."""
        silence_s = (order.silence_ms or 1500) / 1000
        try:
            async with asyncio.timeout(BIND_S):
                await stream.send(first_frame(order))
                while True:
                    try:
                        async with asyncio.timeout(silence_s):
                            frame = await stream.receive()
                    except TimeoutError:
                        raise _failed(Reason.PARTNER_SILENT, f"{stream.peer} does not answer the bind") from None
                    bound = _answer(frame, order, stream.peer)
                    if bound is not None:
                        return bound
        except TimeoutError:
            raise _failed(Reason.PARTNER_SILENT, f"{stream.peer} did not answer the bind within {BIND_S:g} s") from None
        except Closed as e:
            raise _failed(Reason.PARTNER_CLOSED, f"{stream.peer}: {e}") from e
        except (BadFrame, DecodeError) as e:
            log.warning("bad bytes in answer to a bind", peer=stream.peer, detail=str(e))
            await refuse(stream, Reason.PROTOCOL_ERROR, str(e))
            raise _failed(Reason.PROTOCOL_ERROR, f"{stream.peer}: {e}") from e


def _answer(frame: bytes, order: initiator_pb2.Open, peer: str) -> pb.Bound | None:
    """The partner's answer (to a ping an empty one); None for signs of life. Raises `Failed`, `BadFrame`, `DecodeError`."""
    kind = check(frame, _ANSWERS)
    if kind == pb.FRAME_BOUND and not order.ping:
        return pb.Bound.FromString(frame[1:])
    if kind == pb.FRAME_PONG and order.ping:
        if problem := ping.fault(order, pb.Ping.FromString(frame[1:])):
            raise BadFrame(f"a ping's answer: {problem}")
        return pb.Bound()
    if kind == pb.FRAME_REFUSED:
        no = pb.Refused.FromString(frame[1:])
        raise Failed(initiator_pb2.End(reason=no.reason, detail=no.detail, epoch_seen=no.epoch_seen, instance_seen=no.instance_seen))
    if kind == pb.FRAME_CLOSE:
        close = pb.Close.FromString(frame[1:])
        raise _failed(Reason.PARTNER_CLOSED, f"{peer} closed: {close.detail}")
    if kind in (pb.FRAME_HEARTBEAT, pb.FRAME_BEAT_BACK, pb.FRAME_PROGRESS):
        return None
    raise BadFrame(f"frame of type {kind} in answer to a {'ping' if order.ping else 'bind'}")


async def _say_goodbye(stream: Stream) -> None:
    try:
        await stream.send(encode(pb.FRAME_CLOSE, pb.Close()))
    except Closed as e:
        log.debug("partner had closed", peer=stream.peer, detail=str(e))
    finally:
        await to_the_end(stream.close())
