"""The channel initiator: joined to its queue manager by a socket, it runs the MCAs and the two listeners (patent: channel initiator X).

Owns no durable state. Invariant: without a joined queue manager there are no sessions: when the socket ends or is silent for 1.5 s every
session is closed at once, everything is forgotten, and it joins again from nothing (patent, scenario 4); meanwhile the listeners refuse.
Does not guarantee that a partner sees why a session ended; it sees that it ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from google.protobuf.message import DecodeError

from qsg.endings import ended, to_the_end
from qsg.initiator.mca import SERVICE, Agents, Resolve
from qsg.initiator.relay import FROM_SENDER, BadFrame, Relay, check, refuse
from qsg.pb import channel_pb2, initiator_pb2
from qsg.rules.reasons import Reason
from qsg.rules.world import World
from qsg.transport.contract import EVERYWHERE, Handler, Listener, Stream, Transport, TransportError
from qsg.transport.mux import INBOUND, LinkLost, Mux, MuxSession, SessionOver

log = structlog.get_logger()

JOIN_AGAIN_S = 0.1
FORGET_S = 0.5
FIRST_FRAME_S = 5.0
BIND_SILENCE_S = 15.0
"""Of an inbound session before it is bound: the partner waits for our answer meanwhile."""
_FIRST: dict[int, type[channel_pb2.Bind] | type[channel_pb2.Ping]] = {
    channel_pb2.FRAME_BIND: channel_pb2.Bind,
    channel_pb2.FRAME_QUERY: channel_pb2.Bind,
    channel_pb2.FRAME_PING: channel_pb2.Ping,
}


class Initiator:
    """`connect` opens the socket to the queue manager. A blank listener address means: no such listener.

    `resolve` answers all addresses behind a connection name, which are tried in turn (None: the transport resolves names).
    `start` opens the listeners, `run` serves for ever, `close` ends everything.
    """

    def __init__(
        self,
        world: World,
        transport: Transport,
        connect: Callable[[], Awaitable[Stream]],
        *,
        member: str,
        group_listener: str = "",
        local_listener: str = "",
        aliases: Mapping[str, str] | None = None,
        resolve: Resolve | None = None,
        pid: int = 0,
    ) -> None:
        self.joined = asyncio.Event()
        self.welcome = initiator_pb2.Welcome()
        self.listeners: dict[str, Listener] = {}
        """Portal ("group", "local") -> listener."""
        self._transport = transport
        self._connect = connect
        self._join = initiator_pb2.Join(member=member, process=world.id().hex(), pid=pid)
        self._addresses = {"group": group_listener, "local": local_listener}
        self._agents = Agents(transport, aliases or {}, resolve)
        self._mux: Mux | None = None
        self._next_id = INBOUND
        self._sessions: set[asyncio.Task[None]] = set()
        self._accepted: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Opens the listeners. Raises `TransportError` or `OSError` when an address is taken."""
        for portal, address in self._addresses.items():
            if address:
                self.listeners[portal] = await self._transport.listen(address, {SERVICE: self._handler(portal)})
        await self._warm_up()

    async def _warm_up(self) -> None:
        """The first stream of a process takes several times as long as the next: not when a channel is to be taken over."""
        for listener in list(self.listeners.values())[:1]:
            address = _from_here(listener.address)
            try:
                stream = await self._transport.connect(address, SERVICE)
            except TransportError as e:
                log.info("own listener does not answer", address=address, detail=str(e))
            else:
                await stream.close()

    async def run(self) -> None:
        """Joins the queue manager, again and again."""
        while True:
            try:
                stream = await self._connect()
            except TransportError as e:
                log.debug("queue manager is not there", detail=str(e))
            else:
                await self._serve(stream)
            await asyncio.sleep(JOIN_AGAIN_S)

    async def close(self) -> None:
        """Ends sessions and listeners (end the task of `run` first)."""
        await self._forget()
        for listener in self.listeners.values():
            await listener.close()
        if self._sessions:
            await asyncio.wait(self._sessions)
        await self._agents.close()

    async def _serve(self, stream: Stream) -> None:
        mux = Mux(stream, lambda kind, number, payload: self._control(mux, kind, number, payload))
        mux.put(initiator_pb2.LOCAL_JOIN, 0, self._join)
        try:
            await mux.run()
        except LinkLost as e:
            log.warning("queue manager lost, every session is closed", detail=str(e), was_joined=self.joined.is_set())
        finally:
            await to_the_end(self._part(stream))

    async def _part(self, stream: Stream) -> None:
        await self._forget()
        await stream.close()

    async def _forget(self) -> None:
        self.joined.clear()
        self._mux = None
        self._agents.forget()
        tasks = [*self._sessions, *self._accepted]
        for task in tasks:
            task.cancel()
        if tasks:
            # Each has ended its session by now; a partner that does not take the end must not keep us from joining again.
            await asyncio.wait(tasks, timeout=FORGET_S)

    def _control(self, mux: Mux, kind: int, number: int, payload: bytes) -> None:
        if kind == initiator_pb2.LOCAL_WELCOME:
            self.welcome = initiator_pb2.Welcome.FromString(payload)
            self._mux = mux
            self.joined.set()
            log.info("joined queue manager", member=self.welcome.member, initiator=self.welcome.initiator)
        elif kind == initiator_pb2.LOCAL_OPEN:
            order = initiator_pb2.Open.FromString(payload)
            self._own(self._outbound(mux, mux.session(number), order), f"MCA of {order.channel}")
        else:
            log.warning("unknown frame from the queue manager", type=kind)

    def _own(self, work: Awaitable[None], name: str) -> None:
        task = asyncio.ensure_future(work)
        self._sessions.add(task)
        task.add_done_callback(self._sessions.discard)

    async def _outbound(self, mux: Mux, session: MuxSession, order: initiator_pb2.Open) -> None:
        try:
            await self._agents.run(mux, session, order)
        except Exception as e:
            log.exception("session failed", channel=order.channel)
            session.end(initiator_pb2.End(reason=int(Reason.UNEXPECTED_ERROR), detail=repr(e)))

    # Inbound

    def _handler(self, portal: str) -> Handler:
        async def accept(stream: Stream) -> None:
            work = asyncio.ensure_future(self._inbound(portal, stream))
            self._accepted.add(work)
            work.add_done_callback(self._accepted.discard)
            try:
                await asyncio.wait([work])
            finally:
                await ended(work)

        return accept

    async def _inbound(self, portal: str, stream: Stream) -> None:
        if self._mux is None:
            await refuse(stream, Reason.Q_MGR_NOT_AVAILABLE, "the queue manager is not available here")
            return
        try:
            async with asyncio.timeout(FIRST_FRAME_S):
                first = await stream.receive()
            _FIRST[check(first, frozenset(_FIRST))].FromString(first[1:])
        except (BadFrame, DecodeError) as e:
            log.warning("bad bytes on a channel", peer=stream.peer, portal=portal, detail=str(e))
            await refuse(stream, Reason.PROTOCOL_ERROR, f"not a bind: {e}")
            return
        except (TimeoutError, TransportError) as e:
            log.info("a stream without a bind has ended", peer=stream.peer, portal=portal, detail=str(e))
            return
        await self._relay(portal, stream, first)

    async def _relay(self, portal: str, stream: Stream, first: bytes) -> None:
        mux = self._mux
        if mux is None:
            await refuse(stream, Reason.Q_MGR_NOT_AVAILABLE, "the queue manager is not available here")
            return
        self._next_id += 1
        session = mux.session(self._next_id)
        accept = initiator_pb2.Accept(portal=portal, address=stream.peer, identity=stream.identity)
        mux.put(initiator_pb2.LOCAL_ACCEPT, session.id, accept)
        try:
            await session.send(first)
            await Relay(stream, session, FROM_SENDER, silence_s=BIND_SILENCE_S).run()
        except SessionOver as e:
            log.info("an inbound session ended before it began", peer=stream.peer, detail=e.end.detail)
        finally:
            session.end(initiator_pb2.End(reason=int(Reason.PARTNER_CLOSED), detail="the stream has ended"))


def _from_here(address: str) -> str:
    """Where this process reaches its own listener, by a name that certificates have."""
    host, _, port = address.rpartition(":")
    return f"localhost:{port}" if host in EVERYWHERE else address
