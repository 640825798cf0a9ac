"""A channel given away: one transaction, nothing to whoever would not know, nothing written by the giver behind it."""

from __future__ import annotations

import contextlib

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys
from qsg.rules.handover import give, given, is_gift, receiver
from qsg.rules.ownership import Held, release, release_idle
from qsg.rules.reasons import Refusal
from qsg.rules.steps import PartnerNotReached, Sight
from qsg.rules.stopping import StopOrder, ask_stop
from qsg.rules.unit import CompareFailed, Fenced
from qsg.store.contract import Put
from support.group_lists import go_on, recover_all, running
from support.group_model import Model


def handing(model: Model, held: Held, to: str = "Y") -> Sight | None:
    me = model.run(model.me["X"], receiver(held, to))
    told = None if me is None else model.run(model.me["X"], give(held, me, model.draw(), model.now))
    assert told is None or isinstance(told, Sight)
    return told


def test_a_channel_is_given_away_while_it_sends() -> None:
    model = Model("X", "Y", apart=False)
    model.put(2)
    held = running(model, "X")
    told = handing(model, held)
    assert told is not None and is_gift(model.me["Y"], model.place, told) and not is_gift(model.me["X"], model.place, told)
    lock, entry, fence = model.lock(), model.entry(), model.fence()
    assert lock is not None and (lock.member, lock.epoch, lock.initiator) == ("Y", 2, model.me["Y"].initiator)
    assert entry is not None and (entry.owner, entry.state, entry.epoch) == ("Y", pb.STARTING, 2) and (fence.epoch, fence.open) == (2, True)

    model.put(2)
    model.run(model.me["X"], model.send_one(held))
    assert (len(model.partner.committed), model.left()) == (3, 2), "the old instance is still bound, and deletes nothing"
    for steps in (model.sender(held), release_idle(held), release(held, lambda e: None, clean=True)):
        with contextlib.suppress(PartnerNotReached, CompareFailed):
            assert model.run(model.me["X"], steps) in (False, None)
    assert (model.left(), model.lock(), model.entry()) == (2, lock, entry)

    taken_up = given(model.me["Y"], model.place, told)
    model.run(model.me["Y"], model.sender(taken_up))
    assert len(model.partner.committed) == 4 and model.left() == 0
    model.put(1)
    with pytest.raises(PartnerNotReached):
        model.run(model.me["X"], model.send_one(held))
    model.run(model.me["Y"], model.send_one(taken_up))


@pytest.mark.parametrize("lost", ["member", "initiator", "joined again", "another initiator", "stop", "recovered"])
def test_nothing_is_given_to_whoever_would_not_know_or_from_what_is_lost(lost: str) -> None:
    model = Model("X", "Y", "Z", apart=False)
    held = running(model, "X")
    me = model.run(model.me["X"], receiver(held, "Y"))
    if lost == "member":
        model.kill("Y")
    elif lost == "initiator":
        model.apply("admin", [Put(keys.initiator("Y"), pb.InitiatorRecord(member="Y").SerializeToString())])
    elif lost == "joined again":
        model.join("Y")
    elif lost == "another initiator":
        model.new_initiator("Y")
    elif lost == "stop":
        model.run(model.me["Z"], ask_stop(model.me["Z"], model.place, StopOrder(pb.STOPPED, False, model.now), model.draw))
    else:
        model.kill("X")
        model.run(model.me["Z"], recover_all(model, model.me["Z"]))
        model.apply("admin", [Put(keys.member("X"), pb.MemberRecord(member="X").SerializeToString())])
    before = model.entry(), model.lock(), model.fence()

    if lost in ("member", "initiator"):
        assert model.run(model.me["Z"], receiver(held, "Y")) is None
    with contextlib.suppress(Fenced):
        assert model.run(model.me["X"], give(held, me, model.draw(), model.now)) is None
    assert (model.entry(), model.lock(), model.fence()) == before


def test_two_structures_give_nothing_away() -> None:
    model = Model("X", "Y", apart=True)
    assert handing(model, running(model, "X")) is None


def test_who_was_given_a_channel_and_does_not_hear_of_it_recovers_it() -> None:
    model = Model("X", "Y", apart=False)
    model.put(1)
    told = handing(model, running(model, "X"))
    assert model.run(model.me["Y"], recover_all(model, model.me["Y"])) == 1 and model.state() == pb.RECOVERING
    model.put(1)
    model.run(model.me["Y"], go_on(model, model.me["Y"]))

    assert told is not None and model.left() == 0
    with pytest.raises(PartnerNotReached):
        model.run(model.me["Y"], model.sender(given(model.me["Y"], model.place, told)))
    with pytest.raises(Refusal):
        given(model.new_initiator("Y"), model.place, told)
    with pytest.raises(Refusal):
        given(model.me["X"], model.place, told)
