"""Getting messages: the getters of one queue in one member share one loop, which serves them in rounds.

Owns the requests that wait, first come first served. A round takes what is there for all of them: plain gets in one unit that marks
messages gone, gets of a unit of work by claiming (only what was asked for). Invariants: a message is handed out only after the unit that
took or claimed it was committed; `NO_MSG_AVAILABLE` is said only after a read that began behind the request found nothing free. Who
loses two compare-and-swaps in a row leaves what it tried to take alone for a moment, with jitter, and goes on behind it: further with each
loss, so that a slower member is not starved by a faster one while there is enough for both. Not guaranteed: that a message of a higher
priority that another member put within the last `STALE_S` overtakes; and the messages of a plain get whose answer is lost on its way are
lost, as in MQ.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial

import structlog

from qsg.bell import Bell, Once
from qsg.failpoint import task_failpoint
from qsg.manager import large
from qsg.manager.assigning import Assignment, GetSpec, GotMessage, Request, Unitlike
from qsg.manager.claims import Claims
from qsg.manager.consuming import Guarded, Segment, Segments, claim_unit, take
from qsg.manager.queue_store import Opened, QueueStore
from qsg.manager.scanning import scan
from qsg.manager.window import Window
from qsg.pb import records_pb2 as pb
from qsg.rules import consume, keys, segments
from qsg.rules.consume import Claimer
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import Damaged, read_record, stored_message
from qsg.rules.unit import CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.store.contract import Event, StoreError
from qsg.store.follow import Follower

__all__ = ["GetSpec", "GetterLoop", "GotMessage"]

log = structlog.get_logger()

STALE_S = 0.05
POLL_S = 1.0
"""How often what others have claimed is looked at again, busy or not: nobody may have told that it was given back, or that who claimed it
died."""
EMPTY_POLL_S = 10.0
"""The same on an empty queue, where nothing is claimed, and the watch tells of what is put: not even this should be needed."""
LINGER_S = 2.0
"""How long the watch of the doorbell outlives its last waiter."""
LOSSES = 2
QUIET_S = (0.005, 0.05)
_PERHAPS_TAKEN = frozenset({Reason.LARGE_MESSAGE_INCOMPLETE, Reason.RECORD_DAMAGED})
"""What is missing may have been taken meanwhile: looked at again, before it is told."""
AHEAD = 6, 192
"""Segments that a loser leaves to the winner, at most: after the first losses, and after many (four times as far with each)."""


class GetterLoop:
    """Serves the getters of one queue."""

    def __init__(self, opened: Opened, queues: QueueStore) -> None:
        self.world = queues.world
        self.queues = queues
        self.segments = Segments(opened.name, opened.claims)
        self.window = Window(Guarded(opened), self.segments)
        self.requests: deque[Request] = deque()
        self._bell = Bell()
        self._task: asyncio.Task[None] | None = None
        self._reads = 0
        self._read_at = float("-inf")
        self._rung = True
        self._told = 0
        self._follower: Follower | None = None
        self._sums: dict[bytes, tuple[int, int]] = {}
        self._looked_at = 0.0
        self._doubted = 0
        """Reads that had begun when what others have claimed was last doubted."""
        self._closed = False

    @property
    def guarded(self) -> Guarded:
        return self.window.guarded

    @property
    def idle(self) -> bool:
        return self._task is None

    async def get(self, spec: GetSpec, unit: Unitlike | None, cancel: Once | None) -> list[GotMessage]:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + spec.wait_ms / 1000
        request = Request(spec, unit, loop.create_future(), deadline, self._reads)
        self.requests.append(request)
        self._bell.set()
        if self._task is None:
            self._task = loop.create_task(self._run(), name=f"getters of {self.window.queue}")
        if cancel is not None:
            cancel.listen(partial(self._cancel, request))
        return await request.future

    def _cancel(self, request: Request) -> None:
        if not request.future.done():
            request.cancelled = True
            self._bell.set()

    def ring(self) -> None:
        """Something was put, or given back."""
        self._rung = True
        self._bell.set()

    def told(self, revision: int) -> None:
        """Something was put at `revision`: both doorbells tell of our own, and one read answers both."""
        self._told = max(self._told, revision)
        if self._stale:
            self._bell.set()

    @property
    def _stale(self) -> bool:
        """The last read did not show what was told of."""
        return self._rung or self._told > self.window.shown

    def given_back(self) -> None:
        """Claims have ended, with their unit or with the incarnation that made them: what was claimed may be free."""
        self._look_again()
        self.ring()

    async def close(self) -> None:
        self._closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        for request in self.requests:
            request.fail(Refusal(Reason.Q_MGR_STOPPING))
        self.requests.clear()
        await self._unfollow()

    # Rounds

    async def _run(self) -> None:
        try:
            while True:
                self._bell.clear()
                await self._round()
                if not self._sift():
                    if not self._bell.is_set() and not await self._linger():
                        return
                elif not self._bell.is_set() and not self._stale and not any(r.again for r in self.requests):
                    await self._wait()
        except (StoreError, Fenced) as error:
            self._fail_all(error if isinstance(error, Fenced) else Refusal(Reason.STRUCTURE_NOT_AVAILABLE, str(error)))
        except OutcomeUnknown:  # of a unit that removes what has expired: the structure was given up
            self._fail_all(Refusal(Reason.Q_MGR_STOPPING))
        except Exception as error:
            log.error("getters failed", queue=self.window.queue, exc_info=error)
            self._fail_all(Refusal(Reason.UNEXPECTED_ERROR, repr(error)))
        finally:
            if not self._closed:
                self._task = None
                self.window.rescan()
                await self._unfollow()

    async def _round(self) -> None:
        try:
            await self._check_queue()
            now = asyncio.get_running_loop().time()
            if now - self._looked_at >= POLL_S:
                self._look_again()
            self.window.end_quiet(now)
            await self._serve()
        except Refusal as refusal:
            self._fail_all(refusal)

    async def _check_queue(self) -> None:
        definition = self.queues.catalog.queue(self.window.queue)
        if definition is None or definition.structure != self.window.structure.name:
            raise Refusal(Reason.Q_DELETED, self.window.queue)
        opened = await self.queues.open(definition)
        if opened.id != self.guarded.opened.id:
            self.segments = Segments(opened.name, opened.claims)
            self.window = Window(Guarded(opened), self.segments)
        self.guarded.opened = opened
        if not opened.definition.get_enabled:
            raise Refusal(Reason.GET_INHIBITED, opened.name)

    async def _serve(self) -> None:
        """Reads as much as is needed, assigns, loads bodies and commits."""
        reads = self._reads
        while True:
            waiting = [r for r in self.requests if not r.future.done() and not r.cancelled]
            if not waiting:
                return
            if self._reads == reads and self._is_old():  # what was read before this round is not worth an assignment
                await self._read()
                continue
            assignment = Assignment(self.window, asyncio.get_running_loop().time(), self.world.wall_ms())
            assignment.distribute(waiting)
            if self._must_read(waiting):
                await self._read()
                continue
            if await scan(self.window, waiting):
                continue
            bare = [s for r in waiting for s in r.parts if s.body is None and self._needs_body(s)]
            if bare:
                await self.window.load({s: None for r in waiting for s in r.parts})
                continue
            break
        if assignment.expired or any(r.messages for r in waiting):
            await self._commit(waiting, assignment.expired)
        if assignment.expired and not self.window.complete:  # they may have filled the window: what is behind them is looked at
            for request in waiting:
                request.again = request.again or not request.messages

    @staticmethod
    def _needs_body(segment: Segment) -> bool:
        return segments.needs_bodies(segment.at.header)

    def _is_old(self) -> bool:
        """The last read is so long ago, or shows so little, that a round begins with another."""
        return self._reads == 0 or self._stale or asyncio.get_running_loop().time() - self._read_at > STALE_S

    def _must_read(self, waiting: list[Request]) -> bool:
        """Whether something more must be read before this round's assignment is good."""
        hungry = [r for r in waiting if not r.messages]
        if not hungry:
            return False
        if self.window.full and not any(s.free(self.window.live) for s in self.window if s.checked):
            self.window.drop_claimed()
        return any(self._unread_for(r) for r in hungry) or (self.window.unread and not self._blocked())

    def _unread_for(self, request: Request) -> bool:
        """Nothing was read since it came. Who waits does without, while a watch tells of every put; it is read when its time is up."""
        if request.arrived < self._reads:
            return False
        waits = request.deadline > asyncio.get_running_loop().time() and not request.cancelled
        return not (waits and self._follower is not None) or request.by_id

    def _blocked(self) -> bool:
        """Nothing more can be read: the window is full, and everything in it was checked."""
        return self.window.full and all(s.checked for s in self.window)

    async def _read(self) -> None:
        self._reads += 1
        self._rung = False
        self._read_at = asyncio.get_running_loop().time()
        await self.window.read(ahead=True)

    # Committing

    async def _commit(self, waiting: list[Request], expired: dict[Segment, int]) -> None:
        got = await self._bodies([r for r in waiting if r.messages])
        served = list(got)
        plain = [r for r in served if r.unit is None]
        jobs: list[tuple[Unit, list[Request], dict[Segment, int]]] = []
        if plain or expired:
            parts = dict(expired)
            for request in plain:
                for segment, mask in request.parts.items():
                    parts[segment] = parts.get(segment, 0) | mask
            unit = Unit(f"get {self.window.queue}")
            take(unit, self.guarded, parts, self.window.live)
            jobs.append((unit, plain, parts))
        for request in served:
            if request.unit is not None and self.segments.claims is not None:
                self._claim(request, request.unit, self.segments.claims, got)
            elif request.unit is not None:
                structure = self.window.structure
                claimer = Claimer(structure.member, structure.incarnation, request.unit.id)
                jobs.append((claim_unit(self.guarded, request.parts, claimer, self.window.live), [request], request.parts))
        # All of one slot and in this order: units see each other's changes.
        commits = asyncio.gather(*(self.window.structure.commit(unit, slot=0) for unit, _, _ in jobs), return_exceptions=True)
        try:
            outcomes = await commits
            await task_failpoint("get.after_commit_before_answer")
        except asyncio.CancelledError:
            for request in plain:  # closed: what is out may be applied all the same
                request.fail(OutcomeUnknown("closed before it was known whether messages were taken"))
            raise
        untold: list[BaseException] = []
        for (_, requests, parts), outcome in zip(jobs, outcomes, strict=True):
            if not isinstance(outcome, BaseException):
                self._won(requests, parts, got)
            elif not self._lost(requests, parts, outcome):
                untold.append(outcome)
        if untold:  # not before all outcomes are handed out: who waits for a later one has taken or claimed messages
            raise untold[0]

    def _claim(self, request: Request, unit: Unitlike, claims: Claims, got: dict[Request, list[GotMessage]]) -> None:
        """Where nobody else has the store nothing is written. Who has gone meanwhile claims nothing: its unit may have ended."""
        if request.future.done():
            return
        if not self._free(request.parts):
            self._lost([request], request.parts, Refusal(Reason.CHANGED_MEANWHILE))
            return
        for segment, mask in request.parts.items():
            claims.claim(segment.key, unit.id, mask)
        unit.hold(self.guarded, request.parts)
        request.future.set_result(got[request])

    async def _bodies(self, requests: list[Request]) -> dict[Request, list[GotMessage]]:
        """The messages of those whose bodies are all there. Chunks that are missing belong to a message that somebody took meanwhile."""
        found = {}
        for request in requests:
            try:
                found[request] = await self._messages(request)
            except Refusal as refusal:
                if refusal.reason not in _PERHAPS_TAKEN or await self._still_there(request.parts):
                    request.fail(refusal)
                else:
                    self._lost([request], request.parts, Refusal(Reason.CHANGED_MEANWHILE))
        return found

    async def _still_there(self, parts: dict[Segment, int]) -> bool:
        """Whether nobody has taken these, as read now: what is missing of them is damage then."""
        for segment in parts:
            segment.checked = False
        await self.window.check(parts)
        return self._free(parts)

    def _free(self, parts: dict[Segment, int]) -> bool:
        return not any(mask & ~segment.free(self.window.live) for segment, mask in parts.items())

    async def _messages(self, request: Request) -> list[GotMessage]:
        found = []
        for segment, mask in request.parts.items():
            backouts = segment.backouts()
            for index in consume.iterate(mask):
                entry = segment.entry(index)
                if entry.stage:
                    raw = await large.read(self.window.structure, self.window.queue, entry)
                else:
                    raw = segments.body_at(segment.at.header, index, segment.body or b"")
                stored_message(entry, raw)
                found.append(GotMessage(raw, backouts.get(index, 0), segment.at.position(index)))
        return found

    def _won(self, requests: list[Request], parts: dict[Segment, int], got: dict[Request, list[GotMessage]]) -> None:
        for segment in parts:
            segment.settle()
            if segment.gone:
                self.window.remove(segment)
        for request in requests:
            if request.unit is not None:
                request.unit.hold(self.guarded, request.parts)
            if not request.future.done():
                request.future.set_result(got[request])
            elif request.unit is None:
                log.warning("a message was got by nobody", queue=self.window.queue, messages=request.messages)

    def _lost(self, requests: list[Request], parts: dict[Segment, int], error: BaseException) -> bool:
        """Nothing of the unit was applied: what is not so any more is read again. False: the error is for all who wait."""
        self.ring()
        for request in requests:
            request.again = True
        if isinstance(error, CompareFailed):
            if self._changed(parts, set(error.keys)):
                self._outrun(requests, parts)
        elif isinstance(error, Refusal) and error.reason is Reason.CHANGED_MEANWHILE:
            self._outrun(requests, parts)
        elif isinstance(error, Refusal | Fenced | OutcomeUnknown) and requests:
            for request in requests:
                request.fail(error)
        else:  # unexpected, or nobody asked for the unit: with expired messages alone it would be tried again for ever
            return False
        return True

    def _outrun(self, requests: list[Request], parts: dict[Segment, int]) -> None:
        """Somebody else was faster: two members in step would race for ever, and the later of them always lose."""
        for request in requests:
            request.losses += 1
        losses = max((r.losses for r in requests), default=0)
        if losses < LOSSES:
            return
        random = self.world.random
        until = asyncio.get_running_loop().time() + random.uniform(*QUIET_S)
        ahead = min(AHEAD[0] * 4 ** min(losses - LOSSES, 4), AHEAD[1])
        self.window.give_way(parts, random.randint(ahead // 2, ahead), until)

    def _changed(self, parts: dict[Segment, int], changed: set[bytes]) -> bool:
        """Takes in what a compare found changed; True when somebody else took (or claimed) what was wanted."""
        queue = self.window.queue
        taken = False
        for segment in parts:
            if keys.header(queue, segment.at.priority, segment.at.suffix) in changed:
                segment.gone = taken = True
                self.window.remove(segment)
            elif segment.cell.key in changed:
                taken = True
            elif any(key.startswith(keys.MEMBERS) for key in changed):
                segment.checked = False
        if self.guarded.opened.state.key in changed:
            self.queues.forget(self.guarded.opened)
        return taken

    # Waiting

    def _sift(self) -> bool:
        """Answers those who need not wait any longer; whether anybody is left."""
        now = asyncio.get_running_loop().time()
        disputed = bool(self.window.disputed(now))

        def late(request: Request) -> bool:
            return request.deadline <= now and request.arrived < self._reads and not (request.again or disputed)

        waiting = [r for r in self.requests if not r.future.done()]
        unsure = [r for r in waiting if late(r) and r.arrived > self._doubted]
        if unsure and self._doubt():
            for request in unsure:
                request.again = True
        left: deque[Request] = deque()
        for request in waiting:
            if request.cancelled or late(request):
                request.fail(Refusal(Reason.NO_MSG_AVAILABLE, self.window.queue))
            else:
                left.append(request)
        self.requests = left
        return bool(left)

    def _doubt(self) -> bool:
        """Before a request is told that there is nothing, what others have claimed must be read again: they may have given it back."""
        self._doubted = self._reads
        return self.window.doubt_claimed()

    async def _wait(self) -> None:
        """Until the bell rings, somebody's time is up, or it is time to look at claims again."""
        loop = asyncio.get_running_loop()
        self._follow()
        if any(r.deadline <= loop.time() and self._unread_for(r) for r in self.requests):
            self._rung = True
            return
        deadlines = [r.deadline for r in self.requests if r.deadline > loop.time()]
        poll_s = POLL_S if self.window.shows_any else EMPTY_POLL_S
        until = min([loop.time() + poll_s, *deadlines, *self.window.disputed(loop.time())])
        if not await self._bell.wait(until):
            self._rung = True

    def _look_again(self) -> None:
        self._looked_at = asyncio.get_running_loop().time()
        self._doubt()
        if self.window.dropped:
            self.window.rescan()

    async def _linger(self) -> bool:
        """Nobody waits: keeps the watch a little while. False: the loop ends."""
        return await self._bell.wait(asyncio.get_running_loop().time() + LINGER_S) or bool(self.requests)

    def _follow(self) -> None:
        """Its first listing tells what came behind the last read. Nobody waits for it: the store may be gone for longer than they wait."""
        if self._follower is None:
            self._follower = self.window.structure.follow(keys.totals(self.window.queue))
            self._follower.add_listener(self._heard)
            self._follower.start()

    async def _unfollow(self) -> None:
        follower, self._follower = self._follower, None
        if follower is not None:
            await follower.close()

    def _heard(self, events: list[Event]) -> None:
        """The totals moved: rings when something was put, or given back (rewritten without a change). Of a lane that is new here either may
        be so; what is given back in a transaction that also puts is found in `POLL_S`."""
        for event in events:
            try:
                totals = read_record(pb.Totals, event.kv.value, event.kv.key)
            except Damaged:
                self.ring()  # who reads it tells
                continue
            before = self._sums.get(event.kv.key)
            self._sums[event.kv.key] = totals.put, totals.got
            if before is None or before == (totals.put, totals.got):
                self._look_again()
                self.ring()
            elif totals.put != before[0]:
                self.told(event.kv.mod_revision)

    def _fail_all(self, error: Exception) -> None:
        for request in self.requests:
            request.fail(error)
        self.requests.clear()
