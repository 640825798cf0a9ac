"""Taking, releasing and recovering a channel: what each list of steps does for itself.

How they must not meet is in `tests/interleavings/test_taking.py`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.handover import left_behind
from qsg.rules.ownership import (
    Held,
    Occasion,
    leftovers,
    release,
    release_idle,
    release_own_lock,
    take,
)
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Sight, look
from qsg.rules.stopping import StopOrder, ask_stop, command_start
from qsg.rules.unit import Fenced
from qsg.store.contract import Delete, Put, get_prefix
from support.group_lists import APART, TRIGGER, go_on, recover_all, refused, running, taken, unconfirmed
from support.group_model import CHANNEL, Model, Walk


@APART
def test_take_locks_opens_and_raises_the_epoch(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    held = taken(model, "X")

    entry, fence, lock = model.entry(), model.fence(), model.lock()
    assert entry is not None and (entry.state, entry.owner, entry.epoch) == (pb.STARTING, "X", 1)
    assert (fence.epoch, fence.open, fence.channel, fence.partner, fence.bound_before) == (1, True, "TO.R", "R", False)
    assert lock is not None and (lock.member, lock.epoch) == ("X", 1)
    assert held.stream == fence.stream != b""


@APART
def test_second_start_is_told_where_it_runs(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    taken(model, "X")

    assert (
        refused(Reason.CHANNEL_ALREADY_RUNNING, model, "Y", take(model.me["Y"], model.place, TRIGGER, model.draw)) == "already running on X"
    )


@APART
def test_messages_are_sent_once_and_an_idle_channel_leaves_nothing(apart: bool) -> None:
    model = Model("X", apart=apart)
    model.put(3)
    held = running(model, "X")
    assert len(model.partner.committed) == 3 and model.left() == 0

    assert model.run(model.me["X"], release_idle(held)) is True
    assert model.entry() is None and model.lock() is None and not model.fence().open


@APART
@pytest.mark.parametrize("stopped", [False, True])
def test_the_last_delete_and_the_unlock_are_one_transaction(stopped: bool, apart: bool) -> None:
    """N1: a fence that is closed never shows what the partner has, also when the entry was changed meanwhile."""
    model = Model("X", "Y", apart=apart)
    model.put(2)
    held = taken(model, "X")
    last = model.run(model.me["X"], model.sender(held, leave_last=True))
    assert model.left() == 1 and len(model.partner.committed) == 2
    if stopped:
        model.run(model.me["Y"], ask_stop(model.me["Y"], model.place, StopOrder(pb.STOPPED, False, model.now), model.draw))
    steps = release(held, lambda e: status.altered(e, pb.RECOVERING, model.now), clean=True, last=last)

    assert model.run(model.me["X"], steps) is not stopped
    assert model.left() == 0 and model.lock() is None and not model.fence().open


def handed_over(model: Model) -> Sight | None:
    """X has released the channel for Y: what it tells Y of the keys."""
    model.put(2)
    held = taken(model, "X")
    last = model.run(model.me["X"], model.sender(held, leave_last=True))
    steps = release(held, lambda e: status.altered(e, pb.RECOVERING, model.now), clean=True, last=last)
    assert model.run(model.me["X"], steps)
    return left_behind(held)


def test_what_a_release_tells_need_not_be_read() -> None:
    model = Model("X", "Y", apart=False)
    known = handed_over(model)
    request = Occasion("request", model.now, "X")
    walk = Walk(model, model.me["Y"], take(model.me["Y"], model.place, request, model.draw, known))
    walk.step()

    assert walk.done and isinstance(walk.result, Held) and walk.result.epoch == 2
    assert handed_over(Model("X", apart=True)) is None, "two transactions show nothing at one revision"


@pytest.mark.parametrize("meanwhile", ["claim", "take", "stop"])
def test_what_a_release_told_is_refused_once_it_is_out_of_date(meanwhile: str) -> None:
    model = Model("X", "Y", "Z", apart=False)
    known = handed_over(model)
    if meanwhile == "claim":
        key = keys.consumption("XQ", 0, keys.suffix("X.0", 1, 1))
        model.apply("admin", [Put(key, pb.Consumption(claims=[pb.Claim(member="Z", incarnation=7)]).SerializeToString())])
    elif meanwhile == "take":
        taken(model, "Z", Occasion("request", model.now, "X"))
    else:
        model.run(model.me["Z"], ask_stop(model.me["Z"], model.place, StopOrder(pb.STOPPED, False, model.now), model.draw))
    before, state = model.lock(), model.state()

    request = Occasion("request", model.now, "X")
    refused(Reason.CHANGED_MEANWHILE, model, "Y", take(model.me["Y"], model.place, request, model.draw, known))
    assert (model.lock(), model.state()) == (before, state)


@APART
def test_idle_release_is_refused_by_a_message_that_comes_between(apart: bool) -> None:
    """H6: a message commits between the last empty read and the unlock."""
    model = Model("X", apart=apart)
    held = running(model, "X")
    walk = Walk(model, model.me["X"], release_idle(held))
    walk.step()
    model.put()
    while not walk.done:
        walk.step()

    assert walk.result is False and model.state() == pb.RUNNING and model.lock() is not None


@APART
def test_epochs_go_on_after_the_entry_was_removed(apart: bool) -> None:
    """C7b: the epoch is in the fence, not in the entry."""
    model = Model("X", "Y", apart=apart)
    model.run(model.me["X"], release_idle(running(model, "X")))

    assert taken(model, "Y").epoch == 2


@APART
def test_claims_of_an_application_keep_the_channel_away(apart: bool) -> None:
    """H8; a claim of a dead incarnation does not."""
    model = Model("X", "Y", apart=apart)
    model.put()
    key = keys.consumption("XQ", 0, keys.suffix("X.0", 1, 1))
    claim = pb.Claim(member="Y", incarnation=model.me["Y"].incarnations[model.place.structure], entries=[0])
    model.apply(model.place.structure, [Put(key, pb.Consumption(claims=[claim]).SerializeToString())])

    refused(Reason.OBJECT_IN_USE, model, "X", take(model.me["X"], model.place, TRIGGER, model.draw))
    model.kill("Y")
    assert taken(model, "X").epoch == 1


@APART
def test_a_claim_between_read_and_lock_is_seen(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    walk = Walk(model, model.me["X"], take(model.me["X"], model.place, TRIGGER, model.draw))
    walk.step()
    key = keys.consumption("XQ", 0, keys.suffix("X.0", 1, 1))
    model.apply(model.place.structure, [Put(key, pb.Consumption(claims=[pb.Claim(member="Y", incarnation=7)]).SerializeToString())])
    while not walk.done:
        walk.step()

    assert isinstance(walk.error, Refusal) and walk.error.reason is Reason.CHANGED_MEANWHILE
    assert model.entry() is None and model.lock() is None


def test_another_channel_may_not_use_an_open_queue() -> None:
    """H2."""
    model = Model("X")
    model.put()
    running(model, "X")
    model.kill("X")
    model.join("Y")
    other = CHANNEL.model_copy(update={"name": "CH.B"})
    place = type(model.place)(other, "admin", model.place.structure)
    before = model.fence(), model.lock()

    refused(Reason.CHANNEL_IN_USE, model, "Y", take(model.me["Y"], place, TRIGGER, model.draw))
    assert (model.fence(), model.lock()) == before and before[0].open


def test_a_new_partner_draws_a_new_stream_only_when_closed() -> None:
    model = Model("X")
    held = running(model, "X")
    other = CHANNEL.model_copy(update={"partner": "S"})
    place = type(model.place)(other, "admin", model.place.structure)
    model.run(model.me["X"], release(held, lambda e: None, clean=False))
    refused(Reason.IN_DOUBT, model, "X", take(model.me["X"], place, TRIGGER, model.draw))

    model.run(model.me["X"], release_idle(running(model, "X")))
    second = model.run(model.me["X"], take(model.me["X"], place, TRIGGER, model.draw))
    assert second.stream != held.stream and not model.fence().bound_before


@APART
def test_a_dead_members_channel_is_recovered_and_resent_from_the_record(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    walk = unconfirmed(model, 3)
    model.kill("X")
    model.run(model.me["Y"], go_on(model, model.me["Y"]))

    entry = model.entry()
    assert entry is not None and (entry.owner, entry.state) == ("Y", pb.RUNNING)
    assert (getattr(entry.takeover, "from"), entry.takeover.to, entry.takeovers) == ("X", "Y", 1)
    assert len(model.partner.committed) == 3 and model.left() == 0
    while not walk.done:
        walk.step()
    assert isinstance(walk.error, Fenced)


@APART
def test_a_dead_initiators_lock_and_entry_are_given_up(apart: bool) -> None:
    """N13."""
    model = Model("X", "Y", apart=apart)
    running(model, "X")
    me = model.new_initiator("X")

    assert model.run(me, recover_all(model, me)) == 1
    entry = model.entry()
    assert entry is not None and (entry.state, entry.owner, entry.owner_initiator) == (pb.RECOVERING, "X", me.initiator)
    assert model.lock() is None
    request = Occasion("request", model.now, requester="X")
    assert taken(model, "Y", request).epoch == 2


def test_inbound_entries_of_a_dead_member_are_removed_and_stopped_ones_stay() -> None:
    model = Model("X", "Y")
    incarnation = model.me["X"].incarnations["admin"]
    inbound = pb.ChannelStatus(channel="FROM.R", owner="X", owner_incarnation=incarnation, state=pb.RUNNING, type=pb.RECEIVER)
    stopped = pb.ChannelStatus(channel="TO.S", owner="X", owner_incarnation=incarnation, state=pb.STOPPED)
    model.apply("admin", [Put(keys.status_in("FROM.R", "R"), status.image(inbound)), Put(keys.status_out("TO.S"), status.image(stopped))])
    model.kill("X")

    assert model.run(model.me["Y"], recover_all(model, model.me["Y"])) == 1
    assert [kv.key for kv in model.stores["admin"].read(get_prefix(b"t")).kvs] == [keys.status_out("TO.S")]


def test_pinned_channels_wait_for_their_member() -> None:
    model = Model("X", "Y")
    running(model, "X")
    model.kill("X")
    read = look("admin", *(get_prefix(p) for p in (keys.STATUS_OUT, keys.MEMBERS, keys.INITIATORS)))
    sight = model.run(model.me["Y"], read)

    assert list(leftovers(model.me["Y"], sight, pinned=lambda _: True)) == []
    assert [item.cause for item in leftovers(model.join("X"), sight, pinned=lambda _: True)] == ["queue manager failed"]


@APART
def test_what_is_left_of_another_channel_does_not_give_up_the_lock_of_the_one_that_runs(apart: bool) -> None:
    """Both send from one queue, and both entries are of one member."""
    model = Model("X", "Y", apart=apart)
    running(model, "X")
    me = model.me["X"]
    second = replace(model.place, channel=model.place.channel.model_copy(update={"name": "TO.R.2"}))
    model.run(me, command_start(me, second, model.now, model.draw))
    sight = model.run(me, look("admin", get_prefix(keys.STATUS_OUT)))

    assert not model.run(me, release_own_lock(me, second, sight.cell(keys.status_out("TO.R.2"))))
    assert model.lock() is not None


@APART
def test_a_live_holder_is_left_alone_when_the_table_has_lost_its_entry(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    running(model, "X")
    model.apply("admin", [Delete(keys.status_out("TO.R"))])

    assert "locked by TO.R on X" in refused(Reason.CHANNEL_IN_USE, model, "Y", take(model.me["Y"], model.place, TRIGGER, model.draw))
