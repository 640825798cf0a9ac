"""A small synchronous group: stores, members and a partner, for tests of lists of steps.

`Model.step` carries out one step of a list and checks the invariants; lists may be left lying behind any step and taken up again, as a
paused process does. The partner R keeps one record a stream and takes a batch only from the session that it bound last.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.definitions import Channel
from qsg.rules.ownership import Held
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Commit, FenceAtPartner, Me, PartnerNotReached, Place, Read, Sight, Step, Steps, look, record, swap
from qsg.rules.unit import Cell, Committed, CompareFailed, Fenced, NewMessage, NewSegment, Taken, Unit
from qsg.store.contract import Delete, Get, KeyValue, Op, Put, Target, TxnResult, created_at, get_prefix, unchanged
from qsg.store.mvcc import Mvcc

CHANNEL = Channel(name="TO.R", type="sender", transmission_queue="XQ", connection_names=("r:1414",), partner="R")


@dataclass
class Deliver:
    """A batch of one message on a session that was bound with (stream, epoch, instance)."""

    stream: bytes
    epoch: int
    instance: int
    position: pb.Position
    priority: int


@dataclass
class Partner:
    """R: fences and records by stream, and what it has committed, in order."""

    reachable: bool = True
    fences: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    records: dict[bytes, pb.Progress] = field(default_factory=dict)
    committed: list[bytes] = field(default_factory=list)

    def bind(self, bind: channel_pb2.Bind) -> channel_pb2.Bound:
        if not self.reachable:
            raise PartnerNotReached(Reason.HOST_UNREACHABLE, "connection refused")
        seen = self.fences.get(bind.stream)
        if seen is None and bind.bound_before:
            raise PartnerNotReached(Reason.NO_RECORD, "no record of the stream")
        if seen is not None and (bind.epoch, bind.instance) <= seen:
            raise PartnerNotReached(Reason.EPOCH_TOO_LOW, "an older instance", seen[0])
        self.fences[bind.stream] = (bind.epoch, bind.instance)
        return channel_pb2.Bound(receiver="R", record=self.records.setdefault(bind.stream, pb.Progress()))

    def accepts(self, deliver: Deliver) -> bool:
        return self.reachable and self.fences.get(deliver.stream) == (deliver.epoch, deliver.instance)

    def deliver(self, deliver: Deliver) -> None:
        if not self.accepts(deliver):
            raise PartnerNotReached(Reason.PARTNER_CLOSED, "not the session bound last")
        self.committed.append(deliver.position.suffix)
        held = self.records[deliver.stream]
        held.confirmed[deliver.priority].CopyFrom(deliver.position)
        held.sequence += 1


class Model:
    """Structures "admin" and, when `apart`, "app"; members by name; transmission queue XQ and channel TO.R."""

    def __init__(self, *members: str, apart: bool = True) -> None:
        self.stores = {name: Mvcc() for name in (("admin", "app") if apart else ("admin",))}
        self.place = Place(CHANNEL, "admin", "app" if apart else "admin")
        self.partner = Partner()
        self.me: dict[str, Me] = {}
        self.drawn = 0
        self.now = 1_000
        self.helds: list[tuple[str, Held, pb.Lock]] = []
        self.messages = 0
        self.epoch_seen = 0
        self.told: Sight | None = None
        """What the last release left behind."""
        self.gift: Sight | None = None
        """What the last gift is told with."""
        self.risked = False
        """A resolve by force has accepted duplicates."""
        for member in members:
            self.join(member)

    # --- members

    def draw(self) -> bytes:
        self.drawn += 1
        return b"id%04d" % self.drawn

    def apply(self, structure: str, ops: Sequence[Op]) -> TxnResult:
        return self.stores[structure].apply((), ops, ())

    def join(self, member: str) -> Me:
        process = self.draw().decode()
        incarnations = {}
        for name in self.stores:  # the admin structure first
            self.apply(name, [Delete(keys.member(member))])
            value = pb.MemberRecord(member=member, process=process).SerializeToString()
            incarnations[name] = self.apply(name, [Put(keys.member(member), value)]).revision
        self.me[member] = Me(member, incarnations)
        return self.new_initiator(member)

    def new_initiator(self, member: str) -> Me:
        incarnations = self.me[member].incarnations
        joined = pb.InitiatorRecord(member=member, incarnation=incarnations["admin"], process=self.draw().decode())
        self.me[member] = Me(member, incarnations, self.apply("admin", [Put(keys.initiator(member), joined.SerializeToString())]).revision)
        return self.me[member]

    def kill(self, member: str, *structures: str) -> None:
        """The verdict against `member`, in some or all structures."""
        for name in structures or tuple(self.stores):
            self.apply(name, [Delete(keys.member(member))])

    # --- data

    def put(self, count: int = 1) -> None:
        for _ in range(count):
            self.messages += 1
            suffix = keys.suffix("X.0", 1, self.messages)
            header = pb.SegmentHeader(entries=[pb.Entry(message_id=b"%024d" % self.messages, size=1, payload_size=1)], bodies=b"x")
            totals = pb.Totals(put=self.messages, put_bytes=self.messages)
            puts = [
                Put(keys.header("XQ", 0, suffix), header.SerializeToString()),
                Put(keys.lane_totals("XQ", "X.0"), totals.SerializeToString()),
            ]
            self.apply(self.place.structure, puts)

    def entry_cell(self) -> Cell:
        """As one finds it now."""
        kv = self.stores["admin"].read(Get(keys.status_out(CHANNEL.name))).first
        cell = Cell(keys.status_out(CHANNEL.name))
        cell.saw(0 if kv is None else kv.mod_revision, kv)
        return cell

    def left(self) -> int:
        return len(self._headers())

    def _headers(self) -> Sequence[KeyValue]:
        return self.stores[self.place.structure].read(get_prefix(keys.headers("XQ"))).kvs

    def entry(self) -> pb.ChannelStatus | None:
        kv = self.stores["admin"].read(Get(keys.status_out("TO.R"))).first
        return None if kv is None else pb.ChannelStatus.FromString(kv.value)

    def state(self) -> status.State:
        return status.state_of(self.entry())

    def fence(self) -> pb.SenderFence:
        kv = self.stores[self.place.structure].read(Get(keys.sender_fence("XQ"))).first
        return pb.SenderFence() if kv is None else pb.SenderFence.FromString(kv.value)

    def lock(self) -> pb.Lock | None:
        kv = self.stores[self.place.structure].read(Get(keys.lock("XQ"))).first
        return None if kv is None else pb.Lock.FromString(kv.value)

    def lives(self, structure: str, member: str, incarnation: int) -> bool:
        kv = self.stores[structure].read(Get(keys.member(member))).first
        return kv is not None and kv.create_revision == incarnation

    # --- steps

    def run(self, me: Me, steps: Generator[Any, Any, Any], at_most: int | None = None) -> Any:
        """Runs a list to its end, or `at_most` steps of it (answers None then)."""
        walk = Walk(self, me, steps)
        while not walk.done and (at_most is None or walk.taken < at_most):
            walk.step()
        if not walk.done:
            return None
        if walk.error is not None:
            raise walk.error
        return walk.result

    def execute(self, me: Me, step: Step | Deliver) -> Any:
        if isinstance(step, Read):
            result = self.stores[step.structure].apply((), step.gets, ())
            return result.revision, [result.got(i) for i in range(len(step.gets))]
        if isinstance(step, Commit):
            before = self.state()
            revision = self._commit(me, step.structure, step.unit)
            status.check(before, self.state())  # invariant 8
            return Committed(revision)
        if isinstance(step, FenceAtPartner):
            return self.partner.bind(step.bind)
        self.partner.deliver(step)
        return None

    def _commit(self, me: Me, structure: str, unit: Unit) -> int:
        store = self.stores[structure]
        assert not any(isinstance(p, NewMessage | NewSegment) for p in unit.puts)
        if not self.lives(structure, me.member, me.incarnations[structure]):
            raise Fenced
        compares = [created_at(keys.member(me.member), me.incarnations[structure]), *unit.compares]
        ops: list[Op] = list(unit.ops)
        values: list[tuple[Cell, bytes | None]] = []
        for change in unit.changes:
            if change.guarded:
                compares.append(unchanged(change.cell.key, change.cell.mod_revision))
            after = change.apply(change.cell.value)
            values.append((change.cell, after))
            ops.append(Delete(change.cell.key) if after is None else Put(change.cell.key, after))
        for taken in unit.taken:
            lane = pb.Totals(got=taken.messages, got_bytes=taken.bytes)
            had = store.read(Get(keys.lane_totals(taken.queue, "got.0"))).first
            if had is not None:
                lane.got += pb.Totals.FromString(had.value).got
            ops.append(Put(keys.lane_totals(taken.queue, "got.0"), lane.SerializeToString()))
        result = store.apply(compares, ops, ())
        for cell, _ in values:  # "cells are as just read"
            kv = store.read(Get(cell.key)).first
            cell.value, cell.mod_revision, cell.create_revision = (
                (None, 0, 0) if kv is None else (kv.value, kv.mod_revision, kv.create_revision)
            )
        if not result.succeeded:
            raise CompareFailed(tuple(c.key for c in compares if c.target is not Target.LEASE))
        return result.revision

    # --- a sender, in short: bind, delete what the record covers, announce, then a message at a time

    def sender(self, held: Held, *, leave_last: bool = False) -> Generator[Step | Deliver, Any, Unit | None]:
        """`leave_last`: answers the last delete, for whoever releases the lock."""
        fence = pb.SenderFence.FromString(held.fence.value or b"")
        bind = channel_pb2.Bind(stream=held.stream, epoch=held.epoch, instance=1, bound_before=fence.bound_before)
        bound: channel_pb2.Bound = yield FenceAtPartner(CHANNEL, bind)
        if not fence.bound_before:
            fence.bound_before = True
            guard = unchanged(held.lock.key, held.lock.mod_revision)
            yield Commit(held.place.structure, Unit("bound", changes=[swap(held.fence, record(fence))], compares=[guard]))
        yield from self._confirm(held, bound.record)
        entry = status.altered(held.status, pb.RUNNING, self.now)
        yield Commit("admin", Unit("running", changes=[swap(held.entry, status.image(entry))]))
        while True:
            sight = yield from look(held.place.structure, get_prefix(keys.headers("XQ"), limit=1))
            if not sight.kvs:
                return None
            (kv,) = sight.kvs.values()
            _, suffix = keys.split_segment_key("XQ", kv.key)
            position = pb.Position(create_revision=kv.create_revision, suffix=suffix, index=0)
            yield Deliver(held.stream, held.epoch, 1, position, 0)
            confirmed = pb.Progress(confirmed={0: position})
            if leave_last and self.left() == 1:
                return (yield from self._confirmed(held, confirmed))
            yield from self._confirm(held, confirmed)

    def send_one(self, held: Held) -> Generator[Step | Deliver, Any, None]:
        """The first message on the queue that R does not have, if any, on the session that `held` was bound with; nothing is deleted."""
        sight = yield from look(held.place.structure, get_prefix(keys.headers("XQ")))
        for kv in sight.kvs.values():
            _, suffix = keys.split_segment_key("XQ", kv.key)
            if suffix not in self.partner.committed:
                yield Deliver(held.stream, held.epoch, 1, pb.Position(create_revision=kv.create_revision, suffix=suffix, index=0), 0)
                return

    def _confirm(self, held: Held, known: pb.Progress) -> Steps[None]:
        unit = yield from self._confirmed(held, known)
        yield Commit(held.place.structure, unit)

    def _confirmed(self, held: Held, known: pb.Progress) -> Steps[Unit]:
        """Deletes what `known` covers and rewrites the progress, comparing lock and fence."""
        sight = yield from look(held.place.structure, get_prefix(keys.headers("XQ")))
        unit = Unit("confirm", changes=[swap(held.progress, record(known))])
        unit.compares = [unchanged(cell.key, cell.mod_revision) for cell in (held.lock, held.fence)]
        for kv in sight.kvs.values():
            position = known.confirmed.get(0, pb.Position())
            if (kv.create_revision, keys.split_segment_key("XQ", kv.key)[1]) <= (position.create_revision, position.suffix):
                unit.ops.append(Delete(kv.key))
        unit.taken.append(Taken("XQ", len(unit.ops), len(unit.ops)))
        return unit

    # --- invariants

    def check(self) -> None:
        """Invariants 3, 5 and 4 (nothing committed twice), after every step."""
        writers = [held for _, held, lock in self.helds if self.can_write(held, lock)]
        assert len(writers) <= 1, "two incarnations can write"
        lock = self.lock()
        if lock is not None and self.lives(self.place.structure, lock.member, lock.incarnation):
            assert lock.epoch == self.fence().epoch
        if not self.fence().open and not self.risked:
            delivered = set(self.partner.committed)
            shown = [keys.split_segment_key("XQ", kv.key)[1] for kv in self._headers()]
            assert not delivered.intersection(shown), "an application can get what the partner has"
        assert self.risked or len(set(self.partner.committed)) == len(self.partner.committed), "delivered twice"
        epoch = self.fence().epoch
        assert epoch >= self.epoch_seen, "the epoch went back"
        self.epoch_seen = epoch
        if self.state() == pb.STOPPED:
            held_by = lock is not None and lock.channel == "TO.R" and self.lives(self.place.structure, lock.member, lock.incarnation)
            assert not held_by, "a stopped channel's queue is locked"
            assert not writers, "a stopped channel can write"
            for _, held, _ in self.helds:
                # One that gave its lock up by itself, or found it gone, has ended its session.
                bound = held.stream in self.partner.fences and self.fence().bound_before and held.lock.value is not None
                assert not bound or self.partner.fences[held.stream] != (held.epoch, 1), "a stopped channel's session is still accepted"

    def can_write(self, held: Held, mine: pb.Lock) -> bool:
        """Would a write of this instance, which compares lock, fence and its member key, succeed now?"""
        alive = self.lives(self.place.structure, mine.member, mine.incarnation)
        return alive and self.lock() == mine and self.fence().epoch == held.epoch


class Walk:
    """One list on its way: `step` carries out one step and checks the invariants behind it. What a list may end with is kept in `error`."""

    def __init__(self, model: Model, me: Me, steps: Generator[Any, Any, Any]) -> None:
        self.model, self.me, self.steps = model, me, steps
        self.taken = 0
        self.done = False
        self.result: Any = None
        self.error: Exception | None = None
        self._advance(lambda: next(steps))

    def _advance(self, go: Callable[[], Any]) -> None:
        try:
            self._next = go()
        except StopIteration as stop:
            self.done, self.result = True, stop.value
            if isinstance(stop.value, Held):
                lock = pb.Lock.FromString(stop.value.lock.value or b"")
                self.model.helds.append((self.me.member, stop.value, lock))
        except (Refusal, CompareFailed, Fenced, PartnerNotReached) as error:
            self.done, self.error = True, error

    def step(self) -> None:
        assert not self.done
        self.taken += 1
        try:
            answer = self.model.execute(self.me, self._next)
        except (Refusal, CompareFailed, Fenced, PartnerNotReached) as error:
            thrown = error
            self._advance(lambda: self.steps.throw(thrown))
        else:
            self._advance(lambda: self.steps.send(answer))
        self.model.check()
