"""Inputs: lists of frames as bytes, and valid ones changed: fields dropped, repeated, made huge, of another type, cut, spliced."""

from __future__ import annotations

import struct
from random import Random

_LENGTH = struct.Struct(">I")
INTERESTING = (0, 1, 2, 9, 10, 63, 64, 127, 128, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
FIELDS_MAX = 400
DEPTH = 4


def join(frames: list[bytes]) -> bytes:
    return b"".join(_LENGTH.pack(len(frame)) + frame for frame in frames)


def split(data: bytes) -> list[bytes]:
    """Frames of any bytes: a length that is beyond the end stands for the rest."""
    frames, at = [], 0
    while at < len(data):
        length = _LENGTH.unpack_from(data, at)[0] if len(data) - at >= _LENGTH.size else 0
        frames.append(data[at + _LENGTH.size : at + _LENGTH.size + length])
        at += _LENGTH.size + length
    return frames


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError


Field = tuple[int, int, "int | bytes"]
"""(number, wire type, value)"""


def parse(data: bytes) -> list[Field] | None:
    """Fields of a protobuf message by the wire format alone; None when it is none."""
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _read_varint(data, at)
            kind, value = tag & 7, 0
            if kind == 0:
                value, at = _read_varint(data, at)
                fields.append((tag >> 3, kind, value))
                continue
            size = {1: 8, 5: 4}.get(kind)
            if kind == 2:
                size, at = _read_varint(data, at)
            if size is None or at + size > len(data) or not tag >> 3 or len(fields) > FIELDS_MAX:
                return None
            fields.append((tag >> 3, kind, data[at : at + size]))
            at += size
    except IndexError:
        return None
    return fields


def build(fields: list[Field]) -> bytes:
    out = bytearray()
    for number, kind, value in fields:
        out += _varint(number << 3 | kind)
        if isinstance(value, int):
            out += _varint(value)
        else:
            out += (_varint(len(value)) if kind == 2 else b"") + value
    return bytes(out)


def mutate_bytes(data: bytes, random: Random) -> bytes:
    if not data:
        return random.randbytes(random.randrange(12))
    at = random.randrange(len(data))
    match random.randrange(7):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + bytes((data[at] ^ 1 << random.randrange(8),)) + data[at + 1 :]
        case 2:
            return data[:at] + random.randbytes(random.randrange(1, 9)) + data[at:]
        case 3:
            return data[:at] + data[at + random.randrange(1, 9) :]
        case 4:
            return data + data[at:]
        case 5:
            return bytes(random.randrange(3) * len(data)) + data[at:]
        case _:
            return data[:at] + random.choice((b"\0", b"\xff" * 9, b"/", b"%2F", "ä".encode(), b"A" * 300)) + data[at:]


def mutate_message(data: bytes, random: Random, depth: int = DEPTH) -> bytes:
    """A protobuf message with one thing changed, somewhere inside."""
    fields = parse(data)
    if not fields or random.random() < 0.1:
        return mutate_bytes(data, random)
    i = random.randrange(len(fields))
    number, kind, value = fields[i]
    match random.randrange(8):
        case 0:
            del fields[i]
        case 1:
            fields[i:i] = [fields[i]] * random.choice((1, 1, 2, 50))
        case 2:
            fields.insert(random.randrange(len(fields) + 1), fields.pop(i))
        case 3:
            fields[i] = (random.randrange(1, 34), kind, value)
        case 4:
            fields[i] = (number, 0, random.choice(INTERESTING)) if kind == 2 else (number, 2, random.randbytes(random.randrange(20)))
        case _ if isinstance(value, int):
            near = (value + random.choice((-1, 1))) % 2**64
            fields[i] = (number, kind, random.choice((*INTERESTING, near, near)))
        case _ if kind == 2:
            inner = mutate_message(value, random, depth - 1) if depth and random.random() < 0.8 else mutate_bytes(value, random)
            fields[i] = (number, kind, inner)
        case _:
            fields[i] = (number, kind, random.randbytes(len(value)))
    return build(fields)


def mutate_frames(data: bytes, head: int, others: list[bytes], random: Random) -> bytes:
    """A conversation with a frame changed, dropped, repeated, moved, or taken from another. `head`: bytes before each frame's message."""
    frames = split(data)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        if not frames:
            return join(split(random.choice(others)))
        i = random.randrange(len(frames))
        match random.randrange(10):
            case 0:
                del frames[i]
            case 1:
                frames.insert(i, frames[i])
            case 2:
                frames.insert(random.randrange(len(frames)), frames.pop(i))
            case 3:
                frames[i:i] = split(random.choice(others))[:2]
            case 4:
                frames[i] = mutate_bytes(frames[i], random)
            case 5 if frames[i]:
                frames[i] = bytes((random.randrange(16),)) + frames[i][1:]
            case _:
                frames[i] = frames[i][:head] + mutate_message(frames[i][head:], random)
    return join(frames)
