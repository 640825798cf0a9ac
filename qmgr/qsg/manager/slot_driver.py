"""Drives one slot of a committer: builds a transaction of what waits, sends copies until its outcome is certain, answers the callers.

Invariant: at most one attempt is out; a unit is answered once, after its outcome is certain, and what is tried again keeps its place at
the head of the line. Not guaranteed: an answer while the store is out of reach; then callers wait, and `abandon` ends that.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import structlog

from qsg.bell import Bell
from qsg.failpoint import task_failpoint
from qsg.rules import packed as packing
from qsg.rules.pack import pack
from qsg.rules.packed import Lane, Packed
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.slots import Kind, Slot, Verdict
from qsg.rules.unit import Committed, CompareFailed, Fenced, OutcomeUnknown, Unit
from qsg.store.contract import LeaseNotFound, Limits, NoSpace, NotApplied, Put, StoreError, TooLarge, TxnResult, Unavailable

if TYPE_CHECKING:
    from qsg.manager.committer import Committer

log = structlog.get_logger()

ATTEMPT_S = 0.4
ATTEMPT_LONGEST_S = 3.0
"""A transaction that the store is too slow for gets more time from its fourth copy on."""
PAUSE_S = (0.01, 0.25)
"""First and longest pause before a copy is sent again."""
GROWTH = 4096
"""A write beyond this counts as one that fills the store."""


@dataclass(slots=True, eq=False)
class Item:
    unit: Unit
    future: asyncio.Future[Committed]


def grows(unit: Unit) -> bool:
    """Whether a unit puts messages (or parts of them): what a full store refuses, so that it can be drained."""
    return bool(unit.puts) or any(isinstance(op, Put) and len(op.value) > GROWTH for op in unit.ops)


class SlotDriver:
    def __init__(self, committer: Committer, lane: Lane, slot: Slot) -> None:
        self.owner, self.lane, self.slot = committer, lane, slot
        self.waiting: deque[Item] = deque()
        self.out: list[Item] = []
        """In the attempt that is out."""
        self.held: list[Item] = []
        """Refused on values that this attempt writes: told once those are committed."""
        self._wake = Bell()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._alone = False
        """The next transaction is of one unit, to find the one that the store does not take."""
        self._built_for = committer.limits
        """Within these the transaction that is out was built."""
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

    def hand_in(self, item: Item) -> None:
        self.waiting.append(item)
        self._wake.set()

    def closing(self) -> asyncio.Task[None] | None:
        self._closing = True
        self._wake.set()
        return self._task

    def fence(self) -> None:
        waiting, self.waiting = list(self.waiting), deque()
        for item in waiting:
            self._refuse(item)

    def abandon(self) -> None:
        """After the task has ended: nobody is left waiting."""
        for item in self.out:
            self.owner.counters.unknown += not item.future.done()
            _fail(item, OutcomeUnknown())
        for item in (*self.held, *self.waiting):
            _fail(item, Refusal(Reason.Q_MGR_STOPPING))
        self.out, self.held, self.waiting = [], [], deque()

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
        batch: list[Item] = []
        units = _units(self.waiting, batch)
        if self._alone:
            self._alone, units = False, islice(units, 1)
        self._built_for = self.owner.limits
        packed = pack(units, self.lane, self.slot.guard, self.owner.world.id(12), self._built_for)
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
        self.held = [batch[i] for i in tentative]
        verdict, failure = await self._settle(packed)
        await task_failpoint("committer.after_commit_before_answer")
        self._answer(packed, batch, tentative, verdict, failure)
        self.out, self.held = [], []
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
            except NoSpace as error:
                failure = failure if slot.voiding else error
                verdict = await self._look_when_full()
            except StoreError as error:  # refused as it is: too large, no such lease, or a unit that is not right
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
                await task_failpoint("committer.before_repeat")
                await asyncio.sleep(pause * (0.5 + owner.world.random.random()))
                pause = min(pause * 2, PAUSE_S[1])
            else:
                return verdict, failure

    async def _look_when_full(self) -> Verdict:
        """Reads what became of a copy that was answered *no space*."""
        self.owner.full()
        _, gets = packing.own(self.lane, self.slot.guard)
        try:
            result = await self.owner.store.txn([], gets, timeout_s=ATTEMPT_S)
        except StoreError:
            return self.slot.unavailable()
        return self.slot.full(*packing.guard_of(result, self.lane))

    async def _send(self, packed: Packed, copies: int) -> TxnResult:
        timeout_s = min(ATTEMPT_S * max(1, copies - 2), ATTEMPT_LONGEST_S)
        if self.slot.voiding:
            compares, ops, else_ops = packing.void(self.lane, self.slot.guard)
            return await self.owner.store.txn(compares, ops, else_ops, timeout_s=timeout_s)
        return await self.owner.store.txn(packed.compares, packed.ops, packed.else_ops, timeout_s=timeout_s)

    # Outcomes

    def _answer(
        self, packed: Packed, batch: list[Item], tentative: dict[int, Exception], verdict: Verdict, failure: TxnResult | StoreError | None
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
                self._refuse(batch[i])
        self.owner.fence("our member key is gone")

    def _applied(self, packed: Packed, batch: list[Item], tentative: dict[int, Exception], revision: int) -> None:
        packed.applied(revision)
        self.owner.wrote(sum(len(op.value) for op in packed.ops if isinstance(op, Put)))
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

    def _refused(self, packed: Packed, batch: list[Item], rest: list[int], failure: TxnResult | StoreError | None) -> None:
        """Nothing was applied: who is to blame is told so, the others go back to the head of the line."""
        match failure:
            case TxnResult():
                packed.learn(failure)
                told = self._blame(packed, failure)
            case NoSpace():
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
                self._refuse(item)
        else:
            self.waiting.extendleft(reversed(again))

    def _refuse(self, item: Item) -> None:
        """This incarnation is over."""
        self.owner.counters.fenced += not item.future.done()
        _fail(item, Fenced())

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
        if told or self.owner.limits != self._built_for:  # the store may have learnt by itself which of its limits it was
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


def _units(waiting: deque[Item], batch: list[Item]) -> Iterator[Unit]:
    """Units that someone still waits for; `batch` gets their items."""
    for item in waiting:
        if not item.future.done():
            batch.append(item)
            yield item.unit


def _fail(item: Item, error: Exception) -> None:
    if not item.future.done():
        item.future.set_exception(error)
