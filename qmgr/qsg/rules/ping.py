"""PING CHANNEL: the bytes that go to a partner and must come back as they were sent.

Owns how many they may be, and what they are: a pattern without short repetitions, so that a part that was cut, moved or repeated on the
way differs. Nothing of it is stored, and no channel is bound by it.
"""

from __future__ import annotations

from qsg.pb import channel_pb2, initiator_pb2

BYTES_MIN, BYTES_MAX = 16, 32_768
"""As MQ's DATALEN. An order without a number, as older queue managers send, means the least."""


def ping_of(order: initiator_pb2.Open) -> channel_pb2.Ping:
    """What is sent for an order to ping."""
    return channel_pb2.Ping(data=_pattern(size_of(order)), channel=order.bind.channel, sender=order.bind.sender)


def size_of(order: initiator_pb2.Open) -> int:
    return min(max(order.ping_bytes, BYTES_MIN), BYTES_MAX)


def fault(order: initiator_pb2.Open, pong: channel_pb2.Ping) -> str:
    """What is wrong with this answer; "" = nothing."""
    sent = ping_of(order).data
    if pong.data == sent:
        return ""
    return f"{len(sent)} bytes were sent, {len(pong.data)} came back" + (", others" if len(pong.data) == len(sent) else "")


def _pattern(size: int) -> bytes:
    return b"".join(number.to_bytes(4, "big") for number in range((size + 3) // 4))[:size]
