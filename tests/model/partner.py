"""R as a value: its records of streams, through the real receiver's rules, and what it has committed.

R is one queue manager: a bind or a batch is one instant here (`model.receiving` takes a receiving group apart).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from model.canonical import ID, Part, joined, part, record_part
from model.walks import Answer, BoundTo, Told, not_reached
from qsg.pb import channel_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import negotiate, receiver
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal

HOLDER = receiver.Holder("R", 0, 0, b"")
RECEIVER = Channel(name="TO.R", type="receiver")


@dataclass(frozen=True, slots=True)
class Deliver:
    """A batch on the session that was bound with (stream, epoch, instance)."""

    stream: bytes
    epoch: int
    instance: int
    batch: bytes
    what: str

    def part(self) -> Part:
        stream = part("stream", (ID,), (self.stream,))
        return joined(("deliver", self.epoch, self.instance), [stream, record_part(channel_pb2.Batch, self.batch)])


@dataclass(frozen=True, slots=True)
class Binding:
    """A bind under way."""

    bind: bytes

    @property
    def what(self) -> str:
        return f"bind at epoch {channel_pb2.Bind.FromString(self.bind).epoch}"

    def part(self) -> Part:
        return record_part(channel_pb2.Bind, self.bind)


@dataclass(frozen=True, slots=True)
class Stream:
    stream: bytes
    fence: bytes
    record: bytes = b""
    number: int = 0
    """Batches taken in the session bound last."""
    closed: bool = False
    """It was bound only to fence."""

    @property
    def order(self) -> tuple[int, int]:
        fence = pb.ReceiverFence.FromString(self.fence)
        return fence.epoch, fence.instance

    def part(self) -> Part:
        stream = part("stream", (ID,), (self.stream,))
        return joined(
            (self.number, self.closed), [stream, record_part(pb.ReceiverFence, self.fence), record_part(pb.Progress, self.record)]
        )


@dataclass(frozen=True, slots=True)
class Partner:
    streams: tuple[Stream, ...] = ()
    committed: tuple[str, ...] = ()
    """Message ids, in order."""

    def part(self) -> Part:
        return joined(("partner", self.committed), [s.part() for s in self.streams])

    def find(self, stream: bytes) -> Stream | None:
        return next((s for s in self.streams if s.stream == stream), None)

    def _with(self, stream: Stream, committed: tuple[str, ...]) -> Partner:
        others = tuple(s for s in self.streams if s.stream != stream.stream)
        return Partner((*others, stream), committed)

    def bind(self, binding: Binding) -> tuple[Partner, Answer]:
        request = channel_pb2.Bind.FromString(binding.bind)
        known = self.find(request.stream)
        fence = None if known is None else pb.ReceiverFence.FromString(known.fence)
        progress = pb.Progress.FromString(known.record) if known is not None and known.record else None
        parameters = negotiate.negotiate(negotiate.offer(RECEIVER), request.parameters)
        try:
            accepted = receiver.bind(request, fence, progress, HOLDER, parameters.sequence_wrap)
        except receiver.BindRefused as error:
            return self, not_reached(error.reason, error.detail, error.epoch_seen)
        record = _image(accepted.record) if known is not None or accepted.record_changed else b""
        stream = Stream(request.stream, _image(accepted.fence), record, 0, request.fence_only)
        if (lost := accepted.lost) is not None:
            return self._with(stream, self.committed), not_reached(lost.reason, lost.detail, lost.epoch_seen)
        bound = channel_pb2.Bound(receiver="R", member="R", record=accepted.record, parameters=parameters, epoch=request.epoch)
        return self._with(stream, self.committed), BoundTo(bound.SerializeToString(deterministic=True))

    def accepts(self, deliver: Deliver) -> bool:
        known = self.find(deliver.stream)
        return known is not None and not known.closed and known.order == (deliver.epoch, deliver.instance)

    def deliver(self, deliver: Deliver) -> tuple[Partner, Answer]:
        known = self.find(deliver.stream)
        if known is None or not self.accepts(deliver):
            return self, not_reached(Reason.PARTNER_CLOSED, "not the session bound last")
        try:
            record, ids = _commit(known.record, known.number, deliver.batch)
        except Refusal as error:
            return self, not_reached(error.reason, error.detail)
        after = replace(known, record=record, number=known.number + 1)
        return self._with(after, (*self.committed, *ids)), Told("confirmed")


@lru_cache(maxsize=100_000)
def _commit(record: bytes, number: int, batch: bytes) -> tuple[bytes, tuple[str, ...]]:
    """The record behind a batch, and the messages in it."""
    parameters = negotiate.negotiate(negotiate.offer(RECEIVER), negotiate.offer(RECEIVER))
    before = pb.Progress.FromString(record)
    course = receiver.Course.after(before, parameters)
    course.number = number
    message = channel_pb2.Batch.FromString(batch)
    arrivals = course.accept(message)
    after = receiver.record_after(before, arrivals, parameters.sequence_wrap, luwid=message.luwid)
    ids = tuple(entry.message_id.decode() for arrival in arrivals for entry in arrival.header.entries)
    return _image(after), ids


def _image(record: pb.Progress | pb.ReceiverFence) -> bytes:
    value: bytes = record.SerializeToString(deterministic=True)
    return value
