"""What a beat of the client API says: nothing, or that a large frame follows, or that the member is to end. Pure.

While a large frame is on its way no heartbeat passes: a beat that carries the size of the frame behind it grants the time that this takes
on a slow path, so that who waits for one does not take the other side for dead. Who does not know what a beat says takes it for a beat.
"""

from __future__ import annotations

from qsg.pb import client_pb2 as pb

LEAVING = b"\x01"
"""In a member's beat: it is to end, and serves on for a moment; the next session is better made now."""
LARGE_BYTES = 1 << 20
SLOWEST_BYTES_PER_S = 1_000_000


def announcement(size: int) -> bytes:
    """The beat before a frame of `size` bytes; b"" when it needs none."""
    return bytes((pb.CLIENT_BEAT,)) + size.to_bytes(8, "big") if size > LARGE_BYTES else b""


def grace_s(frame: bytes) -> float:
    """How much longer than usual the frame behind this one may take."""
    if len(frame) != 9 or frame[0] != pb.CLIENT_BEAT:
        return 0.0
    return min(int.from_bytes(frame[1:], "big"), 1 << 30) / SLOWEST_BYTES_PER_S
