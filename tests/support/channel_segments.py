"""Segments of a transmission queue, for tests of the channel rules."""

from __future__ import annotations

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.lanes import SegmentAt

NOW = 1_000_000


def message_id(text: str) -> bytes:
    return text.encode().ljust(24, b".")


def message(text: str, size: int = 0) -> bytes:
    return pb.Message(message_id=message_id(text), payload=text.encode().ljust(size, b" ")).SerializeToString()


def segment(
    counter: int,
    texts: list[str],
    *,
    revision: int = 0,
    priority: int = 0,
    lane: str = "X.0",
    inline: bool = True,
    expired: tuple[int, ...] = (),
    size: int = 0,
    destination: tuple[str, str] = ("TARGET", "R"),
) -> tuple[SegmentAt, bytes]:
    """(segment, bodies of its b/ key)."""
    header = pb.SegmentHeader(destinations=[pb.Destination(queue=destination[0], queue_manager=destination[1])])
    bodies = b""
    for index, text in enumerate(texts):
        body = message(text, size)
        expiry = NOW - 1 if index in expired else 0
        header.entries.add(
            message_id=message_id(text), size=len(body), offset=len(bodies), payload_size=max(size, len(text)), expires_at_ms=expiry
        )
        header.earliest_expiry_ms = header.earliest_expiry_ms or expiry
        bodies += body
    header.bodies_size = len(bodies)
    if inline:
        header.bodies = bodies
    suffix = keys.suffix(lane, 7, counter)
    return SegmentAt(priority, suffix, revision or 100 + counter, header, 0), b"" if inline else bodies
