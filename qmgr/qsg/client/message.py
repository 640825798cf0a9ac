"""Messages as applications see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from qsg.client.errors import OptionsError
from qsg.pb import client_pb2 as pb
from qsg.pb import records_pb2 as records
from qsg.rules.reasons import Reason

ID_BYTES = 24


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a message lies on a dead-letter queue, and where it was going."""

    reason: Reason | int
    reason_name: str
    queue: str
    queue_manager: str
    channel: str
    at: datetime


@dataclass(frozen=True, slots=True)
class ReplyTo:
    queue: str
    queue_manager: str = ""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was got or browsed. Ids have 24 bytes (`correlation_id` may be empty); times are UTC."""

    payload: bytes
    message_id: bytes = b""
    correlation_id: bytes = b""
    priority: int = 0
    persistent: bool = True
    """What its putter said of it: information for the receiver. Every message is durable, whatever this says."""
    backout_count: int = 0
    put_at: datetime | None = None
    expires_at: datetime | None = None
    put_application: str = ""
    origin: str = ""
    """Queue manager where it was first put."""
    hops: int = 0
    """Channels crossed."""
    format: str = ""
    reply_to: ReplyTo | None = None
    properties: Mapping[str, str] = field(default_factory=dict)
    dead_letter: DeadLetter | None = None


def from_record(got: pb.GotMessage) -> Message:
    m = got.message
    return Message(
        payload=m.payload,
        message_id=m.message_id,
        correlation_id=m.correlation_id,
        priority=m.priority,
        persistent=not m.nonpersistent,
        backout_count=got.backouts,
        put_at=_time(m.put_at_ms),
        expires_at=_time(m.expires_at_ms),
        put_application=m.put_application,
        origin=m.origin,
        hops=m.hops,
        format=m.format,
        reply_to=ReplyTo(m.reply_to_queue, m.reply_to_queue_manager) if m.reply_to_queue or m.reply_to_queue_manager else None,
        properties=dict(m.properties) if m.properties else {},
        dead_letter=_dead_letter(m.dead_letter) if m.HasField("dead_letter") else None,
    )


def _dead_letter(d: records.DeadLetter) -> DeadLetter:
    reason = Reason(d.reason) if d.reason in Reason._value2member_map_ else d.reason
    return DeadLetter(reason, d.reason_name, d.queue, d.queue_manager, d.channel, _moment(d.at_ms))


def _time(ms: int) -> datetime | None:
    return _moment(ms) if ms else None


def _moment(ms: int) -> datetime:
    """A message may bear any number; one beyond the last year that a `datetime` has is that year's end."""
    return datetime.fromtimestamp(min(ms, LAST_MS) / 1000, UTC)


LAST_MS = 253_402_300_799_000


@dataclass(frozen=True, slots=True)
class Options:
    """What may be said about a message that is put."""

    priority: int | None = None
    message_id: bytes = b""
    correlation_id: bytes = b""
    reply_to: str | tuple[str, str] | ReplyTo | None = None
    properties: Mapping[str, str] | None = None
    persistent: bool = True
    """Travels with the message, no more: one put with False is as durable as any other."""
    format: str = ""


_PLAIN = Options()


def to_record(payload: bytes | str, options: Options = _PLAIN) -> records.Message:
    """A message as it goes to the queue manager. Raises OptionsError."""
    raw = payload.encode() if isinstance(payload, str) else bytes(payload)
    if options is _PLAIN:
        return records.Message(payload=raw)
    if options.priority is not None and not 0 <= options.priority <= 9:
        raise OptionsError(f"priority {options.priority} is not 0 to 9")
    reply_to = options.reply_to
    if isinstance(reply_to, str):
        reply_to = ReplyTo(reply_to)
    elif isinstance(reply_to, tuple):
        reply_to = ReplyTo(*reply_to)
    return records.Message(
        payload=raw,
        priority=options.priority,
        message_id=pad_id(options.message_id),
        correlation_id=pad_id(options.correlation_id),
        reply_to_queue=reply_to.queue if reply_to else "",
        reply_to_queue_manager=reply_to.queue_manager if reply_to else "",
        properties=options.properties,
        nonpersistent=not options.persistent,
        format=options.format,
    )


def pad_id(value: bytes) -> bytes:
    """Ids have 24 bytes; shorter ones are filled up with zeros, as in MQ."""
    if len(value) > ID_BYTES:
        raise OptionsError(f"an id has at most {ID_BYTES} bytes, not {len(value)}")
    return value.ljust(ID_BYTES, b"\0") if value else b""
