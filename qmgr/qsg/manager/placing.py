"""Where a message goes: names resolved to an opened queue of a structure, limits checked, dead letters addressed.

Owns no state but the depth estimates behind Q_FULL. Invariant: whatever is put under a `Placement` compares that the queue is as it was
when it was placed (`Placement.same`). Not guaranteed: `max_depth` to the message. Depth is the exact sum of the totals, as read up to
`DEPTH_AGE_S` ago, and this member's own puts that are under way or came since: while several members put at once, or a channel does, a
queue can exceed its limit by what the others put in that time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from qsg.manager.catalog import Catalog
from qsg.manager.queue_store import Opened, QueueStore
from qsg.manager.structure import Structure
from qsg.pb import records_pb2 as pb
from qsg.rules import internal, keys, names
from qsg.rules.definitions import MESSAGE_BYTES_MAX, PRIVATE, Queue
from qsg.rules.names import Resolved
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.records import read_record
from qsg.rules.unit import NewMessage
from qsg.store.contract import Compare, get_prefix

DEPTH_AGE_S = 0.2
DEPTH_UNLIMITED = 999_999_999
ID_BYTES = 24
UNKNOWN = (Reason.UNKNOWN_OBJECT_NAME, Reason.UNKNOWN_REMOTE_Q_MGR)


@dataclass(frozen=True, slots=True)
class Depth:
    messages: int
    bytes: int
    """Of payload."""


@dataclass(slots=True, eq=False)
class Reservation:
    """Messages under way to a queue of limited depth; whoever placed them says how it ended."""

    estimate: _DepthEstimate
    messages: int

    def release(self, *, committed: bool) -> None:
        self.estimate.under_way -= self.messages
        self.estimate.since += self.messages if committed else 0
        self.messages = 0


@dataclass(frozen=True, slots=True)
class Placement:
    """A queue that takes the message; `destination` on a transmission queue; `refusal` is why it is the dead-letter queue."""

    opened: Opened
    destination: tuple[str, str] | None = None
    refusal: Refusal | None = None
    reservation: Reservation | None = None

    @property
    def queue(self) -> str:
        return self.opened.name

    @property
    def structure(self) -> Structure:
        return self.opened.structure

    def same(self) -> Compare:
        return self.opened.same()


def release(placements: Iterable[Placement], *, committed: bool) -> None:
    """Puts under these placements have ended."""
    for placement in placements:
        if placement.reservation is not None:
            placement.reservation.release(committed=committed)


class Placer:
    def __init__(self, catalog: Catalog, queues: QueueStore) -> None:
        self.catalog = catalog
        self.queues = queues
        self._depths: dict[str, _DepthEstimate] = {}

    async def put(self, queue: str, queue_manager: str, *, messages: int = 1, reserve: bool = False) -> Placement:
        """Where an application's put goes. Raises `Refusal`. `reserve`: the caller releases the placement's reservation."""
        return await self._open(await self._resolved(queue, queue_manager), messages, reserve=reserve)

    async def place(
        self,
        structure: str,
        queue: str,
        queue_manager: str,
        *,
        hops: int = 0,
        messages: int = 1,
        payload_bytes: int = 0,
        reserve: bool = False,
    ) -> Placement:
        """Where messages that a channel brought go, in the channel's home structure.

        When they cannot be put where they are addressed to, the answer is the dead-letter queue with the refusal; without a dead-letter
        queue the refusal is raised. `payload_bytes`: of the largest message. `reserve`: the caller
        releases the placement's reservation.
        """
        try:
            placement = await self._place(structure, queue, queue_manager, hops, messages, reserve=reserve)
            try:
                check_size(placement.opened, payload_bytes)
            except Refusal:
                release([placement], committed=False)
                raise
            return placement
        except Refusal as refusal:
            letters = self.catalog.settings.dead_letter_queue
            if not letters or letters == queue:
                raise
            try:
                dead = await self._place(structure, letters, "", 0, messages)
                check_size(dead.opened, payload_bytes)
            except Refusal:
                raise refusal from None
            return Placement(dead.opened, dead.destination, refusal)

    async def _place(self, home: str, queue: str, queue_manager: str, hops: int, messages: int, *, reserve: bool = False) -> Placement:
        catalog = self.catalog
        resolved = await self._resolved(queue, queue_manager, hops)
        target = resolved.queue.structure
        if target == home:
            return await self._open(resolved, messages, reserve=reserve)
        # The batch must commit in one structure: this message goes on by an internal channel.
        # There it is resolved anew, so it keeps its address.
        owner = catalog.member if target == PRIVATE else catalog.group
        onward = queue, owner if catalog.names().is_own(queue_manager) else queue_manager
        onto = await self.internal(home, internal.private_of(catalog.member) if target == PRIVATE else target)
        return await self._open(Resolved(onto, onward), messages)

    async def _resolved(self, queue: str, queue_manager: str, hops: int = 0) -> Resolved:
        """Before a name is said to be unknown, the store is asked: another member may have defined it just now."""
        try:
            return names.resolve_put(self.catalog.names(), queue, queue_manager, hops=hops)
        except Refusal as refusal:
            if refusal.reason not in UNKNOWN or not await self.catalog.catch_up(queue, queue_manager):
                raise
        return names.resolve_put(self.catalog.names(), queue, queue_manager, hops=hops)

    async def internal(self, home: str, target: str) -> Queue:
        """The internal transmission queue from structure `home` to `target`, made at first need. Raises `Refusal`."""
        wanted = internal.definition(home, target)
        found = self.catalog.queue(wanted.name)
        if found is None:
            await self.queues.define(wanted, own=home == PRIVATE)
            return wanted
        if (found.internal_target, found.structure) != (target, home):
            raise Refusal(Reason.XMIT_Q_USAGE_ERROR, f"{found.name} is not the internal transmission queue from {home} to {target}")
        return found

    async def _open(self, resolved: Resolved, messages: int, *, reserve: bool = False) -> Placement:
        opened = await self.queues.open(resolved.queue)
        if not opened.definition.put_enabled:
            raise Refusal(Reason.PUT_INHIBITED, opened.name)
        limit = opened.definition.max_depth
        if limit == DEPTH_UNLIMITED:
            return Placement(opened, resolved.destination)
        estimate = self._depth_of(opened)
        await estimate.require(opened, messages, limit)
        return Placement(opened, resolved.destination, None, estimate.reserve(messages) if reserve else None)

    def _depth_of(self, opened: Opened) -> _DepthEstimate:
        key = opened.structure.name + "/" + opened.name
        estimate = self._depths.get(key)
        if estimate is None or estimate.id != opened.id:
            estimate = self._depths[key] = _DepthEstimate(opened.id)
        return estimate


class _DepthEstimate:
    """Depth of one queue as last read, what this member has put since, and what it is putting."""

    def __init__(self, queue_id: bytes) -> None:
        self.id = queue_id
        self.since = 0
        self.under_way = 0
        self._messages = 0
        self._read_at = float("-inf")

    def exceeds(self, messages: int, limit: int) -> bool:
        return self._messages + self.since + self.under_way + messages > limit

    def reserve(self, messages: int) -> Reservation:
        self.under_way += messages
        return Reservation(self, messages)

    async def require(self, opened: Opened, messages: int, limit: int) -> None:
        """Raises `Refusal` Q_FULL. Nothing is awaited between its last look and its return."""
        if asyncio.get_running_loop().time() - self._read_at > DEPTH_AGE_S or self.exceeds(messages, limit):
            now, shown = asyncio.get_running_loop().time(), self.since
            self._messages = (await depth_of(opened)).messages
            # What was committed before the read is in it; what was committed since may be, and is counted still.
            self.since = max(0, self.since - shown)
            self._read_at = now
        if self.exceeds(messages, limit):
            raise Refusal(Reason.Q_FULL, f"{opened.name} holds {self._messages} of {limit} messages")


async def depth_of(opened: Opened) -> Depth:
    """The exact depth at the revision of the read."""
    _, (found,) = await opened.structure.read(get_prefix(keys.totals(opened.name)))
    totals = [read_record(pb.Totals, kv.value, kv.key) for kv in found.kvs]
    return Depth(sum(t.put - t.got for t in totals), sum(t.put_bytes - t.got_bytes for t in totals))


def check_size(opened: Opened, payload_bytes: int) -> None:
    """Raises `Refusal` when a message is larger than the queue or the queue manager takes."""
    if payload_bytes > MESSAGE_BYTES_MAX:
        raise Refusal(Reason.MSG_TOO_BIG_FOR_Q_MGR, f"{payload_bytes} bytes, at most {MESSAGE_BYTES_MAX}")
    if payload_bytes > opened.definition.max_message_bytes:
        raise Refusal(Reason.MSG_TOO_BIG_FOR_Q, f"{payload_bytes} bytes, {opened.name} takes {opened.definition.max_message_bytes}")


def check_message(message: pb.Message) -> None:
    """Raises `Refusal` for a descriptor that does not make sense."""
    if message.priority > 9:
        raise Refusal(Reason.PRIORITY_ERROR, f"priority {message.priority} is not 0 to 9")
    for field, value in (("message id", message.message_id), ("correlation id", message.correlation_id)):
        if value and len(value) != ID_BYTES:
            raise Refusal(Reason.MD_ERROR, f"the {field} has {len(value)} bytes, not {ID_BYTES}")


def entry_of(message: pb.Message, size: int) -> pb.Entry:
    """The index entry of a stored message of `size` bytes."""
    return pb.Entry(
        message_id=message.message_id,
        correlation_id=message.correlation_id,
        expires_at_ms=message.expires_at_ms,
        size=size,
        payload_size=len(message.payload),
    )


def new_message(placement: Placement, message: pb.Message) -> NewMessage:
    """A message of at most a segment's size, ready to be put where it was placed."""
    body = message.SerializeToString()
    return NewMessage(placement.opened.name, message.priority, entry_of(message, len(body)), body, placement.destination)


def as_dead_letter(message: pb.Message, refusal: Refusal, queue: str, queue_manager: str, *, at_ms: int, channel: str = "") -> None:
    """Marks a message as undeliverable: why, and where it was to go (MQ's dead-letter header)."""
    message.dead_letter.reason = int(refusal.reason)
    message.dead_letter.reason_name = refusal.reason.name
    message.dead_letter.queue, message.dead_letter.queue_manager = queue, queue_manager
    message.dead_letter.channel, message.dead_letter.at_ms = channel, at_ms
