"""Model 1: who owns a channel. Taking, sending, releasing, recovering, stopping, starting, resolving, resetting, and applications' gets.

Three members, one partner, one transmission queue. Every list of steps may stop behind each of its steps and go on later or never (a pause,
a crash); verdicts delete member keys, in one structure or in all; a member joins again while its old process lies paused; its initiator
dies; binds and batches are lost, or arrive after their sender has given up. Members are alike, so a new one acts only when all before it
have. In every state: the invariants; and once the rest is dead for good, one survivor brings everything to its place (invariants 1, 6, 7).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial

from model import canonical
from model.canonical import ADMIN, QUEUE, Part, joined, kv_part, part
from model.lists import CHANNEL, NAME, XQ, Lists
from model.ownership_state import Bounds, Budget, Prepared, State
from model.partner import Binding, Deliver, Partner
from model.search import Move
from model.snapshot import Snapshot
from model.walks import Answer, Done, Got, Node, Raised, Recipe, Walks, not_reached
from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Commit, Me, Place, Read, Sight
from qsg.rules.unit import Fenced
from qsg.store.contract import Compare, Delete, Op, Put, created_at, unchanged

CARE = frozenset({"run", "own", "start", "give"})
"""Lists of a channel's caretaker: a process has one at a time."""
LANE = "P.0"


