"""A member's process as one list: it joins as `qsg.manager.membership` does, then serves a producer through one slot.

The real `_register`, `SlotDriver`, `Committer` and `Producers`, each transaction a step. What a process remembers from one request to the
next is its `Life`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from model.canonical import ADMIN, ID, Part, joined, part, record_part, record_type
from model.snapshot import Snapshot
from model.walks import Ask, Become, Context, Image, Recipe, drive
from qsg.manager import membership
from qsg.manager.committer import Committer
from qsg.manager.producers import Applied, ProducerNumber, Producers
from qsg.manager.slot_driver import Item
from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.reasons import Refusal
from qsg.rules.slots import Guard
from qsg.rules.unit import Cell, Committed, CompareFailed, Fenced, NewMessage, OutcomeUnknown, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare, Get, Limits, Op, Put, TxnResult, Unavailable, unchanged

QUEUE, PRODUCER, STRUCTURE = "Q", "P", "app"
TOGGLE = b"toggle"
NOW = 1_000


@dataclass(frozen=True, slots=True)
class Txn:
    """A copy of a transaction, sent to the store."""

    compares: tuple[Compare, ...]
    ops: tuple[Op, ...]
    else_ops: tuple[Op, ...]

    def part(self) -> Part:
        parts = [part((c.key, c.target.value, c.relation.value), (ADMIN,), (c.operand,)) for c in self.compares]
        return joined("txn", [*parts, *(_op_part(op) for op in self.ops)])

    @property
    def what(self) -> str:
        puts = [keys.split_segment_key(QUEUE, op.key) for op in self.ops if op.key.startswith(keys.headers(QUEUE))]
        return "a transaction" + (" that puts" if puts else "")

    def hopeless(self, store: Snapshot) -> bool:
        """It compares revisions of the member key and the guard that are gone for ever."""
        return not all(store.holds(c) for c in self.compares if c.key.startswith((keys.MEMBERS, keys.GUARDS)))


def _op_part(op: Op) -> Part:
    if not isinstance(op, Put):
        return part(("delete", op.key))
    kind = record_type(op.key)
    return joined(("put", op.key), [part(op.value) if kind is None else record_part(kind, op.value)])


@dataclass(frozen=True, slots=True)
class Wait:
    """The process has nothing to do."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the client is told, by request."""

    outcomes: tuple[tuple[Any, ...], ...]


class Opening(NamedTuple):
    connection: int


class Putting(NamedTuple):
    connection: int
    number: int
    attempt: int
    epoch: int

    @property
    def message(self) -> str:
        return f"{self.number}.{self.attempt}"


@dataclass(frozen=True, slots=True)
class Life:
    """What a process remembers between two requests."""

    incarnation: int
    guard: Guard
    counter: int = 0
    totals: Image | None = None
    producer: Image | None = None

    def part(self) -> Part:
        mine = part(self.guard.number, (ADMIN, ADMIN, ID), (self.incarnation, self.guard.revision, self.guard.attempt))
        images = [part(None) if image is None else image.part() for image in (self.totals, self.producer)]
        return joined(self.counter, [mine, *images])


class _World(World):
    def __init__(self, context: Context) -> None:
        super().__init__(lambda: NOW, random.Random(0))
        self._context = context

    def id(self, size: int = 8) -> bytes:
        return self._context.draw()


class _Store:
    """What a committer and a registration want of a store: each transaction is a step."""

    limits = Limits()

    async def txn(self, compares: Sequence[Compare], ops: Sequence[Op], else_ops: Sequence[Op] = (), *, timeout_s: float = 0.0) -> Any:
        return await Ask(Txn(tuple(compares), tuple(ops), tuple(else_ops)))


class _Future:
    """Of a unit: no loop is needed."""

    def __init__(self) -> None:
        self._done = False
        self.value: Any = None
        self.error: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def set_result(self, value: Committed) -> None:
        self._done, self.value = True, value

    def set_exception(self, error: BaseException) -> None:
        self._done, self.error = True, error


