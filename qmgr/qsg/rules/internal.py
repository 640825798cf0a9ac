"""Internal channels: how messages that a channel brought go on to a queue that lies outside the channel's home structure.

A batch commits in one structure. What is addressed elsewhere (to a shared queue of another structure, or to a member's private queue) is
put, in the same transaction, on an internal transmission queue of the home structure, and an internal channel moves it from there
(IBM MQ: intra-group queuing). This owns the names and the definitions of both; the channel's ends are the ordinary sender and receiver.
A *target* is the name of a structure, or `private.<member>` for the private store of one member.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache

from qsg.rules.definitions import NAME, PRIVATE, Channel, Queue, Retry

PREFIX = "SYSTEM.INTERNAL."
ADDRESS = "internal:0"
"""Connection name of every internal channel: the member itself."""
NAME_CHARS = 48
IDLE_S = 300.0


def internal_queue(home: str, target: str) -> str:
    """Name of the transmission queue in structure `home` for messages on their way to `target`."""
    name = f"{PREFIX}{home}.{target}"
    if re.fullmatch(NAME, name) and "." not in home:
        return name
    # Too long, ambiguous, or with a structure's name that is none for a queue.
    return PREFIX + hashlib.blake2b(f"{home}\0{target}".encode(), digest_size=(NAME_CHARS - len(PREFIX)) // 2).hexdigest()


def private_of(member: str) -> str:
    """The target that is a member's private store."""
    return f"{PRIVATE}.{member}"


def only_at(queue: Queue) -> str:
    """The one member that can move the queue's messages on; "" = any that reaches both structures."""
    target = queue.internal_target
    return target.removeprefix(f"{PRIVATE}.") if target.startswith(f"{PRIVATE}.") else ""


def definition(home: str, target: str) -> Queue:
    return Queue(
        name=internal_queue(home, target),
        description=f"on the way from {home} to {target}",
        structure=home,
        usage="transmission",
        internal_target=target,
    )


def sending(queue: Queue) -> Channel:
    """The sender of an internal transmission queue."""
    return _sender(queue.name, queue.description, bool(only_at(queue)))


@lru_cache(maxsize=256)
def _sender(name: str, description: str, fixed: bool) -> Channel:
    """Asked for at every look at every channel."""
    return Channel(
        name=name,
        type="sender",
        description=description,
        transmission_queue=name,
        connection_names=(ADDRESS,),
        disposition="fixed-shared" if fixed else "shared",
        disconnect_interval_s=IDLE_S,
        retry=Retry(first_ms=50, short_ms=500, short_count=120, long_ms=5_000),
    )


def receiving(queue: Queue) -> Channel:
    """The receiver at the other end; its home is the target."""
    return Channel(
        name=queue.name, type="receiver", description=queue.description, structure="" if only_at(queue) else queue.internal_target
    )