class Ownership:
    def __init__(self, bounds: Bounds) -> None:
        self.limits = bounds
        self.name = bounds.name
        self.bounds = str(bounds)
        self.names = ("admin", "app") if bounds.apart else ("admin",)
        self.place = Place(CHANNEL, "admin", self.names[-1])
        self.of = Lists(self.place)
        self.walks = Walks(self.of.make)
        self.lists = [name for name, _ in bounds.lists]
        self._settled: set[bytes] = set()

    # The beginning

    def initial(self) -> State:
        mes: list[Me] = []
        stores = self._apply(tuple(Snapshot() for _ in self.names), self.names[-1], [Put(keys.queue_state(XQ), b"")])
        for member in "XYZ"[: self.limits.members]:
            stores, me = self._join(stores, member)
            mes.append(me)
        b = self.limits
        budget = Budget(tuple(n for _, n in b.lists), b.walks, b.verdicts, b.joins, b.initiators, b.losses, b.cuts, b.puts)
        state = State(stores, Partner(), tuple(mes), budget)
        if b.primed:
            after = Survivor(self, state, mes[0]).list("run")
            state = replace(state, stores=after.stores, partner=after.partner)
        for size in b.messages:
            state = self._put(state, size)
        return state

    def _put(self, state: State, size: int) -> State:
        """A segment of `size` messages, in one transaction with the lane's totals."""
        first = state.put + 1
        ids = range(first, first + size)
        entries = [pb.Entry(message_id=b"m%d" % i, size=1, payload_size=1, offset=i - first) for i in ids]
        header = pb.SegmentHeader(entries=entries, bodies=b"x" * size, bodies_size=size, destinations=[pb.Destination(queue="T")])
        totals = pb.Totals(put=ids[-1], put_bytes=ids[-1])
        ops: list[Op] = [Put(keys.header(XQ, 0, keys.suffix(LANE, 1, first)), header.SerializeToString())]
        ops.append(Put(keys.lane_totals(XQ, LANE), totals.SerializeToString()))
        return replace(state, stores=self._apply(state.stores, self.names[-1], ops), put=ids[-1])

    def _apply(self, stores: tuple[Snapshot, ...], name: str, ops: Sequence[Op], compares: Sequence[Compare] = ()) -> tuple[Snapshot, ...]:
        at = self.names.index(name)
        after, result = stores[at].txn(compares, ops)
        assert result.succeeded
        return (*stores[:at], after, *stores[at + 1 :])

    def _join(self, stores: tuple[Snapshot, ...], member: str) -> tuple[tuple[Snapshot, ...], Me]:
        """The admin structure first; the old key is deleted before the new one is made."""
        incarnations, value = {}, pb.MemberRecord(member=member).SerializeToString()
        for name in self.names:
            stores = self._apply(stores, name, [Delete(keys.member(member))])
            stores = self._apply(stores, name, [Put(keys.member(member), value)])
            incarnations[name] = self._store(stores, name).revision
        stores = self._initiator(stores, member, incarnations["admin"])
        return stores, Me(member, incarnations, stores[0].revision)

    def _initiator(self, stores: tuple[Snapshot, ...], member: str, incarnation: int) -> tuple[Snapshot, ...]:
        record = pb.InitiatorRecord(member=member)
        if not self.limits.apart:
            record.incarnation, record.process = incarnation, "p"
        return self._apply(stores, "admin", [Put(keys.initiator(member), record.SerializeToString())])

    def _store(self, stores: tuple[Snapshot, ...], name: str) -> Snapshot:
        return stores[self.names.index(name)]

    # Moves

    def moves(self, state: State) -> Iterator[Move]:
        for i, (node, cut) in enumerate(state.walks):
            yield from self._walk_moves(state, i, node, cut)
        for i, item in enumerate(state.late):
            yield f"R: a late {item.what} arrives (#{i})", partial(self._arrive, state, i)
        budget = state.budget
        if budget.puts:
            yield f"an application puts m{state.put + 1}", lambda: self._put_more(state)
        for i, me in enumerate(state.mes[: state.used + 1]):
            yield from self._starts(state, i, me)
            if budget.verdicts:
                yield from self._verdicts(state, i, me)
            if budget.joins:
                yield f"{me.member} restarts", partial(self._restart, state, i)
            if budget.initiators and self._lives(state, "admin", me):
                yield f"{me.member}: its initiator dies, another joins", partial(self._new_initiator, state, i)

    def _put_more(self, state: State) -> State:
        return replace(self._put(state, 1), budget=state.budget._replace(puts=state.budget.puts - 1))

    def _starts(self, state: State, i: int, me: Me) -> Iterator[Move]:
        if not state.budget.walks or len(state.walks) >= self.limits.at_once:
            return
        busy = any(
            (n.recipe.origin or n.recipe.name) in CARE and n.recipe.me.incarnations == me.incarnations and not cut for n, cut in state.walks
        )
        for which, name in enumerate(self.lists):
            if state.budget.lists[which] and not (busy and name in CARE):
                yield f"{me.member}: {name}", partial(self._begin, state, i, me, which)

    def _begin(self, state: State, i: int, me: Me, which: int) -> State:
        left = list(state.budget.lists)
        left[which] -= 1
        tag = self.limits.walks - state.budget.walks
        node = self.walks.start(Recipe(self.lists[which], me, tag))
        budget = state.budget._replace(lists=tuple(left), walks=state.budget.walks - 1)
        return replace(state, walks=(*state.walks, (node, False)), budget=budget, used=max(state.used, i + 1))

    def _verdicts(self, state: State, i: int, me: Me) -> Iterator[Move]:
        choices = [self.names] + ([(name,) for name in self.names] if self.limits.half_dead and len(self.names) > 1 else [])
        for names in choices:
            if any(self._lives(state, name, me) for name in names):
                where = "" if names == self.names else f" in {names[0]} only"
                yield f"verdict: {me.member} is dead{where}", partial(self._kill, state, i, me, names)

    def _kill(self, state: State, i: int, me: Me, names: Sequence[str]) -> State:
        stores = state.stores
        for name in names:
            stores = self._apply(stores, name, [Delete(keys.member(me.member))])
        budget = state.budget._replace(verdicts=state.budget.verdicts - 1)
        return self._without_fenced(replace(state, stores=stores, budget=budget, used=max(state.used, i + 1)))

    def _restart(self, state: State, i: int) -> State:
        stores, me = self._join(state.stores, state.mes[i].member)
        mes = (*state.mes[:i], me, *state.mes[i + 1 :])
        budget = state.budget._replace(joins=state.budget.joins - 1)
        return self._without_fenced(replace(state, stores=stores, mes=mes, budget=budget, used=max(state.used, i + 1)))

    def _without_fenced(self, state: State) -> State:
        return replace(state, walks=tuple(walk for walk in state.walks if not self._hopeless(state, walk[0])))

    def _hopeless(self, state: State, node: Node) -> bool:
        """A commit of an incarnation that is gone fails for ever, and ends its list, without a trace."""
        return isinstance(node.request, Commit) and not self._lives(state, node.request.structure, node.recipe.me)

    def _new_initiator(self, state: State, i: int) -> State:
        me = state.mes[i]
        stores = self._initiator(state.stores, me.member, me.incarnations["admin"])
        mes = (*state.mes[:i], Me(me.member, me.incarnations, stores[0].revision), *state.mes[i + 1 :])
        budget = state.budget._replace(initiators=state.budget.initiators - 1)
        return replace(state, stores=stores, mes=mes, budget=budget, used=max(state.used, i + 1))

    def _arrive(self, state: State, i: int) -> State:
        item = state.late[i]
        partner, _ = state.partner.bind(item) if isinstance(item, Binding) else state.partner.deliver(item)
        return replace(state, partner=partner, late=(*state.late[:i], *state.late[i + 1 :]))

    # One step of a list

    def _walk_moves(self, state: State, i: int, node: Node, cut: bool) -> Iterator[Move]:
        who = f"{node.recipe.me.member}: {node.recipe.name}.{node.recipe.tag}"
        request = node.request
        if isinstance(request, Read):
            yield f"{who} reads {request.structure}", lambda: self._read(state, i, request)
        elif isinstance(request, Commit):
            yield f"{who} commits {request.unit.label!r}", lambda: self._commit(state, i)
        else:
            yield from self._partner_moves(state, i, node, who)
        if state.budget.cuts and not cut:
            yield f"{who} is cut off", lambda: self._cut(state, i)

    def _partner_moves(self, state: State, i: int, node: Node, who: str) -> Iterator[Move]:
        request = node.request
        item = request if isinstance(request, Deliver) else Binding(request.bind.SerializeToString(deterministic=True))
        me = node.recipe.me
        now = next(m for m in state.mes if m.member == me.member)
        alone = now.incarnations == me.incarnations and now.initiator != me.initiator
        if not alone:
            yield f"{who}: {item.what} at R", lambda: self._at_partner(state, i, item)
        if alone or state.budget.losses:
            left = state.budget.losses - (0 if alone else 1)
            yield f"{who}: {item.what} gets no answer", lambda: self._no_answer(state, i, item, left)

    def _at_partner(self, state: State, i: int, item: Deliver | Binding) -> State:
        partner, answer = state.partner.bind(item) if isinstance(item, Binding) else state.partner.deliver(item)
        return self._on(replace(state, partner=partner), i, answer)

    def _no_answer(self, state: State, i: int, item: Deliver | Binding, left: int) -> State:
        after = self._on(state, i, not_reached(Reason.HOST_UNREACHABLE, "no answer"))
        return replace(after, late=(*after.late, item), budget=state.budget._replace(losses=left))

    def _cut(self, state: State, i: int) -> State:
        node, _ = state.walks[i]
        rest = (*state.walks[:i], *([(node, True)] if isinstance(node.request, Commit) else []), *state.walks[i + 1 :])
        return replace(state, walks=rest, budget=state.budget._replace(cuts=state.budget.cuts - 1))

    def _on(self, state: State, i: int, answer: Answer, store: int = QUEUE) -> State:
        """The walk goes on with its answer; one that has ended is forgotten."""
        node, cut = state.walks[i]
        after = None if cut else self.walks.step(node, answer, store)
        kept = () if after is None or after.done or self._hopeless(state, after) else ((after, False),)
        return replace(state, walks=(*state.walks[:i], *kept, *state.walks[i + 1 :]))

    def _read(self, state: State, i: int, request: Read) -> State:
        store = self._store(state.stores, request.structure)
        answer = Got(store.revision, tuple(store.read(get) for get in request.gets))
        return self._on(state, i, answer, self.names.index(request.structure))

    def _commit(self, state: State, i: int) -> State:
        node, _ = state.walks[i]
        if node.prepared is None:
            node.prepared = self._prepare(node)
        prepared: Prepared = node.prepared
        me, store = node.recipe.me, state.stores[prepared.store]
        if prepared.refusal is not None:
            return self._on(state, i, prepared.refusal)
        if not self._lives(state, self.names[prepared.store], me):
            return self._on(state, i, Raised(Fenced))
        ops = [*prepared.ops, *self._totals(store, prepared.taken)]
        after, result = store.txn(prepared.compares, ops)
        stores = (*state.stores[: prepared.store], after, *state.stores[prepared.store + 1 :])
        answer = Done(
            result.succeeded, result.revision, tuple(after.get(key) for key in prepared.cells), () if result.succeeded else (b"",)
        )
        moved = self._on(replace(state, stores=stores), i, answer, prepared.store)
        if result.succeeded:
            _check_holder(node, store, after)
            moved = self._witness(state, moved, prepared.label)
        return moved

    def _prepare(self, node: Node) -> Prepared:
        commit: Commit = node.request
        me, unit, at = node.recipe.me, commit.unit, self.names.index(commit.structure)
        assert not unit.puts
        compares = [created_at(keys.member(me.member), me.incarnations[commit.structure]), *unit.compares]
        ops: list[Op] = list(unit.ops)
        refusal = None
        for change in unit.changes:
            if change.guarded:
                compares.append(unchanged(change.cell.key, change.cell.mod_revision))
            try:
                value = change.apply(change.cell.value)
            except Refusal as error:
                refusal = Raised(Refusal, (error.reason, error.detail))
                break
            ops.append(Delete(change.cell.key) if value is None else Put(change.cell.key, value))
        cells = tuple(change.cell.key for change in unit.changes)
        return Prepared(at, compares, ops, cells, refusal, sum(t.messages for t in unit.taken), unit.label)

    def _totals(self, store: Snapshot, taken: int) -> list[Op]:
        """What the lane of whoever took messages says (one lane for all: nothing depends on whose it is)."""
        if not taken:
            return []
        key = keys.lane_totals(XQ, "got.0")
        had = store.get(key)
        totals = pb.Totals.FromString(had.value if had is not None else b"")
        totals.got += taken
        totals.got_bytes += taken
        return [Put(key, totals.SerializeToString())]

    def _witness(self, before: State, after: State, label: str) -> State:
        """What holds from one state to the next."""
        status.check(status.state_of(_entry(self._value(before, 0, keys.status_out(NAME)))), status.state_of(self._entry(after)))
        assert self._fence(after).epoch >= self._fence(before).epoch, "the epoch went back"
        if label == "unlock" and self._fence(before).open and not self._fence(after).open:
            assert not self._left(before), "an idle channel ends while a message waits (invariant 6)"
        if label.endswith(" is dead"):
            member = keys.member(label.removesuffix(" is dead"))
            assert after.stores[0].get(member) is None, f"{label} is carried out against a living one (invariant 3)"
        if label.startswith("get "):
            after = replace(after, got=(*after.got, label.removeprefix("get ")))
        if label == "resolve backout":
            after = replace(after, risky=True)
        return self._tell(after) if label == "hand over" else after

    def _tell(self, state: State) -> State:
        """The receiver of a gift is told what the transaction has written, some time."""
        entry, store = self._entry(state), state.stores[0]
        assert entry is not None
        i, me = next((i, me) for i, me in enumerate(state.mes) if me.member == entry.owner)
        cells = keys.status_out(NAME), keys.lock(XQ), keys.sender_fence(XQ), keys.sender_progress(XQ)
        told = Sight(store.revision, {key: kv for key in cells if (kv := store.get(key)) is not None})
        try:
            recipe = self.of.told(me, told)
        except Refusal as refusal:
            raise AssertionError(f"a gift that is not its receiver's: {refusal.detail}") from refusal
        node = self.walks.start(recipe)
        return replace(state, walks=(*state.walks, (node, False)), used=max(state.used, i + 1))

    # What is there

    def _value(self, state: State, store: int, key: bytes) -> bytes | None:
        kv = state.stores[store].get(key)
        return None if kv is None else kv.value

    def _entry(self, state: State) -> pb.ChannelStatus | None:
        return _entry(self._value(state, 0, keys.status_out(NAME)))

    def _fence(self, state: State) -> pb.SenderFence:
        return _fence(self._value(state, -1, keys.sender_fence(XQ)))

    def _lives(self, state: State, structure: str, me: Me) -> bool:
        kv = self._store(state.stores, structure).get(keys.member(me.member))
        return kv is not None and kv.create_revision == me.incarnations[structure]

    def _left(self, state: State) -> list[str]:
        """Messages on the queue."""
        store = state.stores[-1]
        left: list[str] = []
        for kv in sorted(store.under(keys.headers(XQ)), key=lambda kv: kv.create_revision):
            record = store.get(kv.key.replace(b"/h/", b"/c/", 1))
            left += _messages(kv.value, b"" if record is None else record.value)
        return left

    # Invariants

    def check(self, state: State) -> None:
        self._check_lock(state)
        self._check_messages(state)
        self._check_settles(state)

    def _check_lock(self, state: State) -> None:
        value, fence = self._value(state, -1, keys.lock(XQ)), self._fence(state)
        lock = None if value is None else _lock(value)
        place = self.place.structure
        alive = lock is not None and self._lives(state, place, Me(lock.member, {place: lock.incarnation}))
        held = [(node, node.note) for node, _ in state.walks if node.note is not None]
        writers = [n for n, (mine, epoch) in held if alive and value == mine and fence.epoch == epoch]
        assert len(writers) <= 1, "two instances can write (invariant 3)"
        if alive:
            assert lock is not None and lock.epoch == fence.epoch, "a live lock of another epoch than the fence (invariant 3)"
        entry = self._entry(state)
        if entry is not None and entry.state == pb.STOPPED:
            assert not alive, "a stopped channel's queue is locked (invariant 5)"
            assert entry.in_doubt or state.risky or not fence.open, "a stopped channel's queue is open (invariant 5)"
            under_way = [node.request for node, _ in state.walks if isinstance(node.request, Deliver)]
            for item in (*under_way, *(late for late in state.late if isinstance(late, Deliver))):
                assert not state.partner.accepts(item), f"a stopped channel still moves {item.what} (invariant 5)"

    def _check_messages(self, state: State) -> None:
        committed, got, left = state.partner.committed, state.got, self._left(state)
        if not state.risky:
            consumed = (*committed, *got)
            twice = sorted({m for m in consumed if consumed.count(m) > 1})
            assert not twice, f"{', '.join(twice)} delivered twice (invariant 1)"
            assert list(committed) == sorted(committed), "out of order (invariant 2)"
        lost = {f"m{i}" for i in range(1, state.put + 1)} - {*committed, *got, *left}
        assert not lost, f"{', '.join(sorted(lost))} lost (invariant 1)"
        totals = [pb.Totals.FromString(kv.value) for kv in state.stores[-1].under(keys.totals(XQ))]
        depth = sum(t.put - t.got for t in totals)
        assert depth == len(left), f"the totals say that {depth} messages are on the queue, {len(left)} are (exact depth)"

    def _check_settles(self, state: State) -> None:
        """Whatever the survivor finds: it must bring the channel to its end by itself."""
        digest = canonical.digest(self._world(state), one_store=not self.limits.apart)
        if digest in self._settled:
            return
        self._settled.add(digest)
        stores = state.stores
        for me in state.mes:
            for name in self.names:
                stores = self._apply(stores, name, [Delete(keys.member(me.member))])
        stores, me = self._join(stores, state.mes[0].member)
        Survivor(self, replace(state, stores=stores, mes=(me, *state.mes[1:])), me).run()

    # Identity

    def _world(self, state: State) -> list[Part]:
        parts = [kv_part(store.kvs[key], at) for at, store in enumerate(state.stores) for key in store.order]
        return [*parts, state.partner.part(), part((state.got, state.put, state.risky))]

    def digest(self, state: State) -> bytes:
        parts = self._world(state)
        parts += [_me_part(me) for me in state.mes]
        parts += [item.part() for item in state.late]
        walks = sorted(state.walks, key=lambda w: (w[0].canon.shape, w[1]))
        parts += [joined(("cut", cut), (node.canon,)) for node, cut in walks]
        parts.append(part((state.budget, state.used)))
        return canonical.digest(parts, one_store=not self.limits.apart)


