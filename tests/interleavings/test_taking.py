"""Interleavings around who has a channel: taking, recovering, letting go."""

from __future__ import annotations

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import consume, keys, status
from qsg.rules.ownership import Occasion, leftovers, raise_epoch, recover, release, release_idle, release_own_lock, take
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Place, look
from qsg.rules.unit import CompareFailed, Fenced
from qsg.store.contract import Delete, Get, Put, get_prefix
from support.group_lists import APART, TRIGGER, go_on, in_doubt, recover_all, refused, running, stop, taken, unconfirmed
from support.group_model import CHANNEL, Model, Walk


def stalled_behind_its_entry(model: Model) -> Walk:
    """Y has written its entry (STARTING) and is paused before the lock."""
    walk = Walk(model, model.me["Y"], take(model.me["Y"], model.place, TRIGGER, model.draw))
    while model.entry() is None:
        walk.step()
    return walk


def finish(walk: Walk) -> None:
    while not walk.done:
        walk.step()


def test_c7_a_taker_that_stalls_while_another_takes_and_stops_the_channel_does_not_start_it() -> None:
    """Y writes its entry and stalls; it is declared dead in the admin structure only; Z takes, is STOPPED and releases; Y wakes and finds
    the lock free. Wrong: a STOPPED channel sends. Prevented: the lock's transaction compares the fence as read before the entry."""
    model = Model("Y", "Z")
    stalled = stalled_behind_its_entry(model)
    model.kill("Y", "admin")
    model.run(model.me["Z"], recover_all(model, model.me["Z"]))
    taken(model, "Z", Occasion("own", model.now))
    assert model.run(model.me["Z"], stop(model, model.me["Z"])) is True

    finish(stalled)

    assert isinstance(stalled.error, Refusal | Fenced)
    assert model.state() == pb.STOPPED and model.lock() is None and not model.fence().open


def test_c7_a_stalled_taker_cannot_bring_an_old_epoch_back() -> None:
    """As before, but Z only lets go: lock and progress look as they did when Y read them. Wrong: Y writes its epoch over a later one.
    Prevented: the fence is compared by revision."""
    model = Model("Y", "Z")
    model.run(model.me["Y"], release_idle(running(model, "Y")))
    stalled = stalled_behind_its_entry(model)
    model.kill("Y", "admin")
    model.run(model.me["Z"], recover_all(model, model.me["Z"]))
    held = taken(model, "Z", Occasion("own", model.now))
    model.run(model.me["Z"], release(held, lambda e: status.altered(e, pb.RETRYING, model.now), clean=False))
    before = model.stores["app"].read(Get(keys.sender_fence("XQ"))).kvs

    finish(stalled)

    assert stalled.error is not None
    assert model.stores["app"].read(Get(keys.sender_fence("XQ"))).kvs == before


def test_c7_a_taker_whose_entry_was_recovered_releases_the_lock_that_it_got() -> None:
    """As before, but nobody has touched the queue: Y's lock succeeds. Wrong: the lock is Y's and the entry Z's. Prevented: the entry is
    read again behind the lock, and the lock let go when it is not exactly the one written."""
    model = Model("Y", "Z")
    stalled = stalled_behind_its_entry(model)
    model.kill("Y", "admin")
    model.run(model.me["Z"], recover_all(model, model.me["Z"]))

    finish(stalled)

    assert isinstance(stalled.error, Refusal) and stalled.error.reason is Reason.CHANGED_MEANWHILE
    entry = model.entry()
    assert entry is not None and (entry.owner, entry.state) == ("Z", pb.RECOVERING) and model.lock() is None


def test_c7_two_takers_who_have_read_the_same_one_has_it() -> None:
    """Y and Z have both read that nobody has the channel. Wrong: both write their entry. Prevented: the entry is compared and swapped."""
    model = Model("Y", "Z")
    first, second = (Walk(model, model.me[m], take(model.me[m], model.place, TRIGGER, model.draw)) for m in "YZ")
    for walk in (first, second):
        walk.step()  # the queue's side
        walk.step()  # the table's side
    finish(first)
    assert first.error is None

    finish(second)

    assert isinstance(second.error, Refusal) and second.error.reason is Reason.CHANGED_MEANWHILE
    entry, lock = model.entry(), model.lock()
    assert entry is not None and lock is not None and entry.owner == lock.member == "Y"


