"""Puts of a named producer: numbered, settled after every loss, done exactly once.

One driver owns the windows, one per structure. It sends while all goes well, up to `FRAMES_IN_FLIGHT` a structure; after anything else it
waits until every frame has its answer, asks for the producer's record where that is needed (which raises the epoch, so that nothing older
can be committed any more), answers what is done and sends the rest again under new numbers. Message ids are made here, so that they are
known even when only the record says that a put was done. What goes to a structure that is away holds up nothing for good that goes to
another one: it is asked for at member after member, the others in between.

Names of producers must be unique among living applications: the newer one of two wins, the older one gets `ProducerFenced`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from qsg.client.errors import ConnectionBroken, OutcomeUnknown, ProducerFenced, QsgError, StructureNotAvailable, error_for
from qsg.client.link import Link
from qsg.client.numbering import Numbered, Outcome, Settlement, Window
from qsg.client.puts import OF_THE_QUEUE, Item, Route, answer_failed, check_put, failed_here, put_request, take
from qsg.client.session import RETRY_ELSEWHERE, Session, SessionLost
from qsg.pb import client_pb2 as pb
from qsg.rules.reasons import Reason
from qsg.rules.world import World

log = logging.getLogger("qsg.client")

FRAMES_IN_FLIGHT = 2
ASK_AGAIN_S = 0.05
ROUTE_S = 1.0
"""How long a new target waits for what is in flight: where its structure is away nobody knows when that is answered."""
LIFETIME_MS = 7 * 24 * 3600 * 1000

AWAY = frozenset((int(Reason.STRUCTURE_NOT_AVAILABLE), int(Reason.CF_NOT_AVAILABLE)))
ELSEWHERE = RETRY_ELSEWHERE | AWAY
"""Answers to opening a producer after which another member is asked."""


class AskElsewhere(Exception):
    """This member cannot say what became of a producer's puts."""


@dataclass(slots=True)
class Frame:
    items: list[Item]
    response: pb.ClientResponse | None = None
    failed_here: bool = False
    """`response` is ours: not to be sent again as it is."""


@dataclass(slots=True, eq=False)
class Line:
    """What goes to one structure."""

    structure: str
    window: Window[Frame] = field(default_factory=Window)
    session: Session | None = None
    """The one on which the producer was last opened here."""
    waiting: dict[tuple[str, str], deque[Item]] = field(default_factory=dict)
    """By target."""

    def queue(self, item: Item) -> None:
        self.waiting.setdefault(item.route.target, deque()).append(item)

    def requeue(self, items: list[Item]) -> None:
        for item in reversed(items):
            self.waiting.setdefault(item.route.target, deque()).appendleft(item)

    def next(self) -> list[Item]:
        """Items for one frame. Targets take turns."""
        while self.waiting:
            target = next(iter(self.waiting))
            queue = self.waiting.pop(target)
            items = take(queue)
            if queue:
                self.waiting[target] = queue
            if items:
                return items
        return []

    @property
    def wanted(self) -> bool:
        """Somebody waits for what becomes of something here."""
        return bool(self.waiting) or any(item.wanted for frame in self.window.frames for item in frame.value.items)


