"""Each checker of histories accepts what happens in good runs and says what is wrong with bad ones."""

from __future__ import annotations

from google.protobuf.message import Message

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.store.contract import Event, KeyValue
from support.histories import StoreHistory

STREAM = b"\1\2\3"
RECORD = keys.receiver_progress(STREAM)
BOUND = keys.receiver_fence(STREAM)
ENTRY = keys.status_out("CH")


class Store:
    """Feeds a history, a revision at a time."""

    def __init__(self) -> None:
        self.history = StoreHistory()
        self.revision = 1
        self.made: dict[bytes, int] = {}

    def put(self, *changes: tuple[bytes, Message | None], writer: str = "") -> list[str]:
        self.revision += 1
        events = []
        if writer:
            changes = ((keys.guard(writer, 0), pb.Guard(number=self.revision)), *changes)
        for key, record in changes:
            if record is None:
                self.made.pop(key, None)
                events.append(Event(KeyValue(key, b"", 0, self.revision, 0), deleted=True))
            else:
                created = self.made.setdefault(key, self.revision)
                events.append(Event(KeyValue(key, record.SerializeToString(), created, self.revision)))
        return self.history.saw(events)

    def join(self, member: str) -> int:
        self.put((keys.member(member), None))
        assert self.put((keys.member(member), pb.MemberRecord(member=member))) == []
        return self.revision

    def lock(self, member: str, incarnation: int, epoch: int, fence: int | None = None) -> list[str]:
        return self.put(
            (keys.lock("Q"), pb.Lock(member=member, incarnation=incarnation, epoch=epoch, channel="CH")),
            (keys.sender_fence("Q"), pb.SenderFence(epoch=epoch if fence is None else fence, stream=STREAM, open=True, channel="CH")),
            writer=member,
        )


def entry(state: pb.ChannelState.ValueType, owner: str = "X") -> pb.ChannelStatus:
    return pb.ChannelStatus(channel="CH", state=state, owner=owner, owner_incarnation=1)


def progress(*confirmed: int, messages: int = 0) -> pb.Progress:
    """Positions of priority 0, 1 …"""
    made = pb.Progress(messages=messages)
    for priority, at in enumerate(confirmed):
        made.confirmed[priority].CopyFrom(pb.Position(create_revision=at))
    return made


def test_a_channels_life_is_legal() -> None:
    store = Store()
    for state, owner in (
        (pb.STARTING, "X"),
        (pb.RUNNING, "X"),
        (pb.RECOVERING, "Y"),
        (pb.STARTING, "Y"),
        (pb.STOPPING, "Y"),
        (pb.STOPPED, ""),
    ):
        assert store.put((ENTRY, entry(state, owner))) == []
    assert store.put((ENTRY, None)) == []


def test_a_running_channel_goes_to_another_owner_only_as_a_gift() -> None:
    for epoch, legal in ((4, True), (3, False), (5, False)):
        store, gift = Store(), entry(pb.STARTING, "Y")
        for state in (pb.STARTING, pb.RUNNING):
            running = entry(state)
            running.epoch = 3
            assert store.put((ENTRY, running)) == []
        gift.epoch = epoch
        assert (store.put((ENTRY, gift)) == []) is legal


def test_a_transition_that_the_diagram_does_not_have() -> None:
    store = Store()
    store.put((ENTRY, entry(pb.STOPPING)))
    (wrong,) = store.put((ENTRY, entry(pb.RUNNING)))
    assert "STOPPING -> RUNNING" in wrong


def test_an_owner_that_takes_over_what_runs() -> None:
    store = Store()
    store.put((ENTRY, entry(pb.STARTING)))
    store.put((ENTRY, entry(pb.RUNNING)))
    (wrong,) = store.put((ENTRY, entry(pb.RUNNING, "Y")))
    assert "'X'" in wrong and "'Y'" in wrong


