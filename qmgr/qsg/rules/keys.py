"""Where everything lies in a store: the only place that knows the shape of keys.

A *lane* is `<member>.<slot>`; a segment's *suffix* is `<lane>/<incarnation><counter>`, fixed width, so that key order within a lane
is commit order. Names may hold `/` and `%`, which are written as `%2F` and `%25`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NewType

Suffix = NewType("Suffix", bytes)

MEMBERS = b"m/"
INITIATORS = b"ci/"
STATUS_OUT = b"t/"
STATUS_IN = b"ti/"
QUEUE_DEFINITIONS = b"dq/"  # remote queues, aliases; and where local queues lie
CHANNEL_DEFINITIONS = b"dc/"
GROUP_DEFINITION = b"dg"
QUEUES = b"q/"
FENCES = b"s/"
PROGRESS = b"sp/"
RECEIVER_FENCES = b"r/"
RECEIVER_PROGRESS = b"rp/"
PRODUCERS = b"p/"
GUARDS = b"g/"


@lru_cache(maxsize=4096)
def name(text: str) -> bytes:
    return text.replace("%", "%25").replace("/", "%2F").encode()


def unname(raw: bytes) -> str:
    return raw.decode().replace("%2F", "/").replace("%25", "%")


def member(m: str) -> bytes:
    return MEMBERS + name(m)


def guard(m: str, slot: int) -> bytes:
    return GUARDS + name(m) + b"/%02d" % slot


def initiator(m: str) -> bytes:
    return INITIATORS + name(m)


def status_out(channel: str) -> bytes:
    return STATUS_OUT + name(channel)


def status_in(channel: str, partner: str) -> bytes:
    return STATUS_IN + name(channel) + b"/" + name(partner)


def queue_definition(q: str) -> bytes:
    return QUEUE_DEFINITIONS + name(q)


def channel_definition(c: str) -> bytes:
    return CHANNEL_DEFINITIONS + name(c)


def queue(q: str) -> bytes:
    """Prefix of everything of a queue."""
    return QUEUES + name(q) + b"/"


def queue_state(q: str) -> bytes:
    return queue(q) + b"d"


def headers(q: str) -> bytes:
    return queue(q) + b"h/"


def bodies(q: str) -> bytes:
    return queue(q) + b"b/"


def consumptions(q: str) -> bytes:
    return queue(q) + b"c/"


def totals(q: str) -> bytes:
    return queue(q) + b"n/"


def lane_headers(q: str, priority: int, lane: str) -> bytes:
    return headers(q) + b"%d/" % priority + name(lane) + b"/"


def header(q: str, priority: int, suffix: bytes) -> bytes:
    return headers(q) + b"%d/" % priority + suffix


def body(q: str, priority: int, suffix: bytes) -> bytes:
    return bodies(q) + b"%d/" % priority + suffix


def consumption(q: str, priority: int, suffix: bytes) -> bytes:
    return consumptions(q) + b"%d/" % priority + suffix


def lane_totals(q: str, lane: str) -> bytes:
    return totals(q) + name(lane)


def chunks(q: str, stage: bytes) -> bytes:
    return queue(q) + b"x/" + stage.hex().encode() + b"/"


def chunk(q: str, stage: bytes, index: int) -> bytes:
    return chunks(q, stage) + b"%06d" % index


def stages(q: str) -> bytes:
    return queue(q) + b"y/"


def stage(q: str, stage_id: bytes) -> bytes:
    """Marker of a staged large message: value is a Lock-like record of who staged it. Publishing compares and deletes it."""
    return stages(q) + stage_id.hex().encode()


def lock(q: str) -> bytes:
    return queue(q) + b"l"


def sender_fence(xmitq: str) -> bytes:
    return FENCES + name(xmitq)


def sender_progress(xmitq: str) -> bytes:
    return PROGRESS + name(xmitq)


def receiver_fence(stream: bytes) -> bytes:
    return RECEIVER_FENCES + stream.hex().encode()


def receiver_progress(stream: bytes) -> bytes:
    return RECEIVER_PROGRESS + stream.hex().encode()


def producer(p: str) -> bytes:
    return PRODUCERS + name(p)


def lane(m: str, slot: int) -> str:
    return f"{m}.{slot}"


def suffix(lane_name: str, incarnation: int, counter: int) -> Suffix:
    """40 hex digits behind the lane: 20 of the incarnation (a create revision), 20 of the counter."""
    return Suffix(name(lane_name) + b"/%020x%020x" % (incarnation, counter))


def lane_of(suffix_: bytes) -> str:
    return unname(suffix_.rsplit(b"/", 1)[0])


def split_segment_key(q: str, key: bytes, kind: bytes = b"h") -> tuple[int, Suffix]:
    """(priority, suffix) of a header, body or consumption key of queue `q`."""
    prefix = queue(q) + kind + b"/"
    assert key.startswith(prefix), key
    priority, _, rest = key[len(prefix) :].partition(b"/")
    return int(priority), Suffix(rest)
