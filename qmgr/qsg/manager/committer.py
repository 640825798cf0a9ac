"""Commits units of work: a few slots, each with one transaction in flight, shared by all that waits when it is built.

Owns the slots of one incarnation in one store. Invariants: a caller hears *committed*, *changed meanwhile*, *refused* or *fenced* only
when it is so (`qsg.rules.slots`); units handed to one slot are applied in that order, also when some of them fail and the rest is tried
again. Not guaranteed: order between slots. A unit whose caller was cancelled before it was sent is dropped; once it is out it settles.
"""

from __future__ import annotations

import asyncio
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import structlog

from qsg.rules import packed as packing
from qsg.rules.pack import pack
from qsg.rules.packed import Lane, Packed
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Guard, Kind, Slot, Verdict
from qsg.rules.unit import Committed, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import LeaseNotFound, Limits, NoSpace, NotApplied, Put, Store, StoreError, TooLarge, TxnResult, Unavailable

log = structlog.get_logger()

ATTEMPT_S = 0.4
ATTEMPT_LONGEST_S = 3.0
"""A transaction that the store is too slow for gets more time from its fourth copy on."""
PAUSE_S = (0.01, 0.25)
"""First and longest pause before a copy is sent again."""
FULL_S = 1.0
"""How long puts are refused at once after the store said that it is full."""
GROWTH = 4096
"""A write beyond this counts as one that fills the store."""


@dataclass(slots=True)
class Counters:
    units: int = 0
    commits: int = 0
    repeats: int = 0
    voids: int = 0
    unknown: int = 0
    failed: int = 0
    """Units whose compares did not hold."""


@dataclass(slots=True, eq=False)
class _Item:
    unit: Unit
    future: asyncio.Future[Committed]


class Committer:
    """`guards[i]` is slot i's settled guard. `fenced` is told once our member key was seen to be gone."""

    def __init__(
        self,
        store: Store,
        member: str,
        incarnation: int,
        guards: list[Guard],
        world: World,
        *,
        fenced: Callable[[str], None] = lambda cause: None,
        answered: Callable[[bool, int], None] = lambda reachable, revision: None,
    ) -> None:
        self.store, self.member, self.incarnation, self.world = store, member, incarnation, world
        self.counters = Counters()
        self._learnt: Limits | None = None
        self.on_commit: list[Callable[[int, frozenset[str]], None]] = []
        self.revision = incarnation
        self.over_quota = False
        """Set from outside: so much of the quota is in use that puts are refused."""
        self._full_until = 0.0
        self._told_fenced, self._told = fenced, answered
        self.is_fenced = False
        self._closed = False
        self._slots = [_SlotDriver(self, Lane(member, i, incarnation), Slot(guard)) for i, guard in enumerate(guards)]

    def start(self) -> None:
        for slot in self._slots:
            slot.start()

    @property
    def limits(self) -> Limits:
        """What the store says that it takes, or less if it was found to take less."""
        said, learnt = self.store.limits, self._learnt
        if learnt is None:
            return said
        return Limits(min(said.operations, learnt.operations), min(said.compares, learnt.compares), min(said.bytes, learnt.bytes))

    def learn_limits(self, limits: Limits) -> None:
        log.warning("the store takes less in one transaction than it said", limits=limits)
        self._learnt = limits

    @property
    def slots(self) -> int:
        return len(self._slots)

    def slot_for(self, unit: Unit, affinity: str) -> int:
        """Consumption goes to slot 0; what has an affinity to a slot of its own; anything else where least waits."""
        if unit.taken or len(self._slots) == 1:
            return 0
        if affinity:
            return zlib.crc32(affinity.encode()) % len(self._slots)
        return min(range(len(self._slots)), key=lambda i: len(self._slots[i].waiting))

    async def commit(self, unit: Unit, *, affinity: str = "", slot: int | None = None) -> Committed:
        if self.is_fenced:
            raise Fenced
        if self._closed:
            raise Refusal(Reason.Q_MGR_STOPPING)
        if not (unit.compares or unit.changes or unit.puts or unit.taken or unit.ops):
            return Committed(self.revision)
        if self.refuses_growth() and grows(unit):
            raise Refusal(Reason.STORAGE_NOT_AVAILABLE, "the structure is full")
        future: asyncio.Future[Committed] = asyncio.get_running_loop().create_future()
        self._slots[self.slot_for(unit, affinity) if slot is None else slot % len(self._slots)].hand_in(_Item(unit, future))
        return await future

    def refuses_growth(self) -> bool:
        return self.over_quota or (self._full_until > 0 and asyncio.get_running_loop().time() < self._full_until)

    def full(self) -> None:
        self._full_until = asyncio.get_running_loop().time() + FULL_S

    def fence(self, cause: str) -> None:
        """Our member key is gone: nothing that was not sent yet will be, and what is out can only settle."""
        if self.is_fenced:
            return
        self.is_fenced = True
        self._told_fenced(cause)
        for slot in self._slots:
            slot.fence()

    def saw(self, revision: int) -> None:
        self.revision = max(self.revision, revision)
        self._told(True, revision)

    def silent(self) -> None:
        self._told(False, 0)

    def committed(self, revision: int, queues: frozenset[str]) -> None:
        for callback in self.on_commit:
            try:
                callback(revision, queues)
            except Exception:
                log.exception("a listener of commits failed", member=self.member)

    async def close(self, grace_s: float = 1.0) -> None:
        """Waits for what is out, then gives up: units still unsettled learn that their outcome is unknown."""
        self._closed = True
        tasks = [slot.closing() for slot in self._slots]
        running = [t for t in tasks if t is not None]
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=grace_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        for slot in self._slots:
            slot.abandon()


