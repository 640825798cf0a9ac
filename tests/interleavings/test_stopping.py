"""Interleavings around stopping a channel, resolving what is in doubt, and resetting numbers."""

from __future__ import annotations

from typing import Any

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.ownership import Occasion, release, release_own_lock, take
from qsg.rules.reasons import Reason
from qsg.rules.steps import Steps
from qsg.rules.stopping import Resolution, StopOrder, ask_stop, carry_stop, command_start, reset_sender, resolve
from qsg.rules.unit import CompareFailed
from qsg.store.contract import Get
from support.group_lists import go_on, in_doubt, recover_all, refused, running, stop, taken, unconfirmed
from support.group_model import Model, Walk


def with_a_message_in_its_buffers(model: Model) -> Walk:
    """X is bound and has read the next message, but not sent it."""
    walk = unconfirmed(model, 2)
    while model.left() == 2 or model.state() != pb.RUNNING:
        walk.step()
    walk.step()
    assert len(model.partner.committed) == 1
    return walk


def backout(model: Model, member: str, force: bool = True) -> Steps[Any]:
    return resolve(model.me[member], model.place, Resolution("backout", force), model.draw, "QSG")


def test_n5_a_paused_sender_that_wakes_after_the_stop_moves_nothing() -> None:
    """X is paused with messages in its buffers; the channel is stopped; X wakes and sends. Wrong: the partner still holds the old epoch
    and takes them from a STOPPED channel. Prevented: a stop binds at the partner with a raised epoch before the entry is STOPPED."""
    model = Model("X", "Y")
    paused = with_a_message_in_its_buffers(model)
    assert model.run(model.me["Y"], stop(model, model.me["Y"])) is True
    assert model.state() == pb.STOPPED

    while not paused.done:
        paused.step()

    assert paused.error is not None
    assert len(model.partner.committed) == 1 and model.left() == 1


def test_n5_with_the_partner_out_of_reach_it_stays_stopping_and_says_so() -> None:
    """As before, with the partner out of reach. Wrong: STOPPED is claimed though the old instance may still be served. Prevented: the entry
    stays STOPPING, *partner not fenced*, and any member carries the stop on."""
    model = Model("X", "Y")
    with_a_message_in_its_buffers(model)
    model.partner.reachable = False
    assert model.run(model.me["X"], stop(model, model.me["X"])) is False
    entry = model.entry()
    assert entry is not None and entry.state == pb.STOPPING and entry.partner_not_fenced

    model.kill("X")
    model.partner.reachable = True
    model.run(model.me["Y"], go_on(model, model.me["Y"]))
    assert model.state() == pb.STOPPED and not model.fence().open


def test_n5_a_stop_whose_member_dies_stays_a_stop() -> None:
    """The member that carries a stop dies, and so does the one that had stopped another channel. Wrong: recovery makes them wanted, and a
    stopped channel runs. Prevented: STOPPING is carried on as what it is, STOPPED is not recovered."""
    model = Model("X", "Y", "Z")
    running(model, "X")
    order = StopOrder(pb.STOPPED, True, model.now)
    model.run(model.me["X"], ask_stop(model.me["X"], model.place, order, model.draw))
    model.kill("X")

    model.run(model.me["Y"], recover_all(model, model.me["Y"]))
    assert model.state() == pb.STOPPING
    assert model.run(model.me["Y"], carry_stop(model.me["Y"], model.place, model.now, model.draw, "QSG")) is True
    model.kill("Y")
    model.run(model.me["Z"], go_on(model, model.me["Z"]))
    assert model.state() == pb.STOPPED


def test_p7_what_the_partner_had_committed_is_settled_before_stopped_can_be_resolved() -> None:
    """R committed 1, the stop's bind fences it, STOPPED, `resolve backout`, an application gets 1. Wrong: duplicate. Prevented: the stop
    deletes what the partner's record covers and closes the fence before the entry is STOPPED."""
    model = Model("X", "Y")
    unconfirmed(model, 2)
    assert model.left() == 2, "committed at R, not deleted here"

    assert model.run(model.me["Y"], stop(model, model.me["Y"])) is True

    assert model.left() == 1 and not model.fence().open
    refused(Reason.NOT_IN_DOUBT, model, "Y", backout(model, "Y"))


def test_p7_resolve_is_refused_once_the_partner_answers() -> None:
    """The partner is back when an operator resolves by hand. Wrong: the operator's guess overrides what the partner knows. Prevented: it is
    asked first, and its record settles the queue."""
    model = Model("X")
    in_doubt(model)
    model.partner.reachable = True

    assert "1 messages deleted" in refused(Reason.NOT_IN_DOUBT, model, "X", backout(model, "X"))
    assert model.left() == 1 and not model.fence().open