def test_c7b_epochs_go_on_after_the_entry_or_the_table_is_gone() -> None:
    """The entry of an inactive channel is deleted, or the table restored. Wrong: epochs begin at 1 again and the partner refuses for ever.
    Prevented: the epoch is in the queue's fence; and a partner that has seen more says so, and is overtaken."""
    model = Model("X", "Y")
    model.run(model.me["X"], release_idle(running(model, "X")))
    assert model.entry() is None

    held = taken(model, "Y")
    assert held.epoch == 2
    assert model.run(model.me["Y"], raise_epoch(model.me["Y"], held, 41)) is True
    assert model.fence().epoch == held.epoch == 42


def test_h2_another_channel_is_kept_off_a_queue_that_is_in_doubt() -> None:
    """CH.A's batch is committed at R and unconfirmed; CH.B is started on the same transmission queue. Wrong: sent again under a stream
    that R does not know. Prevented: the fence is the queue's, names channel and stream, and stays open."""
    model = Model("X", "Y")
    unconfirmed(model, 2)
    model.kill("X")
    other = Place(CHANNEL.model_copy(update={"name": "CH.B"}), "admin", "app")

    refused(Reason.CHANNEL_IN_USE, model, "Y", take(model.me["Y"], other, TRIGGER, model.draw))
    model.run(model.me["Y"], go_on(model, model.me["Y"]))
    assert len(model.partner.committed) == 2 and model.left() == 0


def test_h5_a_recovered_channel_whose_recoverer_dies_is_recovered_again() -> None:
    """Y marks an entry RECOVERING and asks Z to start; Z dies with it, then Y. Wrong: the entry looks looked after, nobody has it.
    Prevented: a dead owner in any state but STOPPED is recovered like any other; while it lives, it goes on asking."""
    model = Model("X", "Y", "Z")
    model.put(1)
    taken(model, "X")
    model.kill("X")
    model.run(model.me["Y"], recover_all(model, model.me["Y"]))
    asked = Walk(model, model.me["Z"], take(model.me["Z"], model.place, Occasion("request", model.now, requester="Y"), model.draw))
    asked.step()
    model.kill("Z")
    finish(asked)
    assert model.state() == pb.RECOVERING, "Z took nothing along"
    model.kill("Y")

    me = model.join("Z")
    model.run(me, go_on(model, me))
    assert model.state() == pb.RUNNING and len(model.partner.committed) == 1


def test_c7_a_stale_start_request_starts_nothing_that_was_stopped() -> None:
    """A start request, or a trigger, is on its way while the channel is stopped (the other half of C7). Wrong: STOPPED is left without a
    command. Prevented: only a command writes INITIALIZING; every other occasion finds STOPPED."""
    model = Model("X", "Y")
    running(model, "X")
    model.run(model.me["X"], stop(model, model.me["X"]))

    for occasion in (TRIGGER, Occasion("request", model.now, requester="X"), Occasion("own", model.now)):
        refused(Reason.CHANNEL_DISABLED, model, "Y", take(model.me["Y"], model.place, occasion, model.draw))
    assert model.state() == pb.STOPPED and model.lock() is None and not model.fence().open


def test_n13_a_dead_initiators_lock_is_given_up_by_its_living_queue_manager() -> None:
    """The initiator dies, its queue manager lives on and its member key keeps the lock valid. Wrong: takeover refused for ever.
    Prevented: the queue manager releases what its dead initiator held, then gives the entry away, comparing that none has joined since."""
    model = Model("X", "Y")
    sending = unconfirmed(model, 1)
    me = model.new_initiator("X")
    model.run(me, release_own_lock(me, model.place, model.entry_cell()))
    assert model.lock() is None

    while not sending.done and model.left():
        sending.step()
    assert isinstance(sending.error, CompareFailed), "what the dead initiator's instance still had in hand is not written"
    assert model.run(me, recover_all(model, me)) == 1
    assert taken(model, "Y", Occasion("request", model.now, requester="X")).epoch == 2