def test_locks_of_the_living_with_rising_epochs() -> None:
    store = Store()
    x, y = store.join("X"), store.join("Y")
    assert store.lock("X", x, 1) == []
    assert store.put((keys.sender_progress("Q"), progress(5)), writer="X") == []
    assert store.put((keys.member("X"), None)) == []
    assert store.lock("Y", y, 2) == []
    assert store.put((keys.sender_progress("Q"), progress(7)), writer="Y") == []


def test_a_lock_of_a_dead_incarnation() -> None:
    store = Store()
    old = store.join("X")
    store.join("X")
    (wrong,) = store.lock("X", old, 1)
    assert "not alive" in wrong


def test_a_lock_without_a_higher_epoch() -> None:
    store = Store()
    x = store.join("X")
    store.lock("X", x, 3)
    (wrong,) = store.lock("X", x, 3)
    assert "epoch 3 after 3" in wrong
    assert any("its fence says" in w for w in store.lock("X", x, 5, fence=4))


def test_who_does_not_hold_the_lock_confirms_nothing() -> None:
    store = Store()
    x, _ = store.join("X"), store.join("Y")
    store.lock("X", x, 1)
    (wrong,) = store.put((keys.sender_progress("Q"), progress(5)), writer="Y")
    assert "Y confirmed messages of Q while X held" in wrong
    store.put((keys.sender_progress("Q"), progress(9)), writer="X")
    (wrong,) = store.put((keys.sender_progress("Q"), progress(6)), writer="X")
    assert "behind" in wrong


def test_nobody_confirms_at_an_epoch_whose_lock_was_given_up() -> None:
    store = Store()
    x = store.join("X")
    store.lock("X", x, 1)
    store.put((keys.sender_progress("Q"), progress(5)), (keys.lock("Q"), None), writer="X")
    (wrong,) = store.put((keys.sender_progress("Q"), progress(7)), writer="X")
    assert "epoch 1, whose lock was given up" in wrong
    store.put((keys.sender_fence("Q"), pb.SenderFence(epoch=2, stream=STREAM, channel="CH")), writer="X")
    assert store.put((keys.sender_progress("Q"), progress(9)), writer="X") == [], "a stop, behind an epoch of its own"


def test_who_was_declared_dead_writes_nothing() -> None:
    store = Store()
    store.join("X")
    assert store.put((b"k", pb.Totals()), writer="X") == []
    assert store.put((keys.member("X"), None), writer="X") == [], "its last: it carries a verdict against itself out"
    (wrong,) = store.put((b"k", pb.Totals()), writer="X")
    assert wrong == "X has written, and is not a member"


def bound(epoch: int, instance: int, session: bytes = b"s", member: str = "X") -> pb.ReceiverFence:
    return pb.ReceiverFence(epoch=epoch, instance=instance, session=session, channel="CH", member=member)


def test_a_receivers_record_only_grows() -> None:
    store = Store()
    store.join("X")
    assert store.put((BOUND, bound(1, 1))) == []
    assert store.put((RECORD, progress(5, messages=3)), writer="X") == []
    assert store.history.moved == ["CH"]
    (wrong,) = store.put((RECORD, progress(4, messages=3)), writer="X")
    assert "falls" in wrong
    (wrong,) = store.put((RECORD, progress(4, messages=9)), writer="X")
    assert "without moving" in wrong


def test_a_receiver_takes_nothing_from_an_older_epoch_or_session() -> None:
    store = Store()
    store.join("Y")
    store.put((BOUND, bound(2, 1)))
    (wrong,) = store.put((BOUND, bound(1, 7)))
    assert "goes back" in wrong
    store.put((BOUND, bound(3, 1)))
    (wrong,) = store.put((BOUND, bound(3, 1, session=b"other")))
    assert "two sessions" in wrong
    (wrong,) = store.put((RECORD, progress(5, messages=1)), writer="Y")
    assert "Y took messages of CH, which X has bound" in wrong
