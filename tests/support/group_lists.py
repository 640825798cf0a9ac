"""Lists of steps as members run them, for tests on `support.group_model`: a channel taken and run, recovered, stopped, left in doubt."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import keys, status
from qsg.rules.ownership import Held, Occasion, leftovers, recover, release_own_lock, take
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Me, Steps, look
from qsg.rules.stopping import StopOrder, ask_stop, carry_stop
from qsg.store.contract import get_prefix
from support.group_model import Model, Walk

TRIGGER = Occasion("trigger", 1_000)
APART = pytest.mark.parametrize("apart", [False, True], ids=["one store", "two structures"])


def taken(model: Model, member: str, occasion: Occasion = TRIGGER) -> Held:
    held = model.run(model.me[member], take(model.me[member], model.place, occasion, model.draw))
    assert isinstance(held, Held)
    return held


def running(model: Model, member: str) -> Held:
    held = taken(model, member)
    model.run(model.me[member], model.sender(held))
    return held


def stop(model: Model, me: Me, to: status.State = pb.STOPPED, force: bool = True) -> Steps[bool]:
    """A whole stop by one member."""
    carrier = yield from ask_stop(me, model.place, StopOrder(to, force, model.now), model.draw)
    if carrier != me.member:
        return False
    return (yield from carry_stop(me, model.place, model.now, model.draw, "QSG"))


def recover_all(model: Model, me: Me) -> Steps[int]:
    """What a member does when another (or its own initiator) is lost: every left-over entry, and the stops among them."""
    prefixes = (keys.STATUS_OUT, keys.STATUS_IN, keys.MEMBERS, keys.INITIATORS)
    sight = yield from look("admin", *(get_prefix(p) for p in prefixes))
    count = 0
    for leftover in leftovers(me, sight):
        if leftover.entry.owner == me.member:
            yield from release_own_lock(me, model.place, leftover.cell)
        count += yield from recover(me, "admin", leftover, model.now, 12.5, model.draw)
    return count


def go_on(model: Model, me: Me) -> Generator[Any, Any, None]:
    """Recovery, and what follows from the entry: a stop carried on, or the channel taken and run."""
    yield from recover_all(model, me)
    entry = model.entry()
    if entry is None or entry.owner != me.member:
        return
    if entry.state == pb.STOPPING:
        yield from carry_stop(me, model.place, model.now, model.draw, "QSG")
    elif entry.state in status.WANTED:
        held = yield from take_noted(model, me, Occasion("own", model.now))
        yield from model.sender(held)


def take_noted(model: Model, me: Me, occasion: Occasion = TRIGGER) -> Steps[Held]:
    held = yield from take(me, model.place, occasion, model.draw)
    note(model, me, held)
    return held


def note(model: Model, me: Me, held: Held) -> None:
    model.helds.append((me.member, held, pb.Lock.FromString(held.lock.value or b"")))


def refused(reason: Reason, model: Model, member: str, steps: Steps[Any]) -> str:
    with pytest.raises(Refusal) as caught:
        model.run(model.me[member], steps)
    assert caught.value.reason is reason
    return caught.value.detail


def unconfirmed(model: Model, messages: int) -> Walk:
    """X sends; R has committed, and X has not heard of it."""
    model.put(messages)
    walk = Walk(model, model.me["X"], model.sender(taken(model, "X")))
    while not model.partner.committed:
        walk.step()
    return walk


def in_doubt(model: Model) -> None:
    """One message committed at R, unconfirmed; R out of reach; entry STOPPING."""
    unconfirmed(model, 2)
    model.partner.reachable = False
    model.run(model.me["X"], stop(model, model.me["X"]))
