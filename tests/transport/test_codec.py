"""Frames: type byte and protobuf."""

from __future__ import annotations

import pytest

from qsg.pb import channel_pb2, records_pb2
from qsg.transport.codec import ProtocolError, decode, encode, parse


def test_there_and_back() -> None:
    frame = encode(channel_pb2.FRAME_BIND, channel_pb2.Bind(channel="CH", epoch=7))
    kind, payload = decode(frame)
    assert kind == channel_pb2.FRAME_BIND
    assert parse(channel_pb2.Bind, payload) == channel_pb2.Bind(channel="CH", epoch=7)


def test_serialised_payloads_pass_as_they_are() -> None:
    assert encode(255, b"abc") == b"\xffabc"
    assert decode(encode(0)) == (0, b"")


def test_garbage_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError):
        decode(b"")
    with pytest.raises(ProtocolError, match=r"qsg\.v1\.Message"):
        parse(records_pb2.Message, b"\xff\xff\xff")
