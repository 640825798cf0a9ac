"""What a receiver puts where: arrivals of a batch turned into puts for one unit, in the channel's home structure.

Owns name resolution of arrivals, message retry, dead letters and the staging of large messages. Invariants: messages for one queue keep
their order; everything of an arrival lands in one structure (target queue, transmission queue onwards, or dead-letter queue); a whole
segment for one ordinary queue is passed through. Does not commit anything but staged chunks, and those compare the channel's fence.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import DecodeError

from qsg.manager import large
from qsg.manager.placing import Placement, Placer, as_dead_letter, entry_of, release
from qsg.manager.queue_store import Opened
from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, records_pb2
from qsg.rules import segments
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.receiver import RETRYABLE, Arrival
from qsg.rules.unit import NewMessage, NewSegment, Unit
from qsg.rules.world import World
from qsg.store.contract import Compare

log = structlog.get_logger()

PART_BYTES_MAX = 1 << 20
STAGED_BYTES = large.CHUNK_BYTES * large.UNIT_CHUNKS


_Single = tuple[int, tuple[str, str], Placement | None]
"""A message that is put by itself: its index, where it is addressed to, and where it goes, if that is known."""


@dataclass
class _Staging:
    """A large message as its parts come. `whole`: kept in memory, because it must be rewritten before it is put."""

    destination: tuple[str, str]
    placement: Placement
    chunks: int
    stage: large.Stage | None = None
    rewritten: bool = False
    """The stage holds it as a dead letter, or with one more hop."""
    came: int = 0
    size: int = 0
    pending: bytearray = field(default_factory=bytearray)
    """What has come and is not in the stage."""
    expected: bool = False
    """The batch that it belongs to has come."""

    @property
    def complete(self) -> bool:
        return self.came == self.chunks


class _TooMany(Exception):
    """The queue has no room for all of these messages, perhaps for some: they are placed one by one."""


class Deliverer:
    """For one session. `ours`: compares of the session's fence; `paused` is told when message retry begins and ends.

    `ahead_bytes_max`: of large messages whose batch has not come yet.
    """

    def __init__(
        self,
        placer: Placer,
        structure: Structure,
        channel: Channel,
        world: World,
        *,
        ours: Callable[[], list[Compare]],
        initiator: int,
        ahead_bytes_max: int,
        paused: Callable[[bool], None],
    ) -> None:
        self.dead_letters = 0
        self._placer = placer
        self._structure = structure
        self._channel = channel
        self._world = world
        self._ours = ours
        self._initiator = initiator
        self._ahead_bytes_max = ahead_bytes_max
        self._paused = paused
        self._staging: dict[bytes, _Staging] = {}
        self._begun: dict[asyncio.Future[large.Stage], None] = {}
        self._used: dict[str, Opened] = {}
        self._reserved: list[Placement] = []
        """Of the unit that is being filled."""

    # Placing

    async def _place(
        self, destination: tuple[str, str], *, messages: int, payload_bytes: int, hops: int = 0, reserve: bool = True
    ) -> Placement:
        """Where these messages go, after message retry if need be. Raises `Refusal` when they can go nowhere, `_TooMany` of several.

        `reserve`: they are part of the unit that is being filled.
        """
        left = self._channel.message_retry_count
        try:
            while True:
                try:
                    placement = await self._placer.place(
                        self._structure.name, *destination, hops=hops, messages=messages, payload_bytes=payload_bytes, reserve=reserve
                    )
                    if reserve:
                        self._reserved.append(placement)
                except Refusal as refusal:
                    if messages > 1 and refusal.reason is Reason.Q_FULL:
                        raise _TooMany from refusal
                    if refusal.reason not in RETRYABLE or not left:
                        raise
                else:
                    why = placement.refusal
                    if why is None:
                        return placement
                    if messages > 1 and why.reason is Reason.Q_FULL:
                        raise _TooMany from why
                    if why.reason not in RETRYABLE or not left:
                        if not self._channel.use_dead_letter_queue:
                            raise why
                        return placement
                if reserve and any(held.reservation is not None for held in self._reserved):
                    # What this unit has placed already may be what the queue is full of: it must be committed for anybody to make room.
                    raise Refusal(Reason.SYNCPOINT_LIMIT_REACHED, f"{destination[0]} is full of what comes before in the same batch")
                left -= 1
                self._paused(True)
                await asyncio.sleep(self._channel.message_retry_ms / 1000)
        finally:
            self._paused(False)

    def forget(self) -> None:
        """A compare failed: the queues that were placed on are looked at again."""
        for opened in self._used.values():
            self._placer.queues.forget(opened)
        self._used.clear()

    # Putting

    async def fill(self, unit: Unit, arrivals: Sequence[Arrival]) -> list[Placement]:
        """Puts everything of these arrivals into `unit`; whoever commits it releases what the placements have reserved."""
        reserved = self._reserved = []
        try:
            for arrival in arrivals:
                await self._add(unit, arrival)
        except BaseException:
            release(reserved, committed=False)
            raise
        return reserved

    async def _add(self, unit: Unit, arrival: Arrival) -> None:
        header, bodies = arrival.header, arrival.wire.bodies
        groups: dict[str, tuple[Placement, list[int]]] = {}
        single: list[_Single] = []
        for number, indexes in _by_destination(header).items():
            destination = header.destinations[number].queue, header.destinations[number].queue_manager
            largest = max(header.entries[i].payload_size for i in indexes)
            try:
                placement = await self._place(destination, messages=len(indexes), payload_bytes=largest)
            except _TooMany:
                single += [(i, destination, None) for i in indexes]
                continue
            plain = placement.refusal is None and placement.destination is None
            if not plain or any(header.entries[i].stage for i in indexes):
                # A queue that does not take the largest of them may take the others: one by one.
                again = placement.refusal is not None and len(indexes) > 1
                single += [(i, destination, None if again else placement) for i in indexes]
            else:
                groups.setdefault(placement.queue, (placement, []))[1].extend(indexes)
        _keep_order(header, groups, single)
        for placement, indexes in groups.values():
            self._uses(unit, placement)
            unit.puts.append(_segment(placement.queue, arrival.wire.priority, header, bodies, sorted(indexes)))
        for index, destination, known in sorted(single, key=lambda s: s[0]):
            if known is None:
                size = header.entries[index].payload_size
                known = await self._place(destination, messages=1, payload_bytes=size)
            await self._add_single(unit, arrival, index, destination, known)

    def _uses(self, unit: Unit, placement: Placement) -> None:
        same = placement.same()
        if same not in unit.compares:
            unit.compares.append(same)
        self._used[placement.queue] = placement.opened

    async def _add_single(self, unit: Unit, arrival: Arrival, index: int, destination: tuple[str, str], placement: Placement) -> None:
        entry = arrival.header.entries[index]
        if entry.stage:
            await self._add_staged(unit, arrival.wire.priority, entry, destination, placement)
            return
        message = _message(segments.body_at(arrival.header, index, arrival.wire.bodies))
        placement = await self._rewrite(message, destination, placement)
        body = message.SerializeToString()
        self._uses(unit, placement)
        unit.puts.append(NewMessage(placement.queue, arrival.wire.priority, entry_of(message, len(body)), body, placement.destination))

    async def _rewrite(self, message: records_pb2.Message, destination: tuple[str, str], placement: Placement) -> Placement:
        """Counts a hop onwards, or marks a dead letter; the placement may become the dead-letter queue."""
        if placement.refusal is None and placement.destination is not None:
            if message.hops >= self._placer.catalog.settings.hop_limit:
                placement = await self._place(destination, messages=1, payload_bytes=len(message.payload), hops=message.hops)
            if placement.refusal is None:
                message.hops += 1
        if placement.refusal is not None:
            self.dead_letters += 1
            log.info("dead letter", channel=self._channel.name, queue=destination[0], reason=placement.refusal.reason.name)
            as_dead_letter(message, placement.refusal, *destination, at_ms=self._world.wall_ms(), channel=self._channel.name)
        return placement

    # Large messages

    async def part(self, part: channel_pb2.Part) -> None:
        """Stages a part of a large message, where the message goes by now."""
        staging = self._staging.get(part.stage)
        if len(part.data) > PART_BYTES_MAX or not part.data or not part.stage or len(part.stage) > 64 or part.chunks > 1_000_000:
            raise Refusal(Reason.PROTOCOL_ERROR, "a part makes no sense")
        if staging is None:
            destination = part.destination.queue, part.destination.queue_manager
            placement = await self._place(destination, messages=1, payload_bytes=0, reserve=False)
            staging = self._staging[part.stage] = _Staging(destination, placement, part.chunks)
        if part.index != staging.came or part.index >= part.chunks or part.chunks != staging.chunks:
            raise Refusal(Reason.PROTOCOL_ERROR, f"part {part.index} of {part.chunks} came after {staging.came} of {staging.chunks}")
        staging.came += 1
        staging.size += len(part.data)
        ahead = [s.size for s in self._staging.values() if not s.expected]
        if sum(ahead) > self._ahead_bytes_max + PART_BYTES_MAX * (1 + len(ahead)):
            raise Refusal(Reason.MSG_TOO_BIG_FOR_Q_MGR, f"parts of more than {self._ahead_bytes_max} bytes")
        staging.pending += part.data
        if staging.placement.refusal is None and staging.placement.destination is None:
            await self._stage(staging)

    async def _stage(self, staging: _Staging) -> None:
        """Writes what has come in whole chunks, and the rest with the last part."""
        if len(staging.pending) < STAGED_BYTES and not staging.complete:
            return
        opened = staging.placement.opened
        if staging.stage is None:
            staging.stage = await self._begin(opened)
        size = len(staging.pending) if staging.complete else len(staging.pending) // large.CHUNK_BYTES * large.CHUNK_BYTES
        if size:
            await large.add(self._structure, staging.stage, bytes(staging.pending[:size]), compares=self._ours())
            del staging.pending[:size]

    async def _begin(self, opened: Opened) -> large.Stage:
        """A new stage, which is known for removal also when the session ends in the middle of this."""
        self._used[opened.name] = opened
        begun = asyncio.ensure_future(
            large.begin(opened, self._world, compares=self._ours(), initiator=self._initiator, channel=self._channel.name)
        )
        self._begun[begun] = None
        await asyncio.wait([begun])  # not `shield`: with Python 3.14 that reports the failure of what it was left with as nobody's
        stage = begun.result()
        self._begun.pop(begun, None)
        return stage

    def _left(self, begun: asyncio.Future[large.Stage]) -> None:
        if not begun.cancelled() and begun.exception() is None:
            large.leave(self._structure, begun.result())

    async def _add_staged(
        self, unit: Unit, priority: int, entry: records_pb2.Entry, destination: tuple[str, str], placement: Placement
    ) -> None:
        staging = self._staging.get(entry.stage)
        if staging is None or not staging.complete or staging.size != entry.size:
            raise Refusal(Reason.LARGE_MESSAGE_INCOMPLETE, f"stage {entry.stage.hex()} was not announced whole")
        if staging.stage is not None and staging.pending:
            raise Refusal(Reason.LARGE_MESSAGE_INCOMPLETE, f"stage {entry.stage.hex()} is not stored whole")
        after = records_pb2.Entry()
        after.CopyFrom(entry)
        after.destination = 0
        plain = placement.refusal is None and placement.destination is None
        if staging.stage is None or staging.stage.queue != placement.queue or plain == staging.rewritten:
            placement = await self._stage_again(staging, destination, placement)
        assert staging.stage is not None
        self._uses(unit, placement)
        staging.stage.publish(unit, after)
        unit.puts.append(NewMessage(placement.queue, priority, after, b"", placement.destination))

    async def _stage_again(self, staging: _Staging, destination: tuple[str, str], placement: Placement) -> Placement:
        """The message goes elsewhere than when its parts came, or must be rewritten: it is staged anew.

        What there was stays until the new stage is whole: this fails when the store is full, and is called again.
        """
        body, old = bytes(staging.pending), staging.stage
        if old is not None:
            body = await large.read(self._structure, old.queue, records_pb2.Entry(stage=old.id, chunks=old.chunks, size=old.size))
        message = _message(body)
        if staging.rewritten:
            message.ClearField("dead_letter")
        placement = await self._rewrite(message, destination, placement)
        stage = await self._begin(placement.opened)
        try:
            await large.add(self._structure, stage, message.SerializeToString(), compares=self._ours())
        except BaseException:
            large.leave(self._structure, stage)
            raise
        staging.rewritten = placement.refusal is not None or placement.destination is not None
        staging.stage, staging.placement, staging.pending = stage, placement, bytearray()
        if old is not None:
            await large.discard(self._structure, old)
        return placement

    def expect(self, arrivals: Sequence[Arrival]) -> None:
        """Their batch has come: from now on the window bounds how many of them there are, however long they wait to be committed."""
        if self._staging:
            for arrival in arrivals:
                for entry in arrival.header.entries:
                    if entry.stage in self._staging:
                        self._staging[entry.stage].expected = True

    def published(self, arrivals: Sequence[Arrival]) -> None:
        """These are committed: their stages are no longer ours to remove."""
        for arrival in arrivals:
            for entry in arrival.header.entries:
                if entry.stage:
                    self._staging.pop(entry.stage, None)

    async def discard(self) -> None:
        """Removes what was staged and not published, when the session ends. Cut off, it leaves that to our cleaner."""
        stages = [staging.stage for staging in self._staging.values() if staging.stage is not None]
        large.leave(self._structure, *stages)
        for writing in self._begun:
            writing.add_done_callback(self._left)
        begun = await asyncio.gather(*map(asyncio.shield, self._begun), return_exceptions=True)
        stages += [stage for stage in begun if isinstance(stage, large.Stage)]
        self._staging.clear()
        await large.discard(self._structure, *stages)


def _by_destination(header: records_pb2.SegmentHeader) -> dict[int, list[int]]:
    if len(header.destinations) == 1:
        return {0: list(range(len(header.entries)))} if header.entries else {}
    found: dict[int, list[int]] = {}
    for index, entry in enumerate(header.entries):
        found.setdefault(entry.destination, []).append(index)
    return found


def _keep_order(header: records_pb2.SegmentHeader, groups: dict[str, tuple[Placement, list[int]]], single: list[_Single]) -> None:
    """A queue has more than one name: what goes there as a group goes one by one too, if something goes, or may go, there by itself."""
    alone = {None if known is None else known.queue for _, _, known in single}
    for queue in [queue for queue in groups if queue in alone or None in alone]:
        placement, indexes = groups.pop(queue)
        for index in indexes:
            to = header.destinations[header.entries[index].destination]
            single.append((index, (to.queue, to.queue_manager), placement))


def _segment(queue: str, priority: int, header: records_pb2.SegmentHeader, bodies: bytes, indexes: list[int]) -> NewSegment:
    """The entries `indexes` as a segment of a target queue."""
    kept, kept_bodies = segments.cut(header, bodies, indexes)
    for _, entry, body in segments.iterate(kept, kept_bodies):
        # What does not parse would fail at whoever gets it: it is told to the partner instead.
        message = _message(bytes(body))
        if len(message.payload) != entry.payload_size or message.message_id != entry.message_id:
            raise Refusal(Reason.PROTOCOL_ERROR, "a message's size or id differs from its index entry")
    bare = segments.set_destination(kept, None)
    return NewSegment(queue, priority, bare, kept_bodies, len(indexes), segments.payload_bytes(bare))


def _message(body: bytes) -> records_pb2.Message:
    try:
        return records_pb2.Message.FromString(body)
    except DecodeError as e:
        raise Refusal(Reason.PROTOCOL_ERROR, "a message cannot be read") from e
