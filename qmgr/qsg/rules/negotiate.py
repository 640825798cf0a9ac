"""Negotiation of a channel's parameters when it binds (patent, "bind and negotiate"; MQ's initial data exchange).

Owns: which value of two offers a session uses. Invariant: both sides derive the same session from the same two offers, and less than
half of the sequence numbers can be in flight, so that "ahead" and "behind" stay distinguishable over a wrap.
Does not guarantee: that a partner keeps to what was agreed; the receiver checks every batch.
"""

from __future__ import annotations

from qsg.pb import channel_pb2 as pb
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal

VERSION = 1


def offer(channel: Channel) -> pb.Parameters:
    """What a side with this definition proposes."""
    return pb.Parameters(
        version=VERSION,
        batch_messages=channel.batch_messages,
        batch_bytes=channel.batch_bytes,
        batch_window=channel.batch_window,
        message_bytes_max=channel.max_message_bytes,
        heartbeat_ms=channel.heartbeat_ms,
        sequence_wrap=channel.sequence_wrap,
    )


def negotiate(mine: pb.Parameters, theirs: pb.Parameters) -> pb.Parameters:
    """The session's parameters: the lower value wins. Raises `Refusal` SEQUENCE_WRAP_MISMATCH, PROTOCOL_ERROR."""
    if mine.sequence_wrap != theirs.sequence_wrap:
        raise Refusal(Reason.SEQUENCE_WRAP_MISMATCH, f"sequence wrap {mine.sequence_wrap} here, {theirs.sequence_wrap} at the partner")
    for name in ("version", "batch_messages", "batch_bytes", "batch_window", "heartbeat_ms", "sequence_wrap"):
        if not getattr(theirs, name):
            raise Refusal(Reason.PROTOCOL_ERROR, f"parameter {name} is missing")
    wrap = mine.sequence_wrap
    window = max(1, min(mine.batch_window, theirs.batch_window, wrap // 4))
    return pb.Parameters(
        version=min(mine.version, theirs.version),
        batch_messages=max(1, min(mine.batch_messages, theirs.batch_messages, wrap // (2 * window) - 1)),
        batch_bytes=min(mine.batch_bytes, theirs.batch_bytes),
        batch_window=window,
        message_bytes_max=min(mine.message_bytes_max, theirs.message_bytes_max),
        heartbeat_ms=min(mine.heartbeat_ms, theirs.heartbeat_ms),
        sequence_wrap=wrap,
    )


def advance(sequence: int, count: int, wrap: int) -> int:
    """The sequence number `count` messages after `sequence` (0 = none yet): 1, 2 ... wrap, 1 ... (MQ's SEQWRAP)."""
    return (sequence + count - 1) % wrap + 1 if count else sequence


def is_ahead(sequence: int, of: int, wrap: int) -> bool:
    """`sequence` is later than `of`, where less than half of the numbers can lie between them. 0, none yet, is later than nothing."""
    return sequence > 0 and 0 < (sequence - of) % wrap < (wrap + 1) // 2
