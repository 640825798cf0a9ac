"""Records as they are read from a store: what cannot be read is said to be so, and never taken for something else.

A value may be damaged (by a disk, by hand) or be of a version that this one does not know. Invariant: whoever reads it gets the record,
with counters that can still be counted up, or `Damaged`, a refusal that names the key; no other record is affected. Does not notice damage
that leaves a record readable and sensible.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

from qsg.pb import records_pb2 as pb
from qsg.rules.reasons import Reason, Refusal

M = TypeVar("M", bound=Message)
KEY_CHARS_MAX = 200
COUNT_MAX = 2**62
"""Far beyond what is ever counted; what is above it could not be counted on."""
COUNTERS: dict[str, tuple[str, ...]] = {
    "Guard": ("number",),
    "Totals": ("put", "put_bytes", "got", "got_bytes"),
    "SenderFence": ("epoch",),
    "ReceiverFence": ("epoch", "instance"),
    "Progress": ("sequence", "messages", "batches", "bytes", "reset_to"),
    "ProducerRecord": ("epoch", "last"),
    "Lock": ("epoch",),
    "ChannelStatus": ("epoch", "instance", "messages", "bytes", "batches", "takeovers"),
}
_COUNTERS_OF: dict[type[Message], Callable[[Any], tuple[int, ...]] | None] = {}
"""The same by class, as far as looked up."""
STATES = frozenset(pb.ChannelState.values())


class Damaged(Refusal):
    """A value in a store is not what its key says."""

    def __init__(self, what: str, key: bytes = b"") -> None:
        where = f"{key.decode(errors='replace')[:KEY_CHARS_MAX]}: " if key else ""
        super().__init__(Reason.RECORD_DAMAGED, where + what)


def read_record(kind: type[M], value: bytes, key: bytes = b"") -> M:
    """The record in a value. Raises `Damaged`."""
    record = kind()
    try:
        record.ParseFromString(value)
    except DecodeError as e:
        raise Damaged(f"{len(value)} bytes are not a {kind.DESCRIPTOR.name}", key) from e
    try:
        counters = _COUNTERS_OF[kind]
    except KeyError:
        counters = _COUNTERS_OF[kind] = _counters_of(kind)
    if counters is not None and max(counters(record)) > COUNT_MAX:
        name = next(n for n in COUNTERS[kind.DESCRIPTOR.name] if getattr(record, n) > COUNT_MAX)
        raise Damaged(f"{name} of a {kind.DESCRIPTOR.name} is {getattr(record, name)}", key)
    if kind is pb.ChannelStatus and not (record.state in STATES and record.stop_to in STATES):  # type: ignore[attr-defined]
        raise Damaged(f"channel state {record.state} is not known", key)  # type: ignore[attr-defined]
    return record


def _counters_of(kind: type[Message]) -> Callable[[Any], tuple[int, ...]] | None:
    """What reads a record's counters; twice the first, where there is only one, to make it a tuple."""
    names = COUNTERS.get(kind.DESCRIPTOR.name, ())
    return attrgetter(names[0], *names) if names else None


def stored_message(entry: pb.Entry, body: bytes | memoryview) -> pb.Message:
    """The message that a segment's index says lies here. Raises `Damaged` when it is not there, or another."""
    if len(body) != entry.size:
        raise Damaged(f"{len(body)} of the {entry.size} bytes of message {entry.message_id.hex()} are there")
    message = read_record(pb.Message, bytes(body))
    if message.message_id != entry.message_id or len(message.payload) != entry.payload_size:
        raise Damaged(f"message {message.message_id.hex()} lies where {entry.message_id.hex()} should be")
    return message