class ProducerPuts:
    """Puts of producer `name`."""

    def __init__(self, link: Link, name: str, world: World) -> None:
        self.name = name
        self._link = link
        self._world = world
        self._homes: dict[tuple[str, str], Line] = {}
        self._lines: dict[str, Line] = {}
        self._unrouted: dict[tuple[str, str], deque[Item]] = {}
        self._wake = asyncio.Event()
        self._calls: set[asyncio.Task[None]] = set()
        self._driver: asyncio.Task[None] | None = None
        self._fenced: ProducerFenced | None = None
        self._ask_until: dict[Line | tuple[str, str], float] = {}
        """Lines, and targets without one, of which no member that was asked so far could tell."""
        self._route_at: float | None = None
        self._opens_unanswered = 0
        """Of queues whose structure was not known: they may still raise the epoch of a line that is yet to be made."""

    def submit(self, item: Item) -> None:
        if self._fenced is not None:
            item.failed(self._fenced)
            return
        for message in item.messages:
            if not message.message_id:
                message.message_id = self._world.id(24)
        key = item.route.target
        if (line := self._homes.get(key)) is not None:
            line.queue(item)
        else:
            self._unrouted.setdefault(key, deque()).append(item)
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive(), name=f"qsg producer {self.name}")
        self._wake.set()

    async def state(self, queue: str, queue_manager: str = "") -> tuple[str, int, int]:
        """(structure, epoch, last number committed) for a queue, asked of the group when this connection does not know it yet."""
        check_put(Route(queue, queue_manager), ())
        key = (queue, queue_manager)
        if key not in self._homes:
            self._unrouted.setdefault(key, deque())
            marker: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
            self.submit(Item(Route(queue, queue_manager), (), 0, marker))
            await marker
        line = self._homes[key]
        return line.structure, line.window.epoch, line.window.last

    # ---- the driver

    @property
    def _busy(self) -> bool:
        return bool(self._unrouted) or any(line.wanted for line in self._lines.values())

    async def _drive(self) -> None:
        try:
            while self._fenced is None or not self._quiet:
                self._wake.clear()
                if not self._busy:
                    self._ask_until.clear()
                # Once fenced, only the answers to come are waited for.
                if self._fenced is not None or not self._busy or not await self._try():
                    await self._wake.wait()
        except asyncio.CancelledError:
            self._give_up(ConnectionBroken("the connection was closed"))
            raise
        self._give_up(self._fenced)

    async def _try(self) -> bool:
        """One step; True when the next one should follow at once."""
        try:
            session = await self._link.session()
            problem = await self._step(session)
            if problem is None:
                return False
            session.retire(str(problem))
            await asyncio.sleep(ASK_AGAIN_S)
            return True
        except SessionLost:
            return True
        except QsgError as error:
            if self._fenced is None:
                self._give_up(error)
        except Exception as problem:  # as of a put
            log.exception("producer %s failed in this process", self.name)
            self._give_up(QsgError(f"producer {self.name} failed in this process: {problem!r}"))
        return False

    @property
    def _quiet(self) -> bool:
        return all(line.window.quiet for line in self._lines.values())

    async def _step(self, session: Session) -> AskElsewhere | None:
        """Does what can be done now; every answer and every new item wakes the driver again. Answers what another member is to be asked."""
        problem: AskElsewhere | None = None
        for line in self._lines.values():
            if not line.wanted:
                self._ask_until.pop(line, None)
            elif line.window.quiet and (line.window.troubled or line.session is not session):
                try:
                    await self._recover(session, line)
                    self._ask_until.pop(line, None)
                except AskElsewhere as elsewhere:
                    problem = self._elsewhere(elsewhere, [line]) or problem
        if self._unrouted and self._fenced is None:
            if not self._may_route():
                return problem
            problem = await self._route_all(session) or problem
        if self._fenced is None:
            for line in self._lines.values():
                self._fill(session, line)
        return problem

    def _may_route(self) -> bool:
        """Opening raises the epoch of whatever structure it leads to: what is in flight there is fenced by us, and has to be asked for."""
        loop = asyncio.get_running_loop()
        if not self._quiet:
            if self._route_at is None:
                self._route_at = loop.time() + ROUTE_S
                loop.call_at(self._route_at, self._wake.set)
            if loop.time() < self._route_at:
                return False
        self._route_at = None
        return True

    async def _route_all(self, session: Session) -> AskElsewhere | None:
        """Up to one that has to be asked for elsewhere: it is the last one next time."""
        for key in list(self._unrouted):
            if self._fenced is not None:
                break
            try:
                await self._route(session, key)
                self._ask_until.pop(key, None)
            except AskElsewhere as problem:
                self._unrouted[key] = self._unrouted.pop(key)
                return self._elsewhere(problem, list(self._unrouted))
        return None

    def _elsewhere(self, problem: AskElsewhere, which: Sequence[Line | tuple[str, str]]) -> AskElsewhere | None:
        """Gives up those that were asked for long enough; answers the problem while there are others."""
        now = asyncio.get_running_loop().time()
        over = [one for one in which if self._ask_until.setdefault(one, now + self._link.options.reconnect_s) <= now]
        for one in over:
            del self._ask_until[one]
            if isinstance(one, Line):
                self._give_up_line(one, StructureNotAvailable(str(problem)))
                # Its queues may be moved off a structure that never comes back.
                self._homes = {key: line for key, line in self._homes.items() if line is not one}
            else:
                answer_failed(list(self._unrouted.pop(one)), StructureNotAvailable(str(problem)))
        return problem if len(over) < len(which) else None

    def _fill(self, session: Session, line: Line) -> None:
        window = line.window
        while line.session is session and not window.troubled and len(window.frames) < FRAMES_IN_FLIGHT:
            items = line.next()
            if not items:
                return
            frame = window.send(sum(len(item.messages) for item in items), Frame(items))
            task = asyncio.create_task(self._call(session, line, frame), name=f"qsg producer {self.name} put {frame.first}")
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _call(self, session: Session, line: Line, frame: Numbered[Frame]) -> None:
        try:
            response = await session.call(put_request(frame.value.items, frame.first, line.structure))
        except SessionLost:
            self._answered(line, frame, Outcome.UNKNOWN)
            return
        except Exception as problem:  # no memory, or a bug: nobody may wait for ever
            frame.value.response, frame.value.failed_here = failed_here(problem), True
            self._answered(line, frame, Outcome.UNKNOWN)
            return
        except asyncio.CancelledError:
            self._answered(line, frame, Outcome.UNKNOWN)
            raise
        frame.value.response = response
        if response.reason in RETRY_ELSEWHERE:
            session.retire(f"{session.address}: {response.detail}")
        self._answered(line, frame, self._outcome(line, response))

    def _outcome(self, line: Line, response: pb.ClientResponse) -> Outcome:
        match response.reason:
            case Reason.NONE:
                return Outcome.DONE
            case Reason.PRODUCER_GAP:
                return Outcome.GAP
            case Reason.OBJECT_CHANGED:
                return Outcome.CHANGED
            case Reason.CALL_INTERRUPTED:
                return Outcome.UNKNOWN
            case Reason.PRODUCER_FENCED:
                if line.window.opens_unanswered:
                    return Outcome.UNKNOWN
                self._fence(response.detail)
                return Outcome.REFUSED
            case reason if reason in RETRY_ELSEWHERE:
                return Outcome.UNKNOWN
        return Outcome.REFUSED

    def _answered(self, line: Line, frame: Numbered[Frame], outcome: Outcome) -> None:
        for done in line.window.answer(frame, outcome):
            _tell_done(done.value.items)
        self._wake.set()

    def _fence(self, detail: str) -> None:
        self._fenced = ProducerFenced(detail or f"another connection has opened producer {self.name}")
        self._wake.set()

    # ---- settling

    async def _open(self, session: Session, opening: pb.OpenProducer, line: Line | None) -> pb.ClientResponse:
        """Raises SessionLost, AskElsewhere, QsgError."""
        opening.producer, opening.lifetime_ms, opening.opener = self.name, LIFETIME_MS, self._link.opener
        for known in self._lines.values():
            opening.epochs_max[known.structure] = known.window.epoch + known.window.opens_unanswered
        try:
            response = await session.call(pb.ClientRequest(open_producer=opening))
        except SessionLost as lost:
            if lost.sent:
                self._unanswered(line)
            raise
        if response.reason == Reason.CALL_INTERRUPTED or response.reason in ELSEWHERE:
            self._unanswered(line)
            raise AskElsewhere(f"{session.address}: {response.detail}")
        if response.reason == Reason.PRODUCER_FENCED:
            self._fence(response.detail)
        if response.reason:
            raise error_for(response.reason, response.detail)
        return response

    def _unanswered(self, line: Line | None) -> None:
        """An open request of ours may still raise the epoch: of this line, or of whichever its queue leads to."""
        self._opens_unanswered += line is None
        for known in self._lines.values() if line is None else (line,):
            known.window.opens_unanswered += 1

    async def _route(self, session: Session, key: tuple[str, str]) -> None:
        """Finds the structure of a queue and opens the producer there."""
        flying = [line for line in self._lines.values() if not line.window.quiet]
        for line in flying:
            line.window.opens_unanswered += 1  # it may lead there, and is taken for a late one of ours then
        try:
            response = await self._open(session, pb.OpenProducer(queue=key[0], queue_manager=key[1]), None)
        except QsgError as error:
            answer_failed(list(self._unrouted.pop(key)), error)
            return
        made = Line(response.structure, Window(opens_unanswered=self._opens_unanswered))
        line = self._lines.setdefault(response.structure, made)
        if line not in flying:
            self._opened(session, line, response)
        self._homes[key] = line
        for item in self._unrouted.pop(key):
            if item.messages:
                line.queue(item)
            else:
                item.done([])

    async def _recover(self, session: Session, line: Line) -> None:
        if line.session is not session or line.window.must_ask:
            response = await self._open(session, pb.OpenProducer(structure=line.structure), line)
            self._opened(session, line, response)
        else:
            self._settle(line)

    def _opened(self, session: Session, line: Line, response: pb.ClientResponse) -> None:
        settlement = line.window.opened(response.producer_epoch, response.producer_last)
        line.session = session
        if settlement is not Settlement.KNOWN:
            log.warning("the record of producer %s in structure %s is %s", self.name, line.structure, settlement.value)
            for frame in line.window.frames:
                if frame.outcome is Outcome.UNKNOWN:
                    answer_failed(frame.value.items, OutcomeUnknown(f"the record of producer {self.name} is {settlement.value}"))
        if settlement is Settlement.FOREIGN:
            self._fence("")
        else:
            self._settle(line)

    def _settle(self, line: Line) -> None:
        again: list[Item] = []
        changed: dict[tuple[str, str], None] = {}
        for frame in line.window.settle():
            items = frame.value.items
            if frame.outcome is Outcome.DONE:
                _tell_done(items)
            elif frame.outcome is Outcome.REFUSED or frame.value.failed_here:
                assert frame.value.response is not None
                again += self._refused(items, frame.value.response)
                if frame.value.response.reason in AWAY:
                    changed[items[0].route.target] = None  # perhaps: whoever puts there next asks where it lies
            else:
                again += items
                if frame.outcome is Outcome.CHANGED:
                    changed[items[0].route.target] = None
        again = [item for item in again if item.wanted]
        line.requeue([item for item in again if item.route.target not in changed])
        for key in changed:
            self._move(line, key, [item for item in again if item.route.target == key])

    def _refused(self, items: list[Item], response: pb.ClientResponse) -> list[Item]:
        """Items to be sent again, each on its own: one of them was refused, and all with it."""
        if len(items) == 1 or response.reason in OF_THE_QUEUE or self._fenced is not None:
            answer_failed(items, error_for(response.reason, response.detail))
            return []
        for item in items:
            item.alone = True
        return items

    def _move(self, line: Line, key: tuple[str, str], items: list[Item]) -> None:
        """The queue lies in another structure now; what waited for it goes there too, in order."""
        self._homes.pop(key, None)
        moved = self._unrouted.setdefault(key, deque())
        moved.extend(items)
        moved.extend(line.waiting.pop(key, ()))

    # ---- the end

    def _give_up(self, error: QsgError) -> None:
        """No member can be had, or none may: what was sent is unknown, the rest was not done."""
        for items in self._unrouted.values():
            answer_failed(list(items), error)
        self._unrouted.clear()
        self._ask_until.clear()
        for line in self._lines.values():
            self._give_up_line(line, error)

    def _give_up_line(self, line: Line, error: QsgError) -> None:
        for waiting in line.waiting.values():
            answer_failed(list(waiting), error)
        line.waiting.clear()
        for frame in line.window.frames:
            unknown = frame.outcome in (Outcome.PENDING, Outcome.UNKNOWN, Outcome.DONE)
            answer_failed(frame.value.items, OutcomeUnknown(error.detail) if unknown else error)

    async def close(self) -> None:
        tasks = [*self._calls, *([self._driver] if self._driver is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._give_up(ConnectionBroken("the connection was closed"))


def _tell_done(items: list[Item]) -> None:
    for item in items:
        item.done([message.message_id for message in item.messages])
