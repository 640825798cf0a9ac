"""Every list cut off behind each of its steps, another member's lists behind it, and the first taken up again."""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.handover import give, given, left_behind, receiver
from qsg.rules.ownership import Held, Occasion, raise_epoch, release, release_idle, take
from qsg.rules.steps import Me, PartnerNotReached
from qsg.rules.stopping import Resolution, carry_stop, command_start, reset_sender, resolve
from qsg.store.contract import Delete, Put
from support.group_lists import APART, TRIGGER, go_on, note, recover_all, running, stop, take_noted
from support.group_model import Model, Walk

Maker = Callable[[Model, Me], Generator[Any, Any, Any]]


def take_and_send(model: Model, me: Me) -> Generator[Any, Any, Held]:
    """Part of lists. None of them answers what it holds: a walk takes note of that itself."""
    held = yield from take_noted(model, me)
    yield from model.sender(held)
    return held


def start_and_send(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from take_and_send(model, me)


def hand_over(model: Model, me: Me) -> Generator[Any, Any, None]:
    held = yield from take_noted(model, me)
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


def give_away(model: Model, me: Me) -> Generator[Any, Any, None]:
    """To the next member, and sends on until the partner refuses it."""
    held = yield from take_and_send(model, me)
    to = yield from receiver(held, {"X": "Y", "Y": "Z", "Z": "X"}[me.member])
    model.gift = None if to is None else (yield from give(held, to, model.draw(), model.now))
    if model.gift is not None:
        yield from model.send_one(held)


def take_up(model: Model, me: Me) -> Generator[Any, Any, None]:
    """What was given, however long ago; who was given nothing takes it."""
    if model.gift is None:
        held = yield from take_noted(model, me)
    else:
        held = given(me, model.place, model.gift)
        note(model, me, held)
    yield from model.sender(held)


def start_and_end(model: Model, me: Me) -> Generator[Any, Any, None]:
    held = yield from take_and_send(model, me)
    yield from release_idle(held)


def start_and_stop(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from start_and_send(model, me)
    yield from stop(model, me)


def command(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from command_start(me, model.place, model.now, model.draw)
    held = yield from take_noted(model, me, Occasion("own", model.now))
    yield from model.sender(held)


def force_stop(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from stop(model, me)


def overtake_a_higher_epoch(model: Model, me: Me) -> Generator[Any, Any, None]:
    held = yield from take_noted(model, me)
    yield from overtaking(model, me, held)


def overtaking(model: Model, me: Me, held: Held) -> Generator[Any, Any, None]:
    """The partner may have seen a higher epoch (C7b): then the fence is raised above it, and bound again."""
    try:
        yield from model.sender(held)
    except PartnerNotReached as error:
        if not error.epoch_seen or not (yield from raise_epoch(me, held, error.epoch_seen)):
            raise
        note(model, me, held)
        yield from model.sender(held)


def settle_by_the_partner(model: Model, me: Me) -> Generator[Any, Any, None]:
    """RESOLVE while the partner answers: its record settles the queue."""
    yield from resolve(me, model.place, Resolution("backout"), model.draw, "QSG")


def resolve_by_hand(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from resolve(me, model.place, Resolution("backout", force=True), model.draw, "QSG")


def reset(model: Model, me: Me) -> Generator[Any, Any, None]:
    yield from reset_sender(me, model.place, 100)


LISTS: dict[str, Maker] = {
    "send": start_and_send,
    "hand over": hand_over,
    "take as told": take_as_told,
    "give away": give_away,
    "take up": take_up,
    "end": start_and_end,
    "start, stop": start_and_stop,
    "stop": force_stop,
    "recover": go_on,
    "command": command,
    "overtake": overtake_a_higher_epoch,
    "settle": settle_by_the_partner,
    "resolve": resolve_by_hand,
    "reset": reset,
}
SURE = [name for name in LISTS if name != "resolve"]
"""Those that risk nothing."""


def walk_on(walk: Walk, at_most: int = 1_000) -> None:
    while not walk.done and at_most:
        walk.step()
        at_most -= 1


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
    model.run(me, overtaking(model, me, held))
    assert model.run(me, release_idle(held))
    assert model.left() == 0 and len(set(model.partner.committed)) == model.messages, "lost"
    assert model.entry() is None and model.lock() is None and not model.fence().open


def prepare(model: Model, first: str) -> None:
    """Z has sent something, and what the first list is for is so."""
    if first not in ("recover", "stop", "overtake", "settle", "resolve", "reset"):
        return
    walk_on(Walk(model, model.me["Z"], start_and_send(model, model.me["Z"])), 9)
    if first in ("settle", "resolve"):
        model.partner.reachable = False
        assert model.run(model.me["Z"], stop(model, model.me["Z"])) is False
        model.partner.reachable = first == "settle"
        model.risked = first == "resolve"
    if first != "stop":
        model.kill("Z")
    if first == "overtake":
        model.run(model.me["Y"], recover_all(model, model.me["Y"]))
        model.apply("admin", [Delete(keys.status_out("TO.R"))])
        model.partner.fences = dict.fromkeys(model.partner.fences, (41, 1))


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
        prepare(model, first)
        one = Walk(model, model.me["X"], LISTS[first](model, model.me["X"]))
        walk_on(one, cut)
        if one.done:
            assert cut > 1
            return
        model.partner.reachable = True
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
            walks.append((member, Walk(model, me, LISTS[chance.choice(SURE)](model, me))))
        elif walks:
            walk_on(chance.choice(walks)[1], chance.randrange(1, 5))
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
