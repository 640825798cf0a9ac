"""Lists of steps: what each does, and every list cut off behind any step, followed by others' and taken up again (interleavings)."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.handover import left_behind
from qsg.rules.ownership import (
    Held,
    Occasion,
    leftovers,
    raise_epoch,
    recover,
    release,
    release_idle,
    take,
)
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Me, PartnerNotReached, Sight, Steps, look
from qsg.rules.stopping import Resolution, StopOrder, ask_stop, carry_stop, command_start, reset_sender, resolve
from qsg.rules.unit import CompareFailed, Fenced
from qsg.store.contract import Delete, Get, Put, get_prefix
from support.group_lists import TRIGGER, go_on, in_doubt, note, recover_all, refused, running, stop, taken
from support.group_model import CHANNEL, Model, Walk

APART = pytest.mark.parametrize("apart", [False, True], ids=["one store", "two structures"])


# --- each list for itself


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


def test_a_higher_epoch_at_the_partner_is_overtaken() -> None:
    model = Model("X")
    held = taken(model, "X")

    assert model.run(model.me["X"], raise_epoch(model.me["X"], held, 41)) is True
    assert model.fence().epoch == held.epoch == 42


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

    refused(Reason.CHANNEL_IN_USE, model, "Y", take(model.me["Y"], place, TRIGGER, model.draw))


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
    model.put(3)
    held = taken(model, "X")
    walk = Walk(model, model.me["X"], model.sender(held))
    while not model.partner.committed:
        walk.step()
    model.kill("X")
    model.run(model.me["Y"], go_on(model, model.me["Y"]))

    entry = model.entry()
    assert entry is not None and (entry.owner, entry.state) == ("Y", pb.RUNNING)
    assert (getattr(entry.takeover, "from"), entry.takeover.to, entry.takeovers) == ("X", "Y", 1)
    assert len(model.partner.committed) == 3 and model.left() == 0
    while not walk.done:
        walk.step()
    assert isinstance(walk.error, Fenced)


def test_a_half_done_verdict_is_carried_on_by_the_next_take() -> None:
    """N14: X is dead in the admin structure, and its lock elsewhere still looks alive."""
    model = Model("X", "Y")
    running(model, "X")
    model.kill("X", "admin")
    model.run(model.me["Y"], go_on(model, model.me["Y"]))

    lock = model.lock()
    assert lock is not None and lock.member == "Y"
    assert model.stores["app"].read(Get(keys.member("X"))).first is None


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


def test_a_taker_that_stalls_behind_its_entry_finds_the_epoch_raised() -> None:
    """C7: Y stalls behind its entry and is declared dead in the admin structure only; Z takes, is stopped, and releases; Y wakes."""
    model = Model("Y", "Z")
    stalled = Walk(model, model.me["Y"], take(model.me["Y"], model.place, TRIGGER, model.draw))
    for _ in range(3):
        stalled.step()
    model.kill("Y", "admin")
    model.run(model.me["Z"], recover_all(model, model.me["Z"]))
    taken(model, "Z", Occasion("own", model.now))
    model.run(model.me["Z"], stop(model, model.me["Z"]))
    while not stalled.done:
        stalled.step()

    assert isinstance(stalled.error, Refusal | Fenced)
    assert model.state() == pb.STOPPED and model.lock() is None and model.fence().epoch >= 2


def test_a_stalled_taker_cannot_bring_an_old_epoch_back() -> None:
    """C7: lock and progress look as they did; only the fence shows that another has held the channel meanwhile."""
    model = Model("Y", "Z")
    model.run(model.me["Y"], release_idle(running(model, "Y")))
    stalled = Walk(model, model.me["Y"], take(model.me["Y"], model.place, TRIGGER, model.draw))
    for _ in range(3):
        stalled.step()
    model.kill("Y", "admin")
    model.run(model.me["Z"], recover_all(model, model.me["Z"]))
    held = taken(model, "Z", Occasion("own", model.now))
    model.run(model.me["Z"], release(held, lambda e: status.altered(e, pb.RETRYING, model.now), clean=False))
    before = model.stores["app"].read(Get(keys.sender_fence("XQ"))).kvs
    while not stalled.done:
        stalled.step()

    assert stalled.error is not None
    assert model.stores["app"].read(Get(keys.sender_fence("XQ"))).kvs == before


def test_a_taker_whose_entry_was_recovered_releases_the_lock_that_it_got() -> None:
    """C7: nothing has touched the queue, so the lock's transaction succeeds; the entry, read again, is another's."""
    model = Model("Y", "Z")
    stalled = Walk(model, model.me["Y"], take(model.me["Y"], model.place, TRIGGER, model.draw))
    for _ in range(3):
        stalled.step()
    entry = model.entry()
    assert entry is not None
    entry.owner, entry.owner_incarnation, entry.state, entry.request = "Z", model.me["Z"].incarnations["admin"], pb.RECOVERING, b"z"
    model.apply("admin", [Put(keys.status_out("TO.R"), status.image(entry))])
    stalled.step()
    assert model.lock() is not None
    while not stalled.done:
        stalled.step()

    assert isinstance(stalled.error, Refusal) and stalled.error.reason is Reason.CHANGED_MEANWHILE
    assert model.lock() is None and model.state() == pb.RECOVERING


@APART
def test_a_live_holder_is_left_alone_when_the_table_has_lost_its_entry(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    running(model, "X")
    model.apply("admin", [Delete(keys.status_out("TO.R"))])

    assert "locked by TO.R on X" in refused(Reason.CHANNEL_IN_USE, model, "Y", take(model.me["Y"], model.place, TRIGGER, model.draw))


def test_recovery_for_a_dead_initiator_compares_that_none_has_joined_since() -> None:
    model = Model("X")
    running(model, "X")
    me = model.new_initiator("X")
    sight = model.run(me, look("admin", *(get_prefix(p) for p in (keys.STATUS_OUT, keys.MEMBERS, keys.INITIATORS))))
    (leftover,) = leftovers(me, sight)
    model.new_initiator("X")

    assert model.run(me, recover(me, "admin", leftover, 1, 0.0, model.draw)) is False
    assert model.state() == pb.RUNNING


# --- stop, start, resolve


@APART
def test_stop_settles_with_the_partner_and_only_a_command_starts_again(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    model.put(2)
    running(model, "X")
    model.put(1)

    assert model.run(model.me["Y"], stop(model, model.me["Y"])) is True
    assert model.state() == pb.STOPPED and model.lock() is None and not model.fence().open
    for occasion in (TRIGGER, Occasion("request", 1, requester="X"), Occasion("own", 1)):
        refused(Reason.CHANNEL_DISABLED, model, "Y", take(model.me["Y"], model.place, occasion, model.draw))
    model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))
    assert model.state() == pb.INITIALIZING
    taken(model, "X", Occasion("request", model.now, requester="Y"))


@APART
def test_stop_without_the_partner_stays_stopping_and_is_carried_on_by_another(apart: bool) -> None:
    model = Model("X", "Y", apart=apart)
    model.put(1)
    held = taken(model, "X")
    walk = Walk(model, model.me["X"], model.sender(held))
    while not model.partner.committed:
        walk.step()
    model.partner.reachable = False
    assert model.run(model.me["X"], stop(model, model.me["X"])) is False
    entry = model.entry()
    assert entry is not None and entry.state == pb.STOPPING and entry.partner_not_fenced and model.left() == 1

    model.kill("X")
    model.partner.reachable = True
    model.run(model.me["Y"], go_on(model, model.me["Y"]))
    assert model.state() == pb.STOPPED and model.left() == 0 and not model.fence().open


def test_stop_of_a_channel_that_never_bound_needs_no_partner() -> None:
    model = Model("X")
    model.partner.reachable = False
    taken(model, "X")

    assert model.run(model.me["X"], stop(model, model.me["X"])) is True
    assert model.state() == pb.STOPPED and not model.fence().open


def test_stop_to_inactive_leaves_no_entry() -> None:
    model = Model("X")
    running(model, "X")

    assert model.run(model.me["X"], stop(model, model.me["X"], pb.INACTIVE)) is True
    assert model.entry() is None
    refused(Reason.CHANNEL_NOT_ACTIVE, model, "X", stop(model, model.me["X"], pb.INACTIVE))


def test_quiesce_is_left_to_a_living_owner_and_force_is_not() -> None:
    model = Model("X", "Y")
    running(model, "X")
    order = StopOrder(pb.STOPPED, False, model.now)
    assert model.run(model.me["Y"], ask_stop(model.me["Y"], model.place, order, model.draw)) == "X"

    assert model.run(model.me["Y"], stop(model, model.me["Y"])) is True  # the escalation


def test_a_partner_that_lost_its_record_does_not_keep_the_channel_stopping() -> None:
    model = Model("X")
    model.put(1)
    held = running(model, "X")
    model.partner.fences.clear()
    model.partner.records.clear()

    assert model.run(model.me["X"], stop(model, model.me["X"])) is True
    entry = model.entry()
    assert entry is not None and entry.state == pb.STOPPED and entry.in_doubt and entry.reason == Reason.NO_RECORD
    assert model.fence().open and model.fence().stream == held.stream


def test_resolve_needs_force_while_the_partner_is_not_fenced() -> None:
    model = Model("X")
    in_doubt(model)

    def backout(force: bool) -> Steps[Any]:
        return resolve(model.me["X"], model.place, Resolution("backout", force), model.draw, "QSG")

    assert "delivered twice" in refused(Reason.IN_DOUBT, model, "X", backout(False))
    assert model.fence().open
    model.risked = True
    resolved = model.run(model.me["X"], backout(True))
    assert resolved.deleted == 0 and "R is not fenced" in resolved.risk and not model.fence().open and model.left() == 2


def test_resolve_commit_deletes_exactly_what_the_partner_showed() -> None:
    """N2."""
    model = Model("X")
    in_doubt(model)
    stream = model.fence().stream
    known = model.partner.records[stream]
    wrong = Resolution("commit", True, known, b"another")
    refused(Reason.OPTIONS_ERROR, model, "X", resolve(model.me["X"], model.place, wrong, model.draw, "QSG"))

    right = Resolution("commit", True, known, stream)
    resolved = model.run(model.me["X"], resolve(model.me["X"], model.place, right, model.draw, "QSG"))
    assert resolved.deleted == 1 and model.left() == 1
    refused(Reason.NOT_IN_DOUBT, model, "X", resolve(model.me["X"], model.place, right, model.draw, "QSG"))


def test_resolve_is_refused_once_the_partner_answers_whose_record_settles() -> None:
    """P7."""
    model = Model("X")
    in_doubt(model)
    model.partner.reachable = True

    detail = refused(Reason.NOT_IN_DOUBT, model, "X", resolve(model.me["X"], model.place, Resolution("backout", True), model.draw, "QSG"))
    assert "1 messages deleted" in detail and model.left() == 1 and not model.fence().open


def test_resolve_and_reset_leave_a_running_channel_alone() -> None:
    model = Model("X")
    running(model, "X")

    refused(Reason.CHANNEL_IN_USE, model, "X", resolve(model.me["X"], model.place, Resolution("backout", True), model.draw, "QSG"))
    refused(Reason.CHANNEL_IN_USE, model, "X", reset_sender(model.me["X"], model.place, 1))
    refused(Reason.OPTIONS_ERROR, model, "X", reset_sender(model.me["X"], model.place, 0))


def test_reset_changes_numbers_and_never_positions() -> None:
    model = Model("X")
    model.put(1)
    held = running(model, "X")
    model.run(model.me["X"], release(held, lambda e: None, clean=True))
    before = pb.Progress.FromString(model.stores["app"].read(Get(keys.sender_progress("XQ"))).kvs[0].value)
    model.run(model.me["X"], reset_sender(model.me["X"], model.place, 100))

    after = pb.Progress.FromString(model.stores["app"].read(Get(keys.sender_progress("XQ"))).kvs[0].value)
    assert (after.sequence, after.reset_to) == (99, 100) and after.confirmed[0] == before.confirmed[0]


def test_a_failed_release_never_gives_up_anothers_lock() -> None:
    """A failed compare brings the cells up to date: what they show then is not ours."""
    model = Model("X", "Y", apart=False)
    held = running(model, "X")
    model.run(model.me["Y"], stop(model, model.me["Y"]))
    model.run(model.me["Y"], command_start(model.me["Y"], model.place, model.now, model.draw))
    taken(model, "Y", Occasion("own", model.now))

    assert model.run(model.me["X"], release(held, lambda e: None, clean=True)) is False
    lock, entry = model.lock(), model.entry()
    assert lock is not None and lock.member == "Y" and entry is not None and entry.owner == "Y" and model.fence().open


# --- every list cut off behind each step, another member's lists behind it, and the first taken up again

Maker = Callable[[Model, Me], Generator[Any, Any, Any]]


def start_and_send(model: Model, me: Me) -> Generator[Any, Any, None]:
    held = yield from take(me, model.place, TRIGGER, model.draw)
    note(model, me, held)
    yield from model.sender(held)


def hand_over(model: Model, me: Me) -> Generator[Any, Any, None]:
    held = yield from take(me, model.place, TRIGGER, model.draw)
    note(model, me, held)
    last = yield from model.sender(held, leave_last=True)
    yield from release(held, lambda e: status.altered(e, pb.RECOVERING, model.now), clean=True, last=last)
    model.told = left_behind(held)


def take_as_told(model: Model, me: Me) -> Generator[Any, Any, None]:
    """A start request with what the last release left behind, however long ago that was."""
    known = model.told
    entry = status.parse(known.value(keys.status_out("TO.R"))) if known is not None else None
    requester = entry.owner if entry is not None else ""
    held = yield from take(me, model.place, Occasion("request", model.now, requester), model.draw, known)
    note(model, me, held)
    yield from model.sender(held)


def start_and_end(model: Model, me: Me) -> Generator[Any, Any, None]:
    held = yield from take(me, model.place, TRIGGER, model.draw)
    note(model, me, held)
    yield from model.sender(held)
    yield from release_idle(held)


def start_and_stop(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from start_and_send(model, me)
    yield from stop(model, me)


def command(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from command_start(me, model.place, model.now, model.draw)
    held = yield from take(me, model.place, Occasion("own", model.now), model.draw)
    note(model, me, held)
    yield from model.sender(held)


def force_stop(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from stop(model, me)


LISTS: dict[str, Maker] = {
    "send": start_and_send,
    "hand over": hand_over,
    "take as told": take_as_told,
    "end": start_and_end,
    "start, stop": start_and_stop,
    "stop": force_stop,
    "recover": go_on,
    "command": command,
}
EXPECTED = (Refusal, Fenced, CompareFailed, PartnerNotReached)


def walk_on(walk: Walk, at_most: int = 1_000) -> None:
    while not walk.done and at_most:
        walk.step()
        at_most -= 1
    if walk.error is not None and not isinstance(walk.error, EXPECTED):
        raise walk.error


def settle_down(model: Model, member: str) -> None:
    """Everything else is dead for good: the survivor recovers, starts what is to be started, and must succeed (invariant 6)."""
    for other in model.me:
        if other != member:
            model.kill(other)
    me = model.new_initiator(member)
    model.run(me, recover_all(model, me))
    entry = model.entry()
    if entry is not None and entry.state == pb.STOPPED:
        model.run(me, command_start(me, model.place, model.now, model.draw))
    elif entry is not None and entry.state == pb.STOPPING:
        assert model.run(me, carry_stop(me, model.place, model.now, model.draw, "QSG"))
        settle_down(model, member)
        return
    occasion = TRIGGER if entry is None or entry.state == pb.INACTIVE else Occasion("own", model.now)
    held = model.run(me, take(me, model.place, occasion, model.draw))
    model.run(me, model.sender(held))
    assert model.run(me, release_idle(held))
    assert model.left() == 0 and len(model.partner.committed) == model.messages, "lost"
    assert model.entry() is None and model.lock() is None and not model.fence().open


@APART
@pytest.mark.parametrize("death", ["paused", "half dead", "dead"])
@pytest.mark.parametrize("second", ["send", "stop", "recover", "command"])
@pytest.mark.parametrize("first", LISTS)
def test_a_list_cut_off_behind_any_step(first: str, second: str, death: str, apart: bool) -> None:
    cut = 0
    while True:
        cut += 1
        model = Model("X", "Y", "Z", apart=apart)
        model.put(2)
        if first in ("recover", "stop"):
            walk_on(Walk(model, model.me["Z"], start_and_send(model, model.me["Z"])), 9)
            if first == "recover":
                model.kill("Z")
        one = Walk(model, model.me["X"], LISTS[first](model, model.me["X"]))
        walk_on(one, cut)
        if one.done:
            assert cut > 1
            return
        if death != "paused":
            model.kill("X", *(["admin"] if death == "half dead" else []))
        model.put(1)
        two = Walk(model, model.me["Y"], go_on(model, model.me["Y"]))
        walk_on(two)
        three = Walk(model, model.me["Y"], LISTS[second](model, model.me["Y"]))
        walk_on(three, 5)
        walk_on(one, 3)  # the paused process wakes up
        walk_on(three)
        walk_on(one)
        settle_down(model, "Y")


@pytest.mark.parametrize("seed", range(100))
def test_any_interleaving_of_lists(seed: int) -> None:
    chance = random.Random(seed)
    model = Model("X", "Y", "Z", apart=bool(seed % 2))
    model.put(2)
    walks: list[tuple[str, Walk]] = []
    for _ in range(120):
        member = chance.choice("XYZ")
        act = chance.random()
        if act < 0.03:
            model.kill(member, *(["admin"] if chance.random() < 0.5 else []))
            if chance.random() < 0.7:
                model.join(member)
        elif act < 0.06:
            model.put()
        elif act < 0.09:
            model.partner.reachable = not model.partner.reachable
        elif act < 0.12:
            model.new_initiator(member)
        elif act < 0.35 and len(walks) < 6:
            me = model.me[member]
            walks.append((member, Walk(model, me, LISTS[chance.choice(list(LISTS))](model, me))))
        elif walks:
            walk = chance.choice(walks)[1]
            for _ in range(chance.randrange(1, 5)):
                if not walk.done:
                    walk.step()
            walks = [(m, w) for m, w in walks if not w.done]
    model.partner.reachable = True
    survivor = chance.choice("XYZ")
    model.join(survivor)
    settle_down(model, survivor)


def test_the_model_finds_a_lock_that_is_not_compared() -> None:
    """The model is worth something: an instance whose write compares nothing is caught."""
    model = Model("X", "Y", apart=False)
    running(model, "X")
    model.apply("admin", [Delete(keys.status_out("TO.R"))])
    entry = pb.ChannelStatus(channel="TO.R", state=pb.STOPPED)
    model.apply("admin", [Put(keys.status_out("TO.R"), status.image(entry))])

    with pytest.raises(AssertionError, match="stopped channel"):
        model.check()
