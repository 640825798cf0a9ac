"""Model 4: a receiving group. Sessions of one stream bind at any member, one after the other or late, and commit batches with the record.

Binding is the real `Receiver._bind`, the batch goes through the real `Course`, `record_after` and `is_base`, and compares what a `Bond`
compares. The sender is honest: each instance sends what lies behind the record that it was answered. Old instances lie paused with a batch
half way, members are declared dead. Every position is committed once, in order, and the record says exactly what is there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

from model import canonical
from model.canonical import ADMIN, joined, kv_part, part
from model.search import Move
from model.snapshot import Snapshot
from model.walks import Become, Context, Done, Got, Image, Node, Raised, Recipe, Structure, Walks, drive
from qsg.manager.inflow import Bond
from qsg.manager.receiving import Receiver
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, negotiate, receiver
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Commit, Me, Read
from qsg.rules.unit import Change, CompareFailed, Fenced, Unit
from qsg.store.contract import Compare, Delete, Get, Op, Put, created_at, unchanged

STREAM, STRUCTURE = b"stream", "app"
CHANNEL = Channel(name="FROM.R", type="receiver")
OFFER = negotiate.offer(CHANNEL)
TARGET = keys.headers("T")


class Sessions:
    """Inbound sessions as lists."""

    def make(self, recipe: Recipe, context: Context) -> Any:
        return getattr(self, recipe.name)(context)

    def bind(self, ctx: Context) -> Any:
        epoch, instance, messages = ctx.recipe.args
        request = channel_pb2.Bind(channel=CHANNEL.name, sender="R", stream=STREAM, epoch=epoch, instance=instance, parameters=OFFER)
        world = SimpleNamespace(id=lambda size: ctx.draw(), wall_ms=lambda: 1_000)
        services = SimpleNamespace(member=ctx.me.member, world=world)
        inbound = Receiver(cast(Any, SimpleNamespace(initiator=0)), cast(Any, services), cast(Any, None))
        structure = cast(Any, Structure(STRUCTURE, ctx.me))
        revision, progress = yield from drive(inbound._bind(structure, request, OFFER.sequence_wrap))
        return Become("batch", (Bound(revision, Image.of(progress, ADMIN)), 0, messages))

    def batch(self, ctx: Context) -> Any:
        """The next batch of an honest sender, which goes on behind what was committed before."""
        bound, number, messages = ctx.recipe.args
        progress = bound.progress.cell()
        before = pb.Progress.FromString(progress.value or b"")
        position = _last(before) + 1
        if position > messages:
            return None
        course = receiver.Course.after(before, OFFER)
        course.number = number
        arrivals = course.accept(_batch(number + 1, position, before.sequence))
        after = receiver.record_after(before, arrivals, OFFER.sequence_wrap, luwid="u").SerializeToString(deterministic=True)
        structure = cast(Any, Structure(STRUCTURE, ctx.me))
        bond = Bond(CHANNEL, OFFER, structure, keys.receiver_fence(STREAM), bound.revision, "")

        def apply(present: bytes | None) -> bytes:
            if not receiver.is_base(None if present is None else pb.Progress.FromString(present), before):
                raise Refusal(Reason.CHANGED_MEANWHILE, "the record is not the one that this batch follows")
            return after

        put = Put(TARGET + b"%d.%d.%d" % (position, ctx.recipe.tag, number), b"")
        unit = Unit(f"batch of message {position}", compares=bond.ours(), changes=[Change(progress, apply)], ops=[put])
        try:
            yield Commit(STRUCTURE, unit)
        except CompareFailed:
            yield from self._again(structure, bond, progress, unit)
        return Become("batch", (Bound(bound.revision, Image.of(progress, ADMIN)), number + 1, messages))

    def _again(self, structure: Any, bond: Bond, progress: Any, unit: Unit) -> Generator[Any, Any, None]:
        """As `Inflow._again`: fenced off by a newer bind, or built anew on the record as it is."""
        if bond.ours():
            _, (result,) = yield Read(STRUCTURE, (Get(bond.fence),))
            if result.first is None or result.first.mod_revision != bond.fence_revision:
                raise Refusal(Reason.EPOCH_TOO_LOW, "a newer bind came in")
        yield from drive(structure.refresh(progress))
        yield Commit(STRUCTURE, unit)


def _batch(number: int, position: int, sequence: int) -> channel_pb2.Batch:
    header = pb.SegmentHeader(entries=[pb.Entry(message_id=b"m%d" % position, payload_size=1)], destinations=[pb.Destination(queue="T")])
    wire = channel_pb2.WireSegment(create_revision=1, suffix=b"A.0/%d" % position, header=header.SerializeToString())
    return channel_pb2.Batch(number=number, luwid="u", first_sequence=sequence + 1, messages=1, segments=[wire])


def _last(record: pb.Progress) -> int:
    """The message that a record covers, 0 = none."""
    return int(record.confirmed[0].suffix.rsplit(b"/", 1)[1]) if 0 in record.confirmed else 0


@dataclass(frozen=True, slots=True)
class Bound:
    """A session behind its bind: where it wrote the fence, and the record as it knows it."""

    revision: int
    progress: Image

    def part(self) -> canonical.Part:
        return joined("bound", [part("fence", (ADMIN,), (self.revision,)), self.progress.part()])


@dataclass(frozen=True)
class Bounds:
    name: str
    members: int = 2
    binds: tuple[tuple[int, int], ...] = ((1, 1), (1, 2), (2, 1))
    """(epoch, instance) of each, in the order in which the sender makes them; each arrives whenever it does."""
    messages: int = 2
    verdicts: int = 1

    def __str__(self) -> str:
        binds = ", ".join(map(str, self.binds))
        return f"{self.members} receiving members, binds {binds}, messages {self.messages}, verdicts ≤{self.verdicts}"


class Budget(NamedTuple):
    binds: tuple[int, ...]
    """Not yet arrived."""
    verdicts: int


@dataclass(frozen=True, slots=True)
class State:
    store: Snapshot
    mes: tuple[Me, ...]
    budget: Budget
    sessions: tuple[Node, ...] = ()


class Receiving:
    def __init__(self, bounds: Bounds) -> None:
        self.limits, self.name, self.bounds = bounds, bounds.name, str(bounds)
        self.walks = Walks(Sessions().make)

    def initial(self) -> State:
        store, mes = Snapshot(), []
        for member in "XYZ"[: self.limits.members]:
            store, me = self._join(store, member)
            mes.append(me)
        return State(store, tuple(mes), Budget(tuple(range(len(self.limits.binds))), self.limits.verdicts))

    def _join(self, store: Snapshot, member: str) -> tuple[Snapshot, Me]:
        store, _ = store.txn((), [Delete(keys.member(member))])
        store, _ = store.txn((), [Put(keys.member(member), b"")])
        return store, Me(member, {STRUCTURE: store.revision})

    def moves(self, state: State) -> Iterator[Move]:
        for i, node in enumerate(state.sessions):
            who = f"{node.recipe.me.member}: session {node.recipe.tag}"
            if isinstance(node.request, Read):
                yield f"{who} reads", partial(self._read, state, i)
            else:
                yield f"{who} commits {node.request.unit.label!r}", partial(self._commit, state, i)
        for which in state.budget.binds:
            for me in state.mes:
                yield f"bind {self.limits.binds[which]} arrives at {me.member}", partial(self._begin, state, which, me)
        if state.budget.verdicts:
            for me in state.mes:
                if state.store.get(keys.member(me.member)) is not None:
                    yield f"verdict: {me.member} is dead", partial(self._kill, state, me)

    def _begin(self, state: State, which: int, me: Me) -> State:
        node = self.walks.start(Recipe("bind", me, which, (*self.limits.binds[which], self.limits.messages)))
        budget = state.budget._replace(binds=tuple(b for b in state.budget.binds if b != which))
        return replace(state, budget=budget, sessions=(*state.sessions, node))

    def _kill(self, state: State, me: Me) -> State:
        store, _ = state.store.txn((), [Delete(keys.member(me.member))])
        return replace(state, store=store, budget=state.budget._replace(verdicts=state.budget.verdicts - 1))

    def _on(self, state: State, i: int, answer: Any) -> State:
        node = self.walks.step(state.sessions[i], answer, ADMIN)
        return replace(state, sessions=(*state.sessions[:i], *(() if node.done else (node,)), *state.sessions[i + 1 :]))

    def _read(self, state: State, i: int) -> State:
        request = state.sessions[i].request
        return self._on(state, i, Got(state.store.revision, tuple(state.store.read(get) for get in request.gets)))

    def _commit(self, state: State, i: int) -> State:
        node = state.sessions[i]
        unit: Unit = node.request.unit
        mine = created_at(keys.member(node.recipe.me.member), node.recipe.me.incarnations[STRUCTURE])
        if not state.store.holds(mine):
            return self._on(state, i, Raised(Fenced))
        if node.prepared is None:
            node.prepared = self._prepared(unit)  # once: the walk's own answer brings its cells up to date
        compares, ops, refusal = node.prepared
        if refusal is not None:
            return self._on(state, i, refusal)
        before = self._fence(state.store)
        store, result = state.store.txn([mine, *compares], ops)
        assert self._fence(store) >= before, "the receiver's fence went back (invariant 4)"
        cells = tuple(store.get(change.cell.key) for change in unit.changes)
        return self._on(replace(state, store=store), i, Done(result.succeeded, result.revision, cells))

    def _prepared(self, unit: Unit) -> tuple[list[Compare], list[Op], Raised | None]:
        compares, ops = list(unit.compares), list[Op](unit.ops)
        for change in unit.changes:
            compares.append(unchanged(change.cell.key, change.cell.mod_revision))
            try:
                value = change.apply(change.cell.value)
            except Refusal as error:
                return compares, ops, Raised(Refusal, (error.reason, error.detail))
            ops.append(Delete(change.cell.key) if value is None else Put(change.cell.key, value))
        return compares, ops, None

    def _fence(self, store: Snapshot) -> tuple[int, int]:
        kv = store.get(keys.receiver_fence(STREAM))
        fence = pb.ReceiverFence.FromString(kv.value if kv is not None else b"")
        return fence.epoch, fence.instance

    def check(self, state: State) -> None:
        self._check_messages(state)
        if state.budget.binds:
            return
        store, me = self._join(state.store, "X")  # a last session, undisturbed, brings the rest
        node = self.walks.start(Recipe("bind", me, 99, (99, 1, self.limits.messages)))
        last = replace(state, store=store, sessions=(node,))
        for _ in range(100):
            if not last.sessions:
                break
            last = self._read(last, 0) if isinstance(last.sessions[0].request, Read) else self._commit(last, 0)
        there = self._check_messages(last)
        assert there == list(range(1, self.limits.messages + 1)), f"a new session brings only {there} (invariants 1, 6)"

    def _check_messages(self, state: State) -> list[int]:
        kvs = sorted(state.store.under(TARGET), key=lambda kv: kv.create_revision)
        there = [int(kv.key[len(TARGET) :].split(b".")[0]) for kv in kvs]
        assert len(set(there)) == len(there), f"committed twice: {there} (invariants 1, 4)"
        assert there == sorted(there), f"out of order: {there} (invariant 2)"
        kv = state.store.get(keys.receiver_progress(STREAM))
        record = pb.Progress.FromString(kv.value if kv is not None else b"")
        last = _last(record)
        assert there == list(range(1, last + 1)), f"the record says {last}, {there} are there (invariants 1, 4)"
        return there

    def digest(self, state: State) -> bytes:
        parts = [kv_part(state.store.kvs[key], ADMIN) for key in state.store.order]
        parts += [node.canon for node in sorted(state.sessions, key=lambda n: n.canon.shape)]
        return canonical.digest([*parts, part(state.budget)], one_store=True)
