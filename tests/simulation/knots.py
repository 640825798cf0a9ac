"""Knots: a few events that only together reach a rare interleaving, drawn close to each other and at the same place.

Faults that are drawn one by one seldom meet within the milliseconds that matter. A knot is a general shape of trouble: something is slow,
and meanwhile somebody dies, is stopped or comes back. Hosts, channels, moments and strengths are drawn. Knots take the place of single
faults, so a seed has as many faults as before, or more. Invariant: what a knot is made of are events as others, so they shrink one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from random import Random

from simulation.plan import FIRST_S, KINDS, LOAD_S, MEMBERS, PUT, Event, Plan, base

KNOTTED_SHARE = 0.7
"""Of seeds."""
KNOTS_MAX = 4
POACHED_SHARE = 0.7
"""Of those in which a channel is stopped, so that its queue is open to applications."""
IDLE_SHARE = 0.2
IDLE_S = 1.5
BATCHES = (0, 0, 2)
"""Messages a batch: 0 = as many as there are."""
OWNED = {"G.R": "g-r", "G.S": "g-s"}
"""Channel of the group -> a flow that goes over it."""
SLOW_S = (0.1, 0.4)
Knot = Callable[[Random, tuple[str, ...], float], Iterator[Event]]


def draw(seed: int, only: Sequence[str] = ()) -> Plan:
    """`only`: faults of these kinds alone, and no knots."""
    plan = base(seed, only)
    if only:
        return plan
    chance = Random(f"knots {seed}")
    plan = replace(plan, batch=chance.choice(BATCHES), idle_s=IDLE_S if chance.random() < IDLE_SHARE else 0.0)
    if chance.random() >= KNOTTED_SHARE:
        return plan
    events, spare = list(plan.events), [e for e in plan.events if e.kind in KINDS]
    knots = (*KNOTS, *IDLE_KNOTS) if plan.idle_s else KNOTS
    for _ in range(chance.randint(1, KNOTS_MAX)):
        knot = _tie(chance, chance.choice(knots), plan.structures)
        for event in chance.sample(spare, min(len(spare), sum(e.kind in KINDS for e in knot))):
            events.remove(event)
            spare.remove(event)
        events += knot
    stopped = any(event.kind == "stop" for event in events)
    poacher = plan.poacher or (stopped and chance.random() < POACHED_SHARE)
    return replace(plan, events=tuple(sorted(events, key=lambda e: (e.at, str(e)))), poacher=poacher)


def _tie(chance: Random, make: Knot, structures: tuple[str, ...]) -> list[Event]:
    at = chance.uniform(FIRST_S, LOAD_S - 8)
    return [replace(e, at=min(e.at, LOAD_S - 1)) for e in make(chance, structures, at)]


def _slow(chance: Random, structures: tuple[str, ...], at: float, where: str, for_s: float) -> Event:
    """A store that answers late, or not at all."""
    kind = chance.choice(("store slow", "store slow", "store lossy"))
    amount = chance.choice(SLOW_S) if kind == "store slow" else 0.3
    return Event(at, kind, where, for_s, chance.choice(structures), amount)


def _put(channel: str, at: float) -> Event:
    return Event(at, PUT, "", 0.0, OWNED[channel])


def binding(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    """Who runs a channel loses its connection, and falls silent or dies while it connects again: its bind comes late."""
    channel = chance.choice(list(OWNED))
    owner, partner = f"owner of {channel}", channel[-1]
    yield Event(at, "network slow", "", 2.0, "", 0.3) if chance.random() < 0.5 else Event(at, "disk slow", partner, 2.0, "", 0.5)
    yield _put(channel, at + chance.uniform(0.0, 0.6))
    at += 0.6
    yield Event(at, "connections reset", owner, 0.0, partner)
    kind = chance.choice(("pause member", "kill initiator", "kill queue manager", "kill initiator"))
    yield Event(at + chance.uniform(0.05, 0.8), kind, owner, chance.uniform(2.0, 6.0) if kind.startswith("pause") else 1.0)


def parting(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    """Half of an owner dies, or it is made to give up, while what it has asked of the store is still on its way."""
    channel = chance.choice(list(OWNED))
    owner, then = f"owner of {channel}", at + chance.uniform(0.4, 2.5)
    yield _slow(chance, structures, at, owner, 3.0)
    yield _put(channel, then - chance.uniform(0.0, 1.0))
    kind = chance.choice(("kill initiator", "kill initiator", "connections reset", "pause initiator"))
    detail = owner[-1] if kind == "connections reset" else ""
    yield Event(then, kind, owner, chance.uniform(0.2, 2.5), detail)


def producing(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    """A put is held up, and the application that has put it is gone, and comes again to another member."""
    member = chance.choice(MEMBERS)
    yield _slow(chance, structures, at, member, 2.5)
    for _ in range(2):
        then = at + chance.uniform(0.4, 2.5)
        yield _put(chance.choice(list(OWNED)), then - chance.uniform(0.0, 0.5))
        yield Event(then, "kill application", "G", chance.uniform(0.05, 0.4))


def returning(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    """A member dies and is back at once, while the others' verdict is on its way."""
    member = chance.choice(MEMBERS)
    for other in MEMBERS:
        if other != member:
            yield Event(at, "store slow", other, 2.0, structures[0], 0.4)
    yield Event(at + chance.uniform(0.3, 1.5), "kill queue manager", member, chance.uniform(0.05, 0.3))


def stopping(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    """A channel is stopped, and perhaps started again, while its messages or what is written of it are on their way."""
    channel = chance.choice(list(OWNED))
    where = chance.choice(("store", "store", "network", "disk"))
    if where == "store":
        yield _slow(chance, structures, at, "", 4.0)
    elif where == "network":
        yield Event(at, "network slow", "", 4.0, "", 0.3)
    else:
        yield Event(at, "disk slow", channel[-1], 4.0, "", 0.5)
    first = at + chance.uniform(0.6, 1.8)
    yield _put(channel, first - chance.uniform(0.0, 0.6))
    yield Event(first, "stop", channel, 0.0, chance.choice(("force stopped", "force stopped", "quiesce stopped", "quiesce inactive")))
    if chance.random() < 0.8:
        second = first + chance.uniform(0.5, 3.0)
        yield _put(channel, chance.uniform(first + 0.2, second))
        yield Event(second, "start", channel)


def idling(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    """A channel ends because it has nothing to send, and just then there is something."""
    channel = chance.choice(list(OWNED))
    yield Event(at, "store slow", f"owner of {channel}", 6.0, structures[0], 0.4)
    yield _put(channel, at)
    yield _put(channel, at + IDLE_S + chance.uniform(0.2, 2.5))


KNOTS: tuple[Knot, ...] = (binding, parting, producing, returning, stopping, stopping)
IDLE_KNOTS: tuple[Knot, ...] = (idling,) * 4
