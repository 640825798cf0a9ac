"""Batches, receiver and record together, as a machine: whatever instances bind, send, repeat and are cut off, each message arrives once,
in order. Real rules at both ends; the store is one instant a transaction."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import receiver, segments
from qsg.rules.batches import BatchBuilder, Loaded, below, covered
from qsg.rules.definitions import Channel
from qsg.rules.lanes import Position
from qsg.rules.negotiate import negotiate, offer
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import BindRefused, Course, Holder
from support.channel_segments import NOW, segment

CHANNEL = Channel(name="CH", type="receiver", sequence_wrap=100, batch_messages=20)
PARAMETERS = negotiate(offer(CHANNEL), offer(CHANNEL))
WRAP = PARAMETERS.sequence_wrap


@dataclass
class Sending:
    """One instance of the sender, and the receiver's session that serves it."""

    epoch: int
    instance: int
    course: Course
    record: pb.Progress
    """Behind everything that this session has committed."""
    floor: dict[int, Position]
    sequence: int
    number: int = 0
    taken: int = 0
    """Segments of the queue that it has loaded."""
    rest: list[Loaded] = field(default_factory=list)
    sent: list[channel_pb2.Batch] = field(default_factory=list)
    over: bool = False


class ExactlyOnce(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.queue: list[Loaded] = []
        self.put_texts: dict[int, list[str]] = defaultdict(list)
        self.arrived: dict[int, list[str]] = defaultdict(list)
        self.fence: pb.ReceiverFence | None = None
        self.progress: pb.Progress | None = None
        self.sessions: list[Sending] = []
        self.epoch = 0
        self.counter = 0

    @rule(count=st.integers(1, 6), priority=st.sampled_from([0, 5]), gone=st.integers(0, 63), expired=st.booleans(), inline=st.booleans())
    def put(self, count: int, priority: int, gone: int, expired: bool, inline: bool) -> None:
        self.counter += 1
        texts = [f"{self.counter}.{i}" for i in range(count)]
        lost = (count - 1,) if expired else ()
        at, bodies = segment(self.counter, texts, priority=priority, lane=f"{'XY'[self.counter % 2]}.0", inline=inline, expired=lost)
        gone &= below(count)
        self.queue.append(Loaded(at, bodies, 0, gone))
        self.put_texts[priority] += [text for i, text in enumerate(texts) if not gone >> i & 1 and i not in lost]

    @rule(newer=st.booleans(), instance=st.integers(1, 3))
    def bind(self, newer: bool, instance: int) -> None:
        """By a new owner, or by a process of a time before."""
        if newer or not self.epoch:
            self.epoch += 1
        request = channel_pb2.Bind(channel="CH", sender="S", stream=b"s", epoch=self.epoch, instance=instance)
        request.bound_before = self.fence is not None
        before = (self.fence.epoch, self.fence.instance) if self.fence is not None else (0, 0)
        try:
            accepted = receiver.bind(request, self.fence, self.progress, Holder("R", 1, 1, b""), WRAP)
        except BindRefused as refused:
            assert refused.reason is Reason.EPOCH_TOO_LOW
            assert (self.epoch, instance) <= before
            return
        assert (self.epoch, instance) > before
        self.fence = accepted.fence
        floor = {priority: Position.of(p) for priority, p in accepted.record.confirmed.items()}
        course = Course.after(accepted.record, PARAMETERS)
        self.sessions.append(Sending(self.epoch, instance, course, accepted.record, floor, accepted.record.sequence))

    @precondition(lambda self: any(not s.over for s in self.sessions))
    @rule(which=st.integers(0, 9), most=st.integers(1, 9), cut=st.integers(0, 3), halves=st.booleans())
    def send(self, which: int, most: int, cut: int, halves: bool) -> None:
        """The next batch of some instance, perhaps a stale one; `cut` prefixes of it commit before the receiver dies (0: all)."""
        alive = [s for s in self.sessions if not s.over]
        self._send(alive[-1 - which % len(alive)], most, cut, halves)

    @precondition(lambda self: any(s.sent for s in self.sessions))
    @rule(which=st.integers(0, 9), again=st.integers(0, 9), renumbered=st.sampled_from([True, True, False]))
    def repeat(self, which: int, again: int, renumbered: bool) -> None:
        """A batch that was sent before comes again, to the newest session, as it was or made to look like the next one."""
        some = [s for s in self.sessions if s.sent]
        batch = channel_pb2.Batch()
        batch.CopyFrom(some[which % len(some)].sent[again % len(some[which % len(some)].sent)])
        newest = self.sessions[-1]
        if newest.over or not batch.messages:
            return
        if renumbered:
            batch.number = newest.course.number + 1
            batch.first_sequence = newest.course.sequence % WRAP + 1
        self._receive(newest, batch, 0, False)
        newest.over = True

    def _send(self, one: Sending, most: int, cut: int, halves: bool) -> None:
        builder = BatchBuilder(most, 1 << 20)
        for loaded in [*one.rest, *self.queue[one.taken :]]:
            if one.rest and loaded is one.rest[0]:
                one.rest.pop(0)
                fresh: Loaded | None = loaded
            else:
                one.taken += 1
                fresh = covered(loaded, one.floor.get(loaded.segment.priority))[1]
            if fresh is None:
                continue
            left = builder.add(fresh, NOW)
            if left is not None:
                one.rest.insert(0, left)
                break
            if builder.full:
                break
        if not builder.pieces:
            return
        one.number += 1
        built = builder.finish(one.number, f"{one.epoch}.{one.instance}.{one.number}", one.sequence, WRAP)
        one.sequence = built.last_sequence
        one.sent.append(built.batch)
        self._receive(one, built.batch, cut, halves)

    def _receive(self, one: Sending, batch: channel_pb2.Batch, cut: int, halves: bool) -> None:
        try:
            arrivals = one.course.accept(batch)
        except Refusal as refused:
            assert refused.reason in (Reason.BATCH_OUT_OF_ORDER, Reason.PROTOCOL_ERROR)
            one.over = True
            return
        groups = receiver.prefixes(arrivals)
        if halves:
            groups = [part for group in groups for part in _halved(group)]
        for number, group in enumerate(groups):
            if cut and number >= cut:
                one.over = True
                return
            after = receiver.record_after(one.record, group, WRAP, luwid=batch.luwid if number == len(groups) - 1 else "")
            assert self.fence is not None
            ours = (self.fence.epoch, self.fence.instance) == (one.epoch, one.instance)
            if not ours or not receiver.is_base(self.progress, one.record):
                one.over = True  # the compare of its transaction fails
                return
            self.progress = one.record = after
            for arrival in group:
                for _, _, body in segments.iterate(arrival.header, arrival.wire.bodies):
                    self.arrived[arrival.wire.priority].append(pb.Message.FromString(bytes(body)).payload.decode().strip())

    @invariant()
    def each_arrives_once_in_order(self) -> None:
        for priority, texts in self.arrived.items():
            assert texts == self.put_texts[priority][: len(texts)]

    def teardown(self) -> None:
        """A new owner, and nothing in its way: everything is there."""
        if not hasattr(self, "sessions"):
            return
        self.bind(newer=True, instance=1)
        last = self.sessions[-1]
        for _ in range(sum(loaded.entries for loaded in self.queue) + 1):
            self._send(last, 7, 0, False)
        assert dict(self.arrived) == {priority: texts for priority, texts in self.put_texts.items() if texts}
        if self.progress is not None:
            assert self.progress.messages == sum(map(len, self.arrived.values()))


def _halved(group: list[receiver.Arrival]) -> list[list[receiver.Arrival]]:
    try:
        return list(receiver.halve(group))
    except (Refusal, IndexError):
        return [group]


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
