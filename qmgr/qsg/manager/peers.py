"""Links between the members of a group: beats, requests, and what verdicts are made from.

Owns one link to every other registered member, opened by us; over it the other sends its beats and answers requests. What we send over
the links that others opened mirrors that. A link that breaks is opened again at once: refused, the process there is gone, and
`qsg.rules.verdict` knows within milliseconds. Invariant: a member is accused only for an incarnation that told us its name over the link.
Does not guarantee delivery: a request is answered, refused, or `PeerUnreachable`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field

import structlog

from qsg.bell import Bell
from qsg.endings import ended, to_the_end
from qsg.manager.members import Members
from qsg.pb import peer_pb2 as pb
from qsg.rules import verdict
from qsg.rules.balance import Load
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.world import World
from qsg.transport.codec import ProtocolError, decode, encode, parse
from qsg.transport.contract import Refused, Stream, Transport, TransportError
from qsg.transport.hearing import Hearing

log = structlog.get_logger()

SERVICE = "qsg.v1.Peer"
BEAT_S = 0.25
LOOK_S = 0.1
"""How often silences are judged, once somebody has been silent for nearly long enough."""
SILENT_S = 4.0
"""A link that says nothing for so long is made anew: its beats may have ended, or be stuck on their way. Verdicts are sooner."""
CONNECT_S = 0.5
PAUSE_S = 0.1
REQUEST_S = 2.0
LEAVING_S = 1.0

Answerer = Callable[[str, pb.Request], Awaitable[str]]
"""(asking member, request) -> detail of the answer; raises `Refusal`."""


class PeerUnreachable(Exception):
    """The request may or may not have been acted on."""


@dataclass(eq=False)
class _Link:
    """Our link to one incarnation of a member."""

    member: str
    task: asyncio.Task[None] | None = None
    stream: Stream | None = None
    reached: int = 0
    heard_at: float = 0.0
    broke_at: float = 0.0
    refused: bool = False
    beat: pb.PeerBeat = field(default_factory=pb.PeerBeat)
    beat_at: float = 0.0
    asked: int = 0
    """Starts that we asked for and that are not yet in the load of its last beat."""
    starting: set[int] = field(default_factory=set)
    waiting: dict[int, asyncio.Future[pb.Reply]] = field(default_factory=dict)


class PeerLinks:
    """`own_load` answers this member's load now. `requests` maps a kind of request ("start", "cut_off") to who answers it.

    `allowed`: names in certificates that a member may have; () = any. Whoever opens a link to us with another is sent away.
    """

    def __init__(
        self,
        members: Members,
        incarnation: int,
        transport: Transport,
        world: World,
        *,
        group: str,
        own_load: Callable[[], Load],
        allowed: Collection[str] = (),
    ) -> None:
        self._allowed = frozenset(allowed)
        self.members, self.incarnation, self.group = members, incarnation, group
        self.requests: dict[str, Answerer] = {}
        self.own_load = own_load
        self._transport, self._world = transport, world
        self._links: dict[str, _Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepted: set[asyncio.Task[None]] = set()
        self._judged: dict[str, int] = {}
        self._next_id = 0
        self._look_due, self._closely = 0.0, True
        self._next_look: asyncio.TimerHandle | None = None
        self._due: dict[Bell, None] = {}
        self._closed = False

    async def start(self) -> None:
        self.members.on_change.append(self._follow)
        self._look_after(LOOK_S)
        self._follow()

    async def close(self) -> None:
        self._closed = True
        if self._next_look is not None:
            self._next_look.cancel()
        if self._follow in self.members.on_change:
            self.members.on_change.remove(self._follow)
        tasks = [*self._tasks, *self._accepted, *(link.task for link in self._links.values() if link.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._links.clear()

    # What the others know and can

    def loads(self) -> list[Load]:
        """Of this member and of those that we hear."""
        return [self.own_load(), *(self._load(link) for link in self._links.values() if self._hears(link))]

    def _hears(self, link: _Link) -> bool:
        now = asyncio.get_running_loop().time()
        return link.stream is not None and link.beat_at > 0 and 1000 * (now - link.heard_at) < verdict.SILENCE_MS

    def remains(self, member: str = "") -> bool:
        """Is `member` (or any other) a member that is not known to end, heard now or not?"""
        return any(member in ("", link.member) and not link.beat.draining for link in self._links.values())

    def _load(self, link: _Link) -> Load:
        beat = link.beat
        return Load(
            link.member, beat.channels + link.asked, max(1, beat.channels_max), beat.initiator, beat.draining, frozenset(beat.structures)
        )

    def status(self) -> list[dict[str, object]]:
        """One line a member, for `group status`."""
        now = asyncio.get_running_loop().time()
        return [
            {
                "member": link.member,
                "incarnation": link.reached,
                "linked": link.stream is not None,
                "silent_ms": round(1000 * (now - link.heard_at)) if link.reached else None,
                "channels": link.beat.channels,
                "initiator": link.beat.initiator,
                "draining": link.beat.draining,
                "structures": sorted(link.beat.structures),
            }
            for link in sorted(self._links.values(), key=lambda link: link.member)
        ]

    # Requests

    async def request(self, member: str, request: pb.Request, timeout_s: float = REQUEST_S) -> str:
        """The answer's detail. Raises `Refusal` (theirs) or `PeerUnreachable`."""
        link = self._links.get(member)
        if link is None or link.stream is None:
            raise PeerUnreachable(f"no link to {member}")
        self._next_id += 1
        request.id = self._next_id
        future: asyncio.Future[pb.Reply] = asyncio.get_running_loop().create_future()
        link.waiting[request.id] = future
        if request.HasField("start"):
            link.asked += 1
            link.starting.add(request.id)
        try:
            async with asyncio.timeout(timeout_s):
                await link.stream.send(encode(pb.PEER_REQUEST, request))
                reply = await future
        except (TransportError, TimeoutError) as error:
            raise PeerUnreachable(f"{member}: {error!r}") from error
        finally:
            link.waiting.pop(request.id, None)
            link.starting.discard(request.id)
        if reply.reason:
            raise Refusal(_reason(reply.reason), reply.detail)
        return reply.detail

    # Our links

    def _follow(self) -> None:
        """One link to each registered member, none to the others."""
        registered = self.members.registered
        for name in registered:
            if name != self.members.member and name not in self._links and not self._closed:
                link = self._links[name] = _Link(name)
                link.task = asyncio.get_running_loop().create_task(self._keep(link), name=f"link to {name}")
        for name in [name for name in self._links if name not in registered]:
            link = self._links.pop(name)
            if link.task is not None:
                link.task.cancel()
                self._tasks.add(link.task)
                link.task.add_done_callback(self._tasks.discard)

    async def _keep(self, link: _Link) -> None:
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            record = self.members.record(link.member)
            if record is None or not record.peer_address:
                await asyncio.sleep(PAUSE_S)
                continue
            began = loop.time()
            try:
                stream = await self._transport.connect(record.peer_address, SERVICE, timeout_s=CONNECT_S)
            except Refused:
                link.refused = True
                if not self._closely:
                    self._look_after(LOOK_S)
                if self._judge():
                    log.info("reconnecting was refused", member=link.member, ms=round(1000 * (loop.time() - began), 1))
            except TransportError as error:
                log.debug("no link", member=link.member, error=repr(error))
            else:
                await self._use(link, stream)
                failures = 0 if loop.time() - began > PAUSE_S else failures + 1
                if failures < 2:
                    continue  # it worked: again at once, to learn whether anybody is there
            await asyncio.sleep(PAUSE_S * (0.5 + self._world.random.random()))

    async def _use(self, link: _Link, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        try:
            await stream.send(encode(pb.PEER_HELLO, pb.Hello(member=self.members.member, incarnation=self.incarnation, group=self.group)))
            async with asyncio.timeout(CONNECT_S):
                hello = _hello(await stream.receive(), self.group)
            if hello.member != link.member:
                raise ProtocolError(f"{hello.member} answers at the address of {link.member}")
            link.reached, link.refused, link.stream, link.heard_at = hello.incarnation, False, stream, loop.time()
            log.info("linked", member=link.member, incarnation=hello.incarnation)
            hearing = Hearing(stream, SILENT_S)
            while True:
                self._heard(link, await hearing.receive())
        except (TransportError, TimeoutError) as error:
            log.info("link ended", member=link.member, error=repr(error))
        finally:
            if link.stream is not None:
                link.stream, link.broke_at = None, loop.time()
            for future in link.waiting.values():
                if not future.done():
                    future.set_exception(PeerUnreachable(f"the link to {link.member} broke"))
            await stream.close()

    def _heard(self, link: _Link, frame: bytes) -> None:
        link.heard_at = asyncio.get_running_loop().time()
        kind, payload = decode(frame)
        if kind == pb.PEER_BEAT:
            link.beat, link.beat_at, link.asked = parse(pb.PeerBeat, payload), link.heard_at, len(link.starting)
        elif kind == pb.PEER_REPLY:
            reply = parse(pb.Reply, payload)
            future = link.waiting.get(reply.id)
            if future is not None and not future.done():
                future.set_result(reply)
        else:
            log.debug("unknown frame from a peer", member=link.member, type=kind)

    # Links of others to us

    async def serve(self, stream: Stream) -> None:
        """Handles one stream of service `qsg.v1.Peer`."""
        if self._allowed and stream.identity not in self._allowed:
            log.warning("this certificate is no member's", peer=stream.peer, identity=stream.identity)
            await stream.close()
            return
        working: set[asyncio.Task[None]] = set()
        current = asyncio.current_task()
        assert current is not None
        self._accepted.add(current)
        try:
            async with asyncio.timeout(CONNECT_S):
                hello = _hello(await stream.receive(), self.group)
            await stream.send(encode(pb.PEER_HELLO, pb.Hello(member=self.members.member, incarnation=self.incarnation, group=self.group)))
            beats = asyncio.get_running_loop().create_task(self._send_beats(stream), name=f"beats to {hello.member}")
            working.add(beats)
            while True:
                kind, payload = decode(await stream.receive())
                if kind == pb.PEER_REQUEST:
                    request = parse(pb.Request, payload)
                    task = asyncio.get_running_loop().create_task(self._answer(stream, hello.member, request), name="answer a peer")
                    working.add(task)
                    task.add_done_callback(working.discard)
        except ProtocolError as error:
            log.warning("bad bytes on a peer link", peer=stream.peer, detail=str(error))
            await _refuse(stream, error)
        except (TransportError, TimeoutError) as error:
            log.debug("a peer's link ended", peer=stream.peer, error=repr(error))
        finally:
            self._accepted.discard(current)
            await to_the_end(_part(stream, working))

    def beat_now(self) -> None:
        """What we can has changed: the others learn at once."""
        for due in self._due:
            due.set()

    async def _send_beats(self, stream: Stream) -> None:
        loop, due = asyncio.get_running_loop(), Bell()
        self._due[due] = None
        try:
            while True:
                due.clear()
                await stream.send(encode(pb.PEER_BEAT, self._beat()))
                await due.wait(loop.time() + BEAT_S)
        except TransportError as error:
            log.debug("beats ended", peer=stream.peer, error=repr(error))
        except Exception:
            log.exception("beats failed", peer=stream.peer)
            await stream.close()  # the peer makes a new link
        finally:
            self._due.pop(due, None)

    def _beat(self) -> pb.PeerBeat:
        now = asyncio.get_running_loop().time()
        load = self.own_load()
        beat = pb.PeerBeat(
            channels=load.channels,
            channels_max=load.channels_max,
            initiator=load.initiator,
            draining=load.draining,
            structures=sorted(load.structures),
        )
        for link in self._links.values():
            if link.reached:
                silent_ms = min(round(1000 * (now - link.heard_at)), 0xFFFFFFFF)
                beat.silences.add(member=link.member, incarnation=link.reached, silent_ms=silent_ms, refused=link.refused)
        return beat

    async def _answer(self, stream: Stream, member: str, request: pb.Request) -> None:
        kind = request.WhichOneof("kind")
        answerer = self.requests.get(kind or "")
        reply = pb.Reply(id=request.id)
        try:
            if member not in self.members.registered:
                raise Refusal(Reason.NOT_AUTHORIZED, f"{member[:64]!r} is not registered in {self.group}")
            if answerer is None:
                raise Refusal(Reason.PROTOCOL_ERROR, f"request {kind} is not known here")
            reply.detail = await answerer(member, request)
        except Refusal as refusal:
            reply.reason, reply.detail = int(refusal.reason), refusal.detail
        except Exception as error:
            log.exception("a peer's request failed", member=member, kind=kind)
            reply.reason, reply.detail = int(Reason.UNEXPECTED_ERROR), repr(error)
        try:
            await stream.send(encode(pb.PEER_REPLY, reply))
        except TransportError as error:
            log.info("an answer did not reach its peer", member=member, kind=kind, error=repr(error))

    # Verdicts

    def _look_after(self, pause_s: float) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        loop = asyncio.get_running_loop()
        self._look_due, self._closely = loop.time() + pause_s, pause_s <= LOOK_S
        self._next_look = loop.call_later(pause_s, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._look_due > 4 * LOOK_S:
            # We were paused: what the others said meanwhile is still unread, so their silence means nothing.
            log.warning("this process was paused", ms=round(1000 * (now - self._look_due)))
            for link in self._links.values():
                link.heard_at = now
        if self._closely:  # else we may have been paused all the time until now, and nobody's silence can count yet
            self._judge()
        counts_at = min((link.heard_at for link in self._links.values()), default=now) + verdict.SILENCE_MS / 1000
        far_s = 0.0 if any(link.refused for link in self._links.values()) else counts_at - 2 * LOOK_S - now
        self._look_after(max(LOOK_S, far_s))

    def _judge(self) -> bool:
        """Carries out new verdicts; whether there was one."""
        now = asyncio.get_running_loop().time()
        if not any(link.refused or 1000 * (now - link.heard_at) >= verdict.SILENCE_MS for link in self._links.values()):
            return False  # as nearly always
        links = {
            n: verdict.Link(link.reached, 1000 * (now - link.heard_at), link.refused and not _leaving(link, now))
            for n, link in self._links.items()
        }
        reports = {n: _reports(link, 1000 * (now - link.beat_at)) for n, link in self._links.items()}
        found = False
        for v in verdict.judge(self.members.member, self.members.registered, links, reports):
            if self._judged.get(v.member) != v.incarnation:
                self._judged[v.member] = v.incarnation
                link = self._links[v.member]
                since = link.broke_at if link.refused else link.heard_at
                self.members.execute(v.member, v.incarnation, v.cause, 1000 * (now - since))
                found = True
        return found


def _leaving(link: _Link, now: float) -> bool:
    """Its last beat said that it is draining and has given everything away: it is about to delete its own keys."""
    return link.beat.draining and not link.beat.channels and now - link.broke_at < LEAVING_S


def _reports(link: _Link, age_ms: float) -> list[verdict.Report]:
    return [verdict.Report(s.member, s.incarnation, s.silent_ms, s.refused, age_ms) for s in link.beat.silences]


async def _refuse(stream: Stream, error: ProtocolError) -> None:
    """Tells whoever is no peer why its link ends, as far as it still listens."""
    try:
        await stream.send(encode(pb.PEER_REPLY, pb.Reply(reason=int(Reason.PROTOCOL_ERROR), detail=str(error))))
    except TransportError as gone:
        log.debug("a refusal did not reach its peer", peer=stream.peer, error=repr(gone))


def _hello(frame: bytes, group: str) -> pb.Hello:
    kind, payload = decode(frame)
    if kind != pb.PEER_HELLO:
        raise ProtocolError(f"frame {kind} where a peer says hello")
    hello = parse(pb.Hello, payload)
    if hello.group != group:
        raise ProtocolError(f"{hello.member} is of group {hello.group!r}, not {group!r}")
    return hello


def _reason(number: int) -> Reason:
    try:
        return Reason(number)
    except ValueError:
        return Reason.UNEXPECTED_ERROR


async def _part(stream: Stream, working: set[asyncio.Task[None]]) -> None:
    await ended(*working)
    await stream.close()
