"""PING CHANNEL: the bytes of an order, and what counts as their answer."""

from __future__ import annotations

import pytest

from qsg.pb import channel_pb2, initiator_pb2
from qsg.rules import ping


def order(size: int) -> initiator_pb2.Open:
    return initiator_pb2.Open(ping=True, ping_bytes=size, bind=channel_pb2.Bind(channel="C", sender="X"))


@pytest.mark.parametrize(("asked", "sent"), [(0, 16), (15, 16), (17, 17), (32_768, 32_768), (2**32 - 1, 32_768)])
def test_as_many_bytes_as_the_order_has_within_limits(asked: int, sent: int) -> None:
    made = ping.ping_of(order(asked))
    assert (len(made.data), made.channel, made.sender) == (sent, "C", "X") and ping.size_of(order(asked)) == sent
    assert ping.fault(order(asked), made) == ""


@pytest.mark.parametrize("damage", [slice(1, None), slice(None, -1), slice(4, None), slice(None, None, -1)])
def test_bytes_that_were_cut_or_moved_are_no_answer(damage: slice) -> None:
    sent = ping.ping_of(order(1001)).data
    assert "1001 bytes were sent" in ping.fault(order(1001), channel_pb2.Ping(data=sent[damage]))


def test_a_part_that_came_twice_or_elsewhere_is_no_answer() -> None:
    sent = ping.ping_of(order(32_768)).data
    for moved in (sent[16_384:] + sent[:16_384], sent[:16_384] * 2):
        assert "others" in ping.fault(order(32_768), channel_pb2.Ping(data=moved))
