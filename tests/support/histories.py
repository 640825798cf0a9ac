"""Checkers of histories: what a store went through, change by change, against what may happen (design, section 11).

Each checker is fed in commit order and answers with what is wrong, in words; none of them knows how a history was taken, so that the
simulation (every commit of a store in memory) and real processes (a watch of etcd) share them. They see keys and values only.
`support.linearizable` checks histories of calls.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.store.contract import Event

Violations = list[str]
Place = tuple[int, bytes, int]


def place_of(position: pb.Position) -> Place:
    return position.create_revision, position.suffix, position.index


class StatusTable:
    """Invariant 8: one owner for each channel, and only transitions of the state diagram. Keys under `t/` and `ti/`.

    A running channel changes its owner only as a gift, with the next epoch.
    """

    def __init__(self) -> None:
        self.entries: dict[bytes, pb.ChannelStatus] = {}

    def saw(self, key: bytes, value: bytes | None) -> Violations:
        before = self.entries.pop(key, None)
        after = None
        if value is not None:
            after = self.entries[key] = pb.ChannelStatus.FromString(value)
        wrong = []
        try:
            status.check(status.state_of(before), status.state_of(after))
        except status.IllegalTransition as error:
            wrong.append(f"{key.decode()}: {error}")
        if after is not None and not after.owner and after.state != pb.STOPPED:
            wrong.append(f"{key.decode()}: {status.name(after.state)} without an owner")
        if before is not None and after is not None and before.state in status.HELD and after.state in status.HELD:
            old, new = (before.owner, before.owner_incarnation), (after.owner, after.owner_incarnation)
            gift = (before.state, after.state) == (pb.RUNNING, pb.STARTING) and after.epoch == before.epoch + 1
            if old != new and key.startswith(keys.STATUS_OUT) and not gift:
                wrong.append(f"{key.decode()}: goes from {old} to {new} while {status.name(before.state)}")
        return wrong

    def state(self, channel: str) -> status.State:
        return status.state_of(self.entries.get(keys.status_out(channel)))


@dataclass(slots=True)
class Ownership:
    """Invariant 3, of one transmission queue: a lock belongs to a live incarnation, each has a higher epoch, only its holder confirms."""

    queue: str
    lock: pb.Lock | None = None
    fence: pb.SenderFence = field(default_factory=pb.SenderFence)
    confirmed: dict[int, Place] = field(default_factory=dict)
    highest: int = 0
    """Epoch of the last lock."""

    def saw(self, changes: dict[bytes, bytes | None], writer: str, live: dict[str, int]) -> Violations:
        """One revision: the changed keys of this queue, the member that wrote it ("" = not known), all live incarnations after it."""
        before, wrong = self.lock, []
        if keys.sender_fence(self.queue) in changes:
            wrong += self._fence(pb.SenderFence.FromString(changes[keys.sender_fence(self.queue)] or b""))
        if keys.lock(self.queue) in changes:
            wrong += self._lock(changes[keys.lock(self.queue)], live)
        if keys.sender_progress(self.queue) in changes:
            wrong += self._progress(changes[keys.sender_progress(self.queue)], before, writer, live)
        return wrong

    def _fence(self, after: pb.SenderFence) -> Violations:
        before, self.fence = self.fence, after
        if after.stream != before.stream:
            self.confirmed = {}
        if after.epoch < before.epoch:
            return [f"the fence of {self.queue} goes from epoch {before.epoch} back to {after.epoch}"]
        return []

    def _lock(self, value: bytes | None, live: dict[str, int]) -> Violations:
        if value is None:
            self.lock = None
            return []
        lock = self.lock = pb.Lock.FromString(value)
        wrong = []
        if live.get(lock.member) != lock.incarnation:
            wrong.append(f"{self.queue} is locked by {lock.member} {lock.incarnation}, which is not alive ({live.get(lock.member)})")
        if lock.epoch <= self.highest:
            wrong.append(f"{self.queue} is locked with epoch {lock.epoch} after {self.highest}")
        if lock.epoch != self.fence.epoch:
            wrong.append(f"{self.queue} is locked with epoch {lock.epoch} while its fence says {self.fence.epoch}")
        if not self.fence.open:
            wrong.append(f"{self.queue} is locked and its fence not open")
        self.highest = max(self.highest, lock.epoch)
        return wrong

    def _progress(self, value: bytes | None, before: pb.Lock | None, writer: str, live: dict[str, int]) -> Violations:
        confirmed = {p: place_of(at) for p, at in pb.Progress.FromString(value or b"").confirmed.items()}
        old, self.confirmed = self.confirmed, confirmed
        if confirmed == old:
            return []
        wrong = [f"{self.queue} confirmed {at} behind {old[p]}, priority {p}" for p, at in confirmed.items() if p in old and at < old[p]]
        wrong += [f"{self.queue} forgot what was confirmed of priority {p}" for p in old if p not in confirmed]
        held = before is not None and live.get(before.member) == before.incarnation and self.lock == before
        if held and before is not None and writer and writer != before.member:
            wrong.append(f"{writer} confirmed messages of {self.queue} while {before.member} held its lock")
        if before is None and self.lock is None and self.highest and self.fence.epoch == self.highest:
            # A stop or a resolve settles without the lock too, but only behind an epoch of its own.
            wrong.append(f"messages of {self.queue} were confirmed at epoch {self.highest}, whose lock was given up")
        return wrong


@dataclass(slots=True)
class Receiver:
    """Invariant 4, of one stream: fences only rise, positions only rise, and what came was behind what had come."""

    stream: bytes
    fence: pb.ReceiverFence = field(default_factory=pb.ReceiverFence)
    record: pb.Progress = field(default_factory=pb.Progress)

    def saw(self, fence: bytes | None, record: bytes | None, writer: str) -> Violations:
        """One revision; None: not changed."""
        wrong = []
        if fence is not None:
            after = pb.ReceiverFence.FromString(fence)
            if (after.epoch, after.instance) < (self.fence.epoch, self.fence.instance):
                wrong.append(f"the receiver of {after.channel} goes back from {self._number(self.fence)} to {self._number(after)}")
            elif (after.epoch, after.instance) == (self.fence.epoch, self.fence.instance) and after.session != self.fence.session:
                wrong.append(f"two sessions of {after.channel} were bound as {self._number(after)}")
            self.fence = after
        if record is not None:
            wrong += self._recorded(pb.Progress.FromString(record), writer)
        return wrong

    @staticmethod
    def _number(fence: pb.ReceiverFence) -> str:
        return f"epoch {fence.epoch} instance {fence.instance}"

    def _recorded(self, after: pb.Progress, writer: str) -> Violations:
        before, self.record = self.record, after
        channel = self.fence.channel
        wrong = []
        risen = False
        for priority, at in before.confirmed.items():
            now = place_of(after.confirmed[priority]) if priority in after.confirmed else (0, b"", 0)
            if now < place_of(at):
                wrong.append(f"the record of {channel} falls from {place_of(at)} to {now}, priority {priority}")
            risen = risen or now > place_of(at)
        risen = risen or any(priority not in before.confirmed for priority in after.confirmed)
        if after.messages > before.messages and not risen:
            wrong.append(f"{after.messages - before.messages} messages of {channel} were taken without moving its record")
        if after.messages > before.messages and writer and writer != self.fence.member:
            wrong.append(f"{writer} took messages of {channel}, which {self.fence.member} has bound")
        return wrong

    def took(self, record: bytes) -> bool:
        """Whether this record shows messages that the last one did not."""
        return pb.Progress.FromString(record).messages > self.record.messages


CHECKED = (keys.STATUS_OUT, keys.STATUS_IN, keys.FENCES, keys.PROGRESS, keys.RECEIVER_FENCES, keys.RECEIVER_PROGRESS)
"""Beside locks: prefixes of the keys that the checkers look at."""


class StoreHistory:
    """Everything that one store shows, commit by commit. `moved` has what a channel moved in the last commit."""

    def __init__(self) -> None:
        self.table = StatusTable()
        self.live: dict[str, int] = {}
        """Member -> incarnation."""
        self.queues: dict[str, Ownership] = {}
        self.receivers: dict[bytes, Receiver] = {}
        self.moved: list[str] = []
        """Channels whose receiver here took messages in the last commit."""
        self.confirmed: list[str] = []
        """Transmission queues whose confirmed positions the last commit changed."""

    def saw(self, events: Iterable[Event]) -> Violations:
        """One revision."""
        changes: dict[bytes, bytes | None] = {}
        guard, before = b"", frozenset(self.live)
        for event in events:
            kv = event.kv
            key = kv.key
            if key.startswith(CHECKED) or (key.endswith(b"/l") and key.startswith(keys.QUEUES)):
                changes[key] = None if event.deleted else kv.value
            elif key.startswith(keys.GUARDS):
                guard = key
            elif key.startswith(keys.MEMBERS):
                member = keys.unname(key[len(keys.MEMBERS) :])
                if event.deleted:
                    self.live.pop(member, None)
                else:
                    self.live[member] = kv.create_revision
        writer = keys.unname(guard[len(keys.GUARDS) :].partition(b"/")[0])
        self.moved, self.confirmed = [], []
        wrong = self._check(changes, writer) if changes else []
        if writer and writer not in self.live and writer not in before:
            wrong.append(f"{writer} has written, and is not a member")
        return wrong

    def _check(self, changes: dict[bytes, bytes | None], writer: str) -> Violations:
        wrong: Violations = []
        queues: dict[str, None] = {}
        streams: dict[bytes, None] = {}
        for key, value in changes.items():
            if key.startswith((keys.STATUS_OUT, keys.STATUS_IN)):
                wrong += self.table.saw(key, value)
            elif key.startswith((keys.FENCES, keys.PROGRESS)):
                queues[keys.unname(key.partition(b"/")[2])] = None
            elif key.startswith(keys.QUEUES) and key.endswith(b"/l"):
                queues[keys.unname(key[len(keys.QUEUES) : -2])] = None
            elif key.startswith((keys.RECEIVER_FENCES, keys.RECEIVER_PROGRESS)):
                streams[bytes.fromhex(key.partition(b"/")[2].decode())] = None
        for queue in queues:
            ownership = self.queues.setdefault(queue, Ownership(queue))
            before = ownership.confirmed
            wrong += ownership.saw(changes, writer, self.live)
            if ownership.confirmed != before:
                self.confirmed.append(queue)
        for stream in streams:
            wrong += self._receiver(stream, changes, writer)
        return wrong

    def _receiver(self, stream: bytes, changes: dict[bytes, bytes | None], writer: str) -> Violations:
        receiver = self.receivers.setdefault(stream, Receiver(stream))
        record = changes.get(keys.receiver_progress(stream))
        took = record is not None and receiver.took(record)
        wrong = receiver.saw(changes.get(keys.receiver_fence(stream)), record, writer)
        if took:
            self.moved.append(receiver.fence.channel)
        return wrong