class _Structure:
    """A structure whose commits go through the one slot, each for itself, until it is settled."""

    name = STRUCTURE

    def __init__(self, committer: Committer) -> None:
        self.driver = committer._slots[0]

    def hand_in(self, unit: Unit) -> _Future:
        future = _Future()
        self.driver.hand_in(Item(unit, cast(Any, future)))
        return future

    async def settle(self) -> None:
        while self.driver.waiting:
            await self.driver._round()

    async def commit(self, unit: Unit, **_: Any) -> Any:
        future = self.hand_in(unit)
        await self.settle()
        if future.error is not None:
            raise future.error
        return future.value

    async def refresh(self, *cells: Cell) -> None:
        result: TxnResult = await _Store().txn((), [Get(cell.key) for cell in cells])
        for i, cell in enumerate(cells):
            cell.saw(result.revision, result.got(i).first)

    async def cell(self, key: bytes) -> Cell:
        cell = Cell(key)
        await self.refresh(cell)
        return cell


TOLD = (Refusal, CompareFailed, Fenced, OutcomeUnknown)


def _outcome(error: BaseException | None) -> str:
    match error:
        case None | Applied():
            return "committed"
        case CompareFailed():
            return "refused"
        case Refusal():
            return f"refused {error.reason.name}"
        case Fenced():
            return "fenced"
        case OutcomeUnknown():
            return "connection lost"
    raise error


class Process:
    """The lists of a process."""

    def make(self, recipe: Recipe, context: Context) -> Any:
        return getattr(self, recipe.name)(context)

    def join(self, ctx: Context) -> Any:
        record = pb.MemberRecord(member=ctx.me.member, process=str(ctx.recipe.tag))
        world, store = _World(ctx), cast(Any, _Store())
        while True:
            try:
                work = membership._register(store, record, False, world, 1, 0, 0, 0.4)
                registration = yield from drive(work)
                break
            except (membership._Again, Unavailable):
                continue
        return Become("serve", (Life(registration.incarnation, registration.guards[0]),))

    def serve(self, ctx: Context) -> Any:
        (life,) = ctx.recipe.args
        world = _World(ctx)
        committer = Committer(cast(Any, _Store()), ctx.me.member, life.incarnation, [life.guard], world)
        structure, producers = _Structure(committer), Producers(world)
        lane = structure.driver.lane
        lane.counter = life.counter
        if life.totals is not None:
            lane.totals[QUEUE] = life.totals.cell()
        if life.producer is not None:
            producers._remember(STRUCTURE, PRODUCER, life.producer.cell(), 10**9)
        requests = yield Wait()
        yield Reply((yield from drive(self._handle(structure, producers, requests))))
        if committer.is_fenced:
            return None
        known = producers._cells.get((STRUCTURE, PRODUCER))
        producer = None if known is None or not known.mod_revision else Image.of(known, ADMIN)
        totals = Image.of(lane.totals[QUEUE], ADMIN) if QUEUE in lane.totals else None
        return Become("serve", (Life(life.incarnation, structure.driver.slot.guard, lane.counter, totals, producer),))

    async def _handle(self, structure: Any, producers: Producers, requests: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
        if isinstance(requests[0], Opening):
            try:
                state = await producers.open(structure, PRODUCER, 10**9)
            except TOLD as error:
                return ((requests[0], _outcome(error), 0, 0),)
            return ((requests[0], "opened", state.epoch, state.last),)
        futures: list[_Future] = []
        for put in requests:
            number = ProducerNumber(PRODUCER, STRUCTURE, put.epoch, put.number)
            unit = Unit(put.message, changes=[await producers.change(structure, number)])
            if put.number == 1:
                unit.compares.append(unchanged(TOGGLE, 0))
            entry = pb.Entry(message_id=put.message.encode(), payload_size=1)
            unit.puts.append(NewMessage(QUEUE, 0, entry, b"x"))
            futures.append(structure.hand_in(unit))
        await structure.settle()
        return tuple((put, _outcome(future.error), 0, 0) for put, future in zip(requests, futures, strict=True))