def grows(unit: Unit) -> bool:
    """Whether a unit puts messages (or parts of them): what a full store refuses, so that it can be drained."""
    return bool(unit.puts) or any(isinstance(op, Put) and len(op.value) > GROWTH for op in unit.ops)


class _SlotDriver:
    def __init__(self, committer: Committer, lane: Lane, slot: Slot) -> None:
        self.owner, self.lane, self.slot = committer, lane, slot
        self.waiting: deque[_Item] = deque()
        self.out: list[_Item] = []
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._alone = False
        """The next transaction is of one unit, to find the one that the store does not take."""
        self._pause = PAUSE_S[0]

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"slot {self.lane.name}")
        self._task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a slot failed", slot=self.lane.name, error=repr(error), exc_info=error)
            self.owner.fence("a slot failed")
            self.abandon()

    def hand_in(self, item: _Item) -> None:
        self.waiting.append(item)
        self._wake.set()

    def closing(self) -> asyncio.Task[None] | None:
        self._closing = True
        self._wake.set()
        return self._task

    def fence(self) -> None:
        waiting, self.waiting = list(self.waiting), deque()
        for item in waiting:
            _fail(item, Fenced())

    def abandon(self) -> None:
        """After the task has ended: nobody is left waiting."""
        for item in self.out:
            self.owner.counters.unknown += 1
            _fail(item, OutcomeUnknown())
        for item in self.waiting:
            _fail(item, Refusal(Reason.Q_MGR_STOPPING))
        self.out, self.waiting = [], deque()

    async def _run(self) -> None:
        while True:
            while self.waiting:
                await self._round()
            if self._closing:
                return
            self._wake.clear()
            if not self.waiting:
                await self._wake.wait()

    async def _round(self) -> None:
        """One transaction of what waits, to its outcome."""
        while self.waiting and self.waiting[0].future.done():
            self.waiting.popleft()
        if not self.waiting:
            return
        batch: list[_Item] = []
        units = _units(self.waiting, batch)
        if self._alone:
            self._alone, units = False, islice(units, 1)
        packed = pack(units, self.lane, self.slot.guard, self.owner.world.id(12), self.owner.limits)
        assert packed.considered, "the first unit always goes on"
        del batch[packed.considered :]
        for _ in range(packed.considered):
            while self.waiting.popleft().future.done():
                pass
        tentative: dict[int, Exception] = {}
        for denied in packed.denied:
            if denied.tentative:
                tentative[denied.index] = denied.error
            else:
                _fail(batch[denied.index], denied.error)
        if not packed.included:
            return
        self.out = [batch[i] for i in packed.included]
        verdict, failure = await self._settle(packed)
        self.out = []
        self._answer(packed, batch, tentative, verdict, failure)
        if verdict.kind is Kind.REFUSED and isinstance(failure, StoreError):
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 2, PAUSE_S[1])
        else:
            self._pause = PAUSE_S[0]

    async def _settle(self, packed: Packed) -> tuple[Verdict, TxnResult | StoreError | None]:
        """Sends copies until the outcome is certain. With it comes what made it fail: the else branch read last, or the store's error."""
        slot, owner = self.slot, self.owner
        failure: TxnResult | StoreError | None = None
        slot.begin(packed.attempt)
        copies, pause = 0, PAUSE_S[0]
        verdict: Verdict
        while True:
            copies += 1
            try:
                result = await self._send(packed, copies)
            except Unavailable:
                owner.silent()
                verdict = slot.unavailable()
            except NotApplied:
                verdict = slot.not_applied()
            except StoreError as error:  # refused as it is: no space, too large, no such lease, or a unit that is not right
                failure = failure if slot.voiding else error
                verdict = slot.rejected()
            else:
                owner.saw(result.revision)
                voiding = slot.voiding
                if result.succeeded:
                    verdict = slot.succeeded(result.revision)
                else:
                    guard, ours = packing.guard_of(result, self.lane)
                    verdict = slot.failed(guard, ours)
                    failure = failure if voiding else result
            if verdict.kind is Kind.VOID:
                copies, pause = 0, PAUSE_S[0]
                owner.counters.voids += 1
            elif verdict.kind is Kind.REPEAT:
                owner.counters.repeats += 1
                await asyncio.sleep(pause * (0.5 + owner.world.random.random()))
                pause = min(pause * 2, PAUSE_S[1])
            else:
                return verdict, failure

    async def _send(self, packed: Packed, copies: int) -> TxnResult:
        timeout_s = min(ATTEMPT_S * max(1, copies - 2), ATTEMPT_LONGEST_S)
        if self.slot.voiding:
            compares, ops, else_ops = packing.void(self.lane, self.slot.guard)
            return await self.owner.store.txn(compares, ops, else_ops, timeout_s=timeout_s)
        return await self.owner.store.txn(packed.compares, packed.ops, packed.else_ops, timeout_s=timeout_s)

    # Outcomes

    def _answer(
        self, packed: Packed, batch: list[_Item], tentative: dict[int, Exception], verdict: Verdict, failure: TxnResult | StoreError | None
    ) -> None:
        if verdict.kind is Kind.APPLIED:
            self._applied(packed, batch, tentative, verdict.revision)
            if isinstance(failure, TxnResult):
                packed.learn(failure)
            return
        included = set(packed.included)
        rest = [i for i in range(packed.considered) if i in included or i in tentative]
        if verdict.kind is Kind.REFUSED:
            self._refused(packed, batch, rest, failure)
            return
        for i in rest:
            if verdict.kind is Kind.UNKNOWN and i in included:
                self.owner.counters.unknown += 1
                _fail(batch[i], OutcomeUnknown())
            else:
                _fail(batch[i], Fenced())
        self.owner.fence("our member key is gone")

    def _applied(self, packed: Packed, batch: list[_Item], tentative: dict[int, Exception], revision: int) -> None:
        packed.applied(revision)
        committed = Committed(revision)
        for i in packed.included:
            if not batch[i].future.done():
                batch[i].future.set_result(committed)
        for i, error in tentative.items():
            _fail(batch[i], error)
        counters = self.owner.counters
        counters.commits += 1
        counters.units += len(packed.included)
        self.owner.committed(revision, packed.queues)

    def _refused(self, packed: Packed, batch: list[_Item], rest: list[int], failure: TxnResult | StoreError | None) -> None:
        """Nothing was applied: who is to blame is told so, the others go back to the head of the line."""
        match failure:
            case TxnResult():
                packed.learn(failure)
                told = self._blame(packed, failure)
            case NoSpace():
                self.owner.full()
                refusal = Reason.STORAGE_NOT_AVAILABLE
                told = {i: Refusal(refusal, "the structure is full") for i in packed.included if grows(batch[i].unit)}
            case TooLarge():
                told = self._too_large(packed)
            case LeaseNotFound():
                told = {i: Fenced() for i in packed.included if any(isinstance(op, Put) and op.lease for op in batch[i].unit.ops)}
            case StoreError():
                log.warning("the store refused a transaction", error=repr(failure))
                told = self._one_by_one(packed, Refusal(Reason.UNEXPECTED_ERROR, str(failure)))
            case _:
                told = {}
        for i, error in told.items():
            _fail(batch[i], error)
        again = [batch[i] for i in rest if i not in told]
        if self.owner.is_fenced:
            for item in again:
                _fail(item, Fenced())
        else:
            self.waiting.extendleft(reversed(again))

    def _blame(self, packed: Packed, result: TxnResult) -> dict[int, Exception]:
        blamed: dict[int, Exception] = {i: CompareFailed(names) for i, names in packed.blame(result).items()}
        self.owner.counters.failed += len(blamed)
        if blamed or packed.stale_totals(result):
            return blamed
        # The store says that a compare failed and shows that none did: answer rather than repeat for ever.
        log.error("a transaction failed and nothing in it did", member=self.lane.member, slot=self.lane.slot)
        return {i: CompareFailed(()) for i in packed.included}

    def _too_large(self, packed: Packed) -> dict[int, Exception]:
        """The store takes less than it said. A unit alone is refused; of several, fewer are tried."""
        told = self._one_by_one(packed, Refusal(Reason.SYNCPOINT_LIMIT_REACHED, "more than the store takes in one transaction"))
        if told:
            return told
        size = sum(len(op.key) + len(op.value) for op in packed.ops if isinstance(op, Put))
        limits = self.owner.limits
        self.owner.learn_limits(
            Limits(
                operations=max(8, min(limits.operations, max(len(packed.ops), len(packed.else_ops)) * 3 // 4)),
                compares=max(8, min(limits.compares, len(packed.compares) * 3 // 4)),
                bytes=max(16_384, min(limits.bytes, size * 3 // 4)),
            )
        )
        return told

    def _one_by_one(self, packed: Packed, error: Exception) -> dict[int, Exception]:
        """A unit that was alone is told; else the first is tried alone next."""
        if len(packed.included) == 1:
            return {packed.included[0]: error}
        self._alone = True
        return {}


def _units(waiting: deque[_Item], batch: list[_Item]) -> Iterator[Unit]:
    """Units that someone still waits for; `batch` gets their items."""
    for item in waiting:
        if not item.future.done():
            batch.append(item)
            yield item.unit


def _fail(item: _Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