@APART
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_n13_a_recovery_that_is_held_up_leaves_a_lock_that_its_own_member_has_taken_since(apart: bool, steps: int) -> None:
    """X recovers what it left behind, and its store does not answer; meanwhile the channel is stopped, and started at X. Wrong: the late
    list finds a lock of its own incarnation and gives up what is in use (seed 61282). Prevented: behind the lock it looks whether the
    entry is still the one it recovers."""
    model = Model("X", apart=apart)
    running(model, "X")
    me = model.new_initiator("X")
    late = Walk(model, me, release_own_lock(me, model.place, model.entry_cell()))
    for _ in range(steps):
        late.step()
    model.run(me, stop(model, me, pb.INACTIVE))
    held = taken(model, "X")
    finish(late)
    assert late.result is False and model.lock() == pb.Lock.FromString(held.lock.value or b"")


def test_n13_a_list_of_what_a_dead_initiator_ran_is_of_no_use_once_another_has_joined() -> None:
    """The queue manager has read what its dead initiator ran; another joins, and runs. Wrong: it loses what it has just started.
    Prevented: the recovery compares the initiator's incarnation."""
    model = Model("X")
    running(model, "X")
    me = model.new_initiator("X")
    sight = model.run(me, look("admin", *(get_prefix(p) for p in (keys.STATUS_OUT, keys.MEMBERS, keys.INITIATORS))))
    (leftover,) = leftovers(me, sight)
    model.new_initiator("X")

    assert model.run(me, recover(me, "admin", leftover, 1, 0.0, model.draw)) is False
    assert model.state() == pb.RUNNING


def test_n14_a_half_done_verdict_is_carried_on_by_the_next_take() -> None:
    """A verdict reaches the admin structure only: the victim's lock elsewhere looks alive. Wrong: entry and lock disagree for ever.
    Prevented: whoever finds a member key without its like in the admin structure carries the verdict on."""
    model = Model("X", "Y")
    running(model, "X")
    model.kill("X", "admin")
    model.run(model.me["Y"], go_on(model, model.me["Y"]))

    lock = model.lock()
    assert lock is not None and lock.member == "Y"
    assert model.stores["app"].read(Get(keys.member("X"))).first is None


def test_p6_a_channel_deleted_in_doubt_and_made_again_finds_its_stream() -> None:
    """The definition is deleted while a batch is in doubt, and made again. Wrong: a new stream, everything sent again. Prevented: the
    record belongs to the queue and outlives definition and entry."""
    model = Model("X", "Y")
    in_doubt(model)
    stream = model.fence().stream
    model.apply("admin", [Delete(keys.status_out("TO.R"))])
    model.kill("X")
    model.partner.reachable = True

    held = taken(model, "Y")
    model.run(model.me["Y"], model.sender(held))

    assert held.stream == stream and model.left() == 0
    assert len(model.partner.committed) == len(set(model.partner.committed)) == 2


def test_h6_an_idle_channel_does_not_end_over_a_message_that_comes_between() -> None:
    """A message commits between the last empty read and the unlock of an idle channel. Wrong: no trigger (the channel still had an owner),
    so it lies there. Prevented: the unlock compares the doorbells by prefix as they were read."""
    model = Model("X")
    held = running(model, "X")
    walk = Walk(model, model.me["X"], release_idle(held))
    walk.step()
    model.put()

    finish(walk)

    assert walk.result is False and model.state() == pb.RUNNING and model.lock() is not None


def test_n17_an_idle_channel_sees_the_first_doorbell_of_a_new_lane() -> None:
    """The message that comes between is the first of a member: its doorbell is in no list of keys that were read. Wrong: lost trigger.
    Prevented: what is compared is the prefix, not the keys that were there."""
    model = Model("X")
    model.put()
    held = running(model, "X")
    walk = Walk(model, model.me["X"], release_idle(held))
    walk.step()
    new = Put(keys.lane_totals("XQ", "Q.7"), pb.Totals(put=1, put_bytes=1).SerializeToString())
    model.apply("app", [new])

    finish(walk)

    assert walk.result is False and model.lock() is not None


def test_p11_giving_a_claim_back_rewrites_its_record_and_deletes_nothing() -> None:
    """A key under a compared prefix is deleted: the compare does not see it, and an empty prefix passes. Wrong: a change between read and
    commit goes unseen. Prevented: records under `c/` and totals under `n/` are rewritten while their segment is there."""
    claimer = consume.Claimer("X", 7, b"u")
    claimed = consume.claim_change(claimer, [0], 3)(None)
    assert claimed is not None
    released = consume.release_change(claimer, [0], backed_out=False)(claimed)

    assert released is not None, "absent would be what the prefix compare cannot see"
    assert consume.free_mask(consume.parse(released), 3) == 0b111