def _check_holder(node: Node, before: Snapshot, after: Snapshot) -> None:
    """A sender confirms only under the lock that it took."""
    key = keys.sender_progress(XQ)
    if node.note is None or before.get(key) == after.get(key):
        return
    lock = before.get(keys.lock(XQ))
    assert lock is not None and lock.value == node.note[0], "messages are confirmed by who does not hold the lock (invariant 3)"


class Survivor:
    """Everything else is dead for good; one member starts anew, and the partner answers."""

    def __init__(self, model: Ownership, state: State, me: Me) -> None:
        self.model, self.me, self.tag = model, me, 1_000
        self.state = replace(state, walks=(), late=())

    def run(self) -> None:
        for _ in range(4):
            entry = self.model._entry(self.state)
            if entry is None:
                break
            self.list("start" if entry.state == pb.STOPPED else "own")
        self.list("run")
        model, state = self.model, self.state
        what = "the survivor cannot bring the channel to its end (invariants 6, 7)"
        assert model._entry(state) is None, f"{what}: the entry is {status.name(status.state_of(model._entry(state)))}"
        assert model._value(state, -1, keys.lock(XQ)) is None, f"{what}: the lock is left"
        assert not model._fence(state).open, f"{what}: the queue is open"
        assert not model._left(state), f"{what}: {model._left(state)} left"
        model._check_messages(state)

    def list(self, name: str) -> State:
        """One list, to its end."""
        self.tag += 1
        node = self.model.walks.start(Recipe(name, self.me, self.tag))
        self.state = replace(self.state, walks=((node, False),))
        for _ in range(200):
            if not self.state.walks:
                return self.state
            _, make = next(self.model._walk_moves(self.state, 0, self.state.walks[0][0], False))
            self.state = make()
        raise AssertionError(f"{name} does not end")


def _me_part(me: Me) -> Part:
    revisions = [revision for _, revision in sorted(me.incarnations.items())]
    return part("me", (ADMIN, *([QUEUE] if len(revisions) > 1 else []), ADMIN), (*revisions, me.initiator))


@lru_cache(maxsize=100_000)
def _entry(value: bytes | None) -> pb.ChannelStatus | None:
    return status.parse(value)


@lru_cache(maxsize=10_000)
def _fence(value: bytes | None) -> pb.SenderFence:
    return pb.SenderFence.FromString(value or b"")


@lru_cache(maxsize=10_000)
def _lock(value: bytes) -> pb.Lock:
    return pb.Lock.FromString(value)


@lru_cache(maxsize=10_000)
def _messages(header: bytes, record: bytes) -> tuple[str, ...]:
    """Ids in a segment that are not gone."""
    gone = int.from_bytes(pb.Consumption.FromString(record).gone, "little")
    entries = pb.SegmentHeader.FromString(header).entries
    return tuple(e.message_id.decode() for i, e in enumerate(entries) if not gone >> i & 1)
