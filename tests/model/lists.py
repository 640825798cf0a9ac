"""What members do with the channel TO.R, as lists of steps: the rules' own lists, and the sender, getter and commands around them.

The sender is `qsg.manager.sending`'s binding, resynchronisation and deleting, with one batch under way; what follows its end is what
`qsg.manager.tenure` does. Each list looks only at its arguments and answers.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

from model.canonical import ADMIN, ID, QUEUE, Part, joined, part
from model.partner import Deliver
from model.walks import Become, Context, Image, Note, Recipe, Structure, drive
from qsg.manager.consuming import Guarded, Segment, claim_unit, live_holders
from qsg.manager.consuming import take as take_messages
from qsg.manager.flight import Mark, progress_bound
from qsg.manager.grants import Grant, open_order
from qsg.manager.link import SessionFailed
from qsg.manager.queue_store import Opened
from qsg.manager.sending import Sender
from qsg.manager.tenure import FATAL
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import batches, consume, keys, status
from qsg.rules.batches import BatchBuilder, Loaded
from qsg.rules.definitions import Channel, Queue
from qsg.rules.handover import give, given, is_gift, receiver
from qsg.rules.lanes import Position, SegmentAt
from qsg.rules.ownership import Held, Occasion, leftovers, raise_epoch, recover, release, release_idle, release_own_lock, take
from qsg.rules.reasons import Reason
from qsg.rules.steps import Commit, FenceAtPartner, Me, PartnerNotReached, Place, Read, Sight, look, swap
from qsg.rules.stopping import Resolution, StopOrder, ask_stop, carry_stop, command_start, reset_sender, resolve
from qsg.rules.unit import Cell, Change, CompareFailed, Unit
from qsg.store.contract import Get, get_prefix

NAME, XQ = "TO.R", "XQ"
CHANNEL = Channel(name=NAME, type="sender", transmission_queue=XQ, connection_names=("r:1414",), partner="R", batch_messages=1)
GROUP = "QSG"
TOLD = 100
"""Tags of lists that nobody begins: those of gifts."""
NEXT = {"X": "Y", "Y": "Z", "Z": "X"}
NOW = 1_000
List = Generator[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Grasp:
    """What the taker of a channel holds, as an argument."""

    cells: tuple[Image, ...]
    epoch: int
    stream: bytes
    request: bytes

    def held(self, place: Place) -> Held:
        entry, lock, fence, progress = (image.cell() for image in self.cells)
        return Held(place, entry, lock, fence, progress, self.epoch, self.stream, "R", self.request)

    def part(self) -> Part:
        ids = part("ids", (ID, ID), (self.stream, self.request))
        return joined(("grasp", self.epoch), [ids, *(image.part() for image in self.cells)])


@dataclass(frozen=True, slots=True)
class Positions:
    items: tuple[tuple[int, Position], ...]

    def part(self) -> Part:
        shape = tuple((priority, p.suffix, p.index) for priority, p in self.items)
        return part(shape, [QUEUE] * len(self.items), [p.create_revision for _, p in self.items])


def _noting(held: Held) -> Note:
    return Note(lambda: (held.lock.value, held.epoch) if held.lock.value else None)


class Lists:
    """Lists by name, for one place."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def make(self, recipe: Recipe, context: Context) -> List:
        made: List = getattr(self, recipe.name.replace(" ", "_"))(context)
        return made

    # Caretaking

    def run(self, ctx: Context) -> List:
        """By trigger."""
        held = yield from take(ctx.me, self.place, Occasion("trigger", NOW), ctx.draw)
        return Become("send", (self.grasp(held), 1))

    def own(self, ctx: Context) -> List:
        """Recovers what is left over, and does what the entry asks of us."""
        me = ctx.me
        prefixes = (keys.STATUS_OUT, keys.STATUS_IN, keys.MEMBERS, keys.INITIATORS)
        sight = yield from look(self.place.admin, *(get_prefix(p) for p in prefixes))
        for leftover in leftovers(me, sight):
            if leftover.entry.owner == me.member:
                yield from release_own_lock(me, self.place, leftover.cell)
            yield from recover(me, self.place.admin, leftover, NOW, 0.0, ctx.draw)
        return Become("look after")

    def look_after(self, ctx: Context) -> List:
        entry_key = keys.status_out(NAME)
        sight = yield from look(self.place.admin, Get(entry_key))
        entry = status.parse(sight.value(entry_key))
        if entry is None or (entry.owner, entry.owner_incarnation) != (ctx.me.member, ctx.me.incarnations[self.place.admin]):
            return None
        if entry.state == pb.STOPPING:
            return Become("carry on")
        return Become("take on") if entry.state in status.WANTED else None

    def take_on(self, ctx: Context) -> List:
        held = yield from take(ctx.me, self.place, Occasion("own", NOW), ctx.draw)
        return Become("send", (self.grasp(held), 1))

    def start(self, ctx: Context) -> List:
        yield from command_start(ctx.me, self.place, NOW, ctx.draw)
        return Become("take on")

    # Commands

    def stop(self, ctx: Context) -> List:
        carrier = yield from ask_stop(ctx.me, self.place, StopOrder(pb.STOPPED, True, NOW), ctx.draw)
        return Become("carry on") if carrier == ctx.me.member else None

    def end(self, ctx: Context) -> List:
        """Stop to INACTIVE."""
        carrier = yield from ask_stop(ctx.me, self.place, StopOrder(pb.INACTIVE, True, NOW), ctx.draw)
        return Become("carry on") if carrier == ctx.me.member else None

    def carry_on(self, ctx: Context) -> List:
        yield from carry_stop(ctx.me, self.place, NOW, ctx.draw, GROUP)

    def resolve(self, ctx: Context) -> List:
        yield from resolve(ctx.me, self.place, Resolution("backout"), ctx.draw, GROUP)

    def force_backout(self, ctx: Context) -> List:
        yield from resolve(ctx.me, self.place, Resolution("backout", force=True), ctx.draw, GROUP)

    def reset(self, ctx: Context) -> List:
        yield from reset_sender(ctx.me, self.place, 100)

    # A planned move

    def give(self, ctx: Context) -> List:
        """Takes it by trigger, binds, and gives it to the next member (who may hear of it: `told`) while a batch may still be sent."""
        held = yield from take(ctx.me, self.place, Occasion("trigger", NOW), ctx.draw)
        return Become("send", (self.grasp(held), 1, True))

    def give_away(self, ctx: Context) -> List:
        grasp: Grasp
        grasp, instance, number, sequence, positions, _, record = ctx.recipe.args
        held = grasp.held(self.place)
        yield _noting(held)
        yield from self._taken_over(ctx, held, instance, record)
        after = dict(positions.items)
        unsent = [rest for loaded in (yield from self._load()) if (rest := self._rest(loaded, after)) is not None]
        if not (yield from self._running(held)):
            return None
        to = yield from receiver(held, NEXT[ctx.me.member])
        if to is None or (yield from give(held, to, ctx.draw(), NOW)) is None:
            yield from release(held, lambda e: status.altered(e, pb.RECOVERING, NOW), clean=False)
            return None
        if unsent:
            built, what = self._batch(held, instance, number, sequence, unsent[0])
            yield Deliver(held.stream, held.epoch, instance, built.batch.SerializeToString(deterministic=True), what)
        return None

    def told(self, me: Me, told: Sight) -> Recipe:
        """What a start request with a gift begins, however late it arrives."""
        assert is_gift(me, self.place, told)
        held = given(me, self.place, told)
        return Recipe("send", me, TOLD + held.epoch, (self.grasp(held), 1))

    # The sender

    def send(self, ctx: Context) -> List:
        """Binds, and takes the partner's record over."""
        grasp: Grasp
        grasp, instance, *giving = ctx.recipe.args
        held = grasp.held(self.place)
        yield _noting(held)
        try:
            sender, grant = self._sender(ctx, held, instance)
            bound: channel_pb2.Bound = yield FenceAtPartner(CHANNEL, open_order(grant).bind)
            later = yield from drive(sender._resynchronise(cast(Any, SimpleNamespace(bound=bound, address=""))))
        except CompareFailed:
            return None  # fenced off: the table decides
        except (PartnerNotReached, SessionFailed) as error:
            if error.epoch_seen >= held.epoch and instance == 1 and (yield from raise_epoch(ctx.me, held, error.epoch_seen)):
                return Become("send", (self.grasp(held), 1))
            yield from self._failed(ctx, held, error)
            return None
        after = tuple((priority, Position.of(p)) for priority, p in bound.record.confirmed.items())
        record = b"" if later is None else bound.record.SerializeToString(deterministic=True)
        known = (self.grasp(held), instance, 0, bound.record.sequence, Positions(after), False, record)
        return Become("give away" if giving else "move", known)

    def move(self, ctx: Context) -> List:
        """One batch, or the end of the queue. `record`: the partner's, which is written behind the first batch."""
        grasp: Grasp
        grasp, instance, number, sequence, positions, settled, record = ctx.recipe.args
        held = grasp.held(self.place)
        yield _noting(held)
        sender, _ = self._sender(ctx, held, instance)
        after = dict(positions.items)
        try:
            pieces, unsent = [], []
            for loaded in (yield from self._load()):
                piece, rest = batches.covered(loaded, after.get(loaded.segment.priority))
                pieces += [] if piece is None else [piece]
                unsent += [] if rest is None else [rest]
            if not unsent:
                yield from self._taken_over(ctx, held, instance, record)
            if pieces and not settled and not (record and unsent):
                yield from drive(sender._commit_settled(pieces, []))
            if not unsent:
                if (yield from self._running(held)) and not (yield from release_idle(held)) and instance < 2:
                    return Become("send", (self.grasp(held), instance + 1))
                return None
            built, what = self._batch(held, instance, number, sequence, unsent[0])
            yield Deliver(held.stream, held.epoch, instance, built.batch.SerializeToString(deterministic=True), what)
            if record:
                yield from self._taken_over(ctx, held, instance, record)
                if pieces:
                    yield from drive(sender._commit_settled(pieces, []))
            yield from drive(sender._commit_settled(built.pieces, [Mark(built)]))
            after |= built.positions
        except CompareFailed:
            return None
        except PartnerNotReached as error:
            yield from self._failed(ctx, held, error)
            return None
        known = (self.grasp(held), instance, number + 1, built.last_sequence, Positions(tuple(after.items())), True, b"")
        return Become("move", known)

    def _taken_over(self, ctx: Context, held: Held, instance: int, record: bytes) -> List:
        """What `Sender._resynchronise` leaves to be written before anything is deleted."""
        if not record:
            return
        sender, grant = self._sender(ctx, held, instance)
        before = pb.Progress.FromString(grant.progress.value or b"")
        after = progress_bound(before, pb.Progress.FromString(record)).SerializeToString(deterministic=True)
        yield Commit(self.place.structure, Unit("bound", compares=sender._ours(), changes=[Change(grant.progress, lambda _: after)]))

    @staticmethod
    def _rest(loaded: Loaded, after: dict[int, Position]) -> Loaded | None:
        return batches.covered(loaded, after.get(loaded.segment.priority))[1]

    @staticmethod
    def _batch(held: Held, instance: int, number: int, sequence: int, loaded: Loaded) -> tuple[batches.Built, str]:
        builder = BatchBuilder(CHANNEL.batch_messages, CHANNEL.batch_bytes)
        builder.add(loaded, NOW)
        built = builder.finish(number + 1, f"{held.epoch}.{instance}.{number}", sequence, CHANNEL.sequence_wrap)
        return built, ", ".join(e.message_id.decode() for p in built.pieces for e in p.segment.header.entries[p.first : p.last + 1])

    def _failed(self, ctx: Context, held: Held, error: PartnerNotReached | SessionFailed) -> List:
        if error.reason in FATAL:
            yield from ask_stop(ctx.me, self.place, StopOrder(pb.STOPPED, False, NOW, int(error.reason)), ctx.draw)
            yield from release(held, lambda e: None, clean=False)
        else:
            yield from release(held, lambda e: status.altered(e, pb.RETRYING, NOW), clean=False)

    def _sender(self, ctx: Context, held: Held, instance: int) -> tuple[Sender, Grant]:
        structure = cast(Any, Structure(self.place.structure, ctx.me))
        grant = Grant(CHANNEL, structure, held.lock, held.fence, held.progress, held.epoch, instance, held.stream, GROUP)
        return Sender(grant, cast(Any, None)), grant

    def grasp(self, held: Held) -> Grasp:
        queue = ADMIN if self.place.together else QUEUE
        cells = (Image.of(held.entry, ADMIN), *(Image.of(c, queue) for c in (held.lock, held.fence, held.progress)))
        return Grasp(cells, held.epoch, held.stream, held.request)

    def _running(self, held: Held) -> Generator[Any, Any, bool]:
        before = held.status
        if before.request != held.request:
            return False
        after = status.altered(before, pb.RUNNING, NOW, epoch=held.epoch)
        value = status.image(after)
        try:
            yield Commit(self.place.admin, Unit("running", changes=[swap(held.entry, value)]))
        except CompareFailed:
            return False
        return True

    def _load(self) -> Generator[Any, Any, list[Loaded]]:
        _, (headers, records) = yield Read(self.place.structure, (get_prefix(keys.headers(XQ)), get_prefix(keys.consumptions(XQ))))
        gone = {keys.split_segment_key(XQ, kv.key, b"c"): kv.value for kv in records.kvs}
        return [Loaded(at, b"", gone=consume.gone_mask(consume.parse(gone.get((at.priority, at.suffix))))) for at in _segments(headers.kvs)]

    # An application

    def get(self, ctx: Context) -> List:
        """Gets one message of the transmission queue in a unit of work: claimed, then taken."""
        structure = cast(Any, Structure(self.place.structure, ctx.me))
        state = Cell(keys.queue_state(XQ))
        yield from drive(structure.refresh(state))
        guarded = Guarded(Opened(XQ, structure, state, Queue(name=XQ, usage="transmission", structure=self.place.structure), b""))
        gets = (*guarded.gets(), get_prefix(keys.MEMBERS), get_prefix(keys.headers(XQ)), get_prefix(keys.consumptions(XQ)))
        revision, (fence, members, headers, records) = yield Read(self.place.structure, gets)
        guarded.read(fence)
        live = live_holders(members.kvs)
        known = {kv.key: kv for kv in records.kvs}
        for at in _segments(headers.kvs):
            segment = Segment(XQ, at)
            segment.cell.saw(revision, known.get(segment.cell.key))
            mask = segment.free(live)
            if mask:
                break
        else:
            return
        first = mask & -mask
        claimer = consume.Claimer(ctx.me.member, ctx.me.incarnations[self.place.structure], ctx.draw())
        yield Commit(self.place.structure, claim_unit(guarded, {segment: first}, claimer, live))
        unit = Unit(f"get {segment.entry(first.bit_length() - 1).message_id.decode()}")
        take_messages(unit, guarded, {segment: first}, claimer=claimer)
        yield Commit(self.place.structure, unit)


def _segments(kvs: Any) -> Iterator[SegmentAt]:
    """In commit order."""
    for kv in sorted(kvs, key=lambda kv: (kv.create_revision, kv.key)):
        priority, suffix = keys.split_segment_key(XQ, kv.key)
        yield SegmentAt(priority, suffix, kv.create_revision, pb.SegmentHeader.FromString(kv.value))


__all__ = ["CHANNEL", "GROUP", "NAME", "NOW", "XQ", "Lists", "Reason"]
