"""Frames: one byte of type, then the serialised protobuf message of that type. Which types there are is each protocol's own matter."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from qsg.transport.contract import TransportError

M = TypeVar("M", bound=Message)
_TYPES = tuple(bytes((kind,)) for kind in range(256))


class ProtocolError(TransportError):
    """The other side sent what no frame of this protocol can be. The stream is of no further use."""


def encode(kind: int, message: Message | bytes = b"") -> bytes:
    """One frame; `message` may be serialised already."""
    return _TYPES[kind] + (message if isinstance(message, bytes) else message.SerializeToString())


def decode(frame: bytes) -> tuple[int, bytes]:
    """(type, payload) of a frame. Raises `ProtocolError` for an empty one."""
    if not frame:
        raise ProtocolError("empty frame")
    return frame[0], frame[1:]


def parse(message_type: type[M], payload: bytes) -> M:
    """The message in a payload. Raises `ProtocolError` for what does not parse."""
    message = message_type()
    try:
        message.ParseFromString(payload)
    except DecodeError as e:
        raise ProtocolError(f"{len(payload)} bytes are not a {message_type.DESCRIPTOR.full_name}") from e
    return message