def test_n2_resolve_commit_deletes_exactly_what_the_partner_showed() -> None:
    """`resolve commit` deletes up to a mark that runs ahead of what was sent. Wrong: loss. Prevented: it takes the record that the
    partner's status showed, of this very stream, and deletes nothing beyond it."""
    model = Model("X")
    in_doubt(model)
    stream = model.fence().stream
    known = model.partner.records[stream]

    def commit(of: bytes) -> Steps[Any]:
        return resolve(model.me["X"], model.place, Resolution("commit", True, known, of), model.draw, "QSG")

    refused(Reason.OPTIONS_ERROR, model, "X", commit(b"another stream"))
    assert model.run(model.me["X"], commit(stream)).deleted == 1
    assert model.left() == 1
    refused(Reason.NOT_IN_DOUBT, model, "X", commit(stream))


def test_m6_a_reset_changes_numbers_and_never_positions() -> None:
    """`reset`, or a partner that lost its record. Wrong: silent duplicates. Prevented: numbers are the alarm and positions decide; a reset
    changes only the alarm."""
    model = Model("X")
    model.put(1)
    held = running(model, "X")
    model.run(model.me["X"], release(held, lambda e: None, clean=True))
    before = pb.Progress.FromString(model.stores["app"].read(Get(keys.sender_progress("XQ"))).kvs[0].value)
    model.run(model.me["X"], reset_sender(model.me["X"], model.place, 100))

    after = pb.Progress.FromString(model.stores["app"].read(Get(keys.sender_progress("XQ"))).kvs[0].value)
    assert (after.sequence, after.reset_to) == (99, 100) and after.confirmed[0] == before.confirmed[0]


def test_m6_a_partner_that_lost_its_record_stops_the_channel_and_the_status_says_so() -> None:
    """The partner's record of a stream that was bound before is gone. Wrong: everything unconfirmed is sent again, silently. Prevented: the
    bind says *bound before*; the channel ends STOPPED, in doubt, with the reason, until an operator decides."""
    model = Model("X")
    model.put(1)
    held = running(model, "X")
    model.partner.fences.clear()
    model.partner.records.clear()

    assert model.run(model.me["X"], stop(model, model.me["X"])) is True
    entry = model.entry()
    assert entry is not None and entry.state == pb.STOPPED and entry.in_doubt and entry.reason == Reason.NO_RECORD
    assert model.fence().open and model.fence().stream == held.stream


def test_p10_confirmations_do_not_starve_a_stop() -> None:
    """Each confirmation rewrites the key that a stop must swap. Wrong: the stop loses every race. Prevented: fence and progress are two
    keys; between a stop's read and its commit any number of batches may be confirmed."""
    model = Model("X", "Y")
    sending = with_a_message_in_its_buffers(model)
    stopping = Walk(model, model.me["Y"], stop(model, model.me["Y"]))
    while model.state() != pb.STOPPING:
        stopping.step()
    stopping.step()
    stopping.step()  # entry and the queue's side are read
    left = model.left()
    while model.left() == left:
        sending.step()  # a confirmation comes between

    while not stopping.done:
        stopping.step()

    assert stopping.result is True and model.state() == pb.STOPPED


def test_c7_a_late_request_behind_a_stop_and_a_start_finds_the_new_state() -> None:
    """X asks Z to start; before Z acts the channel is stopped, and started by command elsewhere. Wrong: two run. Prevented: who is asked
    finds another owner's entry."""
    model = Model("X", "Y", "Z")
    running(model, "X")
    model.run(model.me["X"], stop(model, model.me["X"]))
    model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))

    late = Occasion("request", model.now, requester="X")
    refused(Reason.CHANNEL_IN_USE, model, "Z", take(model.me["Z"], model.place, late, model.draw))
    running_on = taken(model, "Y", Occasion("own", model.now))
    assert running_on.epoch == model.fence().epoch


def test_n1_what_was_sent_stays_locked_away_when_the_lock_is_lost() -> None:
    """X sends 1, R commits, X loses the lock before it deleted; an application gets 1. Wrong: duplicate. Prevented: the fence stays *open*,
    locked or not, until a bind has settled it."""
    model = Model("X", "Y")
    walk = unconfirmed(model, 2)

    model.run(model.me["X"], release_own_lock(model.me["X"], model.place, model.entry_cell()))

    assert model.lock() is None and model.fence().open
    while not walk.done:
        walk.step()
    assert isinstance(walk.error, CompareFailed) and model.left() == 2, "nothing is deleted without the lock"
