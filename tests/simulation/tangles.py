"""Tangled seeds: histories that are little but knots, each at one channel and one member within a few seconds.

Where knots (`simulation.knots`) are shapes that once found something, a tangle has little shape: mostly the transactions that an owner or a
getter lives by are answered late or not at all, and meanwhile a channel is stopped and started, somebody dies, falls silent or comes back.
What is not aimed at goes on, so that commands are carried out and messages flow. Drawn apart from the ordinary seeds, whose histories
stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

from simulation.aimed import CLAIMS, OWNERSHIP
from simulation.knots import BATCHES, IDLE_S, OWNED
from simulation.plan import CHANNELS, FIRST_S, LOAD_S, MEMBERS, PUT, Event, Plan, base

TANGLES = (6, 10)
LASTS_S = 3.5
SINGLES = 3
"""Ordinary faults that are left."""
STOPS = ("force stopped", "force stopped", "quiesce stopped", "quiesce inactive")
ORDERS = (("stop", "start"), ("stop", "start"), ("start", "stop", "start"), ("stop", "start", "stop", "start"), ())
DEATHS = {"kill initiator": (0.05, 1.0), "kill queue manager": (0.05, 1.0), "kill member": (0.3, 2.0), "drain": (0.2, 1.0)}
SILENCES = {"pause initiator": (0.3, 2.5), "pause queue manager": (0.3, 1.5), "pause member": (0.3, 3.0), "path cut": (0.3, 2.0)}
"""Kind -> how long it lasts."""


def draw(seed: int) -> Plan:
    """One tangled seed. Its flows are an ordinary seed's of this number, its faults are others."""
    plan = base(seed)
    chance = Random(f"tangles {seed}")
    faults = [event for event in plan.events if event.kind not in ("stop", "start")]
    events = chance.sample(faults, min(len(faults), SINGLES))
    for _ in range(chance.randint(*TANGLES)):
        at = chance.uniform(FIRST_S, LOAD_S - LASTS_S - 2)
        events += [replace(event, at=min(event.at, LOAD_S - 1)) for event in _tangle(chance, plan.structures, at)]
    return replace(
        plan,
        events=tuple(sorted(events, key=lambda e: (e.at, str(e)))),
        poacher=chance.random() < 0.5,
        calm=True,
        batch=chance.choice(BATCHES),
        idle_s=IDLE_S if chance.random() < 0.2 else 0.0,
    )


def _tangle(chance: Random, structures: tuple[str, ...], at: float) -> Iterator[Event]:
    channel = chance.choice((*CHANNELS, *OWNED, *OWNED))
    where = f"owner of {channel}"
    if chance.random() < 0.25:  # all that follows is one member's
        where = chance.choice(MEMBERS)
        for other in MEMBERS:
            if other != where:
                yield Event(at - 1.5, chance.choice(("kill member", "host cut off")), other, LASTS_S + 1.5)
    yield _trouble(chance, structures, at, where, channel)
    yield from _commands(chance, at + chance.uniform(0.0, 1.0), channel)
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        yield _blow(chance, at + chance.uniform(0.1, 2.5), where, channel)
    for _ in range(chance.randint(0, 2)):
        yield Event(at + chance.uniform(0.0, 2.5), PUT, "", 0.0, OWNED.get(channel, channel.lower().replace(".", "-")))


def _commands(chance: Random, at: float, channel: str) -> Iterator[Event]:
    """Close to each other, and at the end a start."""
    for kind in chance.choice(ORDERS):
        at += chance.choice((chance.uniform(0.0, 0.1), chance.uniform(0.0, 1.2)))
        yield Event(at, kind, channel, 0.0, chance.choice(STOPS) if kind == "stop" else "")


def _trouble(chance: Random, structures: tuple[str, ...], at: float, where: str, channel: str) -> Event:
    """Something is slow, or its answers are lost, for as long as the tangle lasts."""
    remote, for_s = _remote(channel), chance.uniform(1.0, LASTS_S)
    if chance.random() < 0.7:
        kind, about = chance.choice(("answers lost", "late")), chance.choice((OWNERSHIP, OWNERSHIP, OWNERSHIP, CLAIMS))
        return Event(at, kind, chance.choice((where, "", "")), for_s, about, chance.choice((0.2, 0.5)))
    return chance.choice(
        (
            Event(at, "store slow", where, for_s, chance.choice(structures), chance.choice((0.1, 0.4))),
            Event(at, "store lossy", where, for_s, chance.choice(structures), chance.choice((0.05, 0.2))),
            Event(at, "disk slow", remote, for_s, "", chance.choice((0.1, 0.5))),
            Event(at, "network slow", "", for_s, "", 0.3),
        )
    )


def _blow(chance: Random, at: float, where: str, channel: str) -> Event:
    remote = _remote(channel)
    what = chance.choice(("dies", "silent", "silent", "reset", "applications"))
    if what == "dies":
        kind = chance.choice(sorted(DEATHS))
        return Event(at, kind, chance.choice((where, where, remote)), chance.uniform(*DEATHS[kind]))
    if what == "silent":
        kind = chance.choice(sorted(SILENCES))
        return Event(at, kind, where, chance.uniform(*SILENCES[kind]), remote if kind == "path cut" else "")
    if what == "reset":
        return Event(at, "connections reset", where, 0.0, remote)
    return chance.choice(
        (
            Event(at, "kill application", "G", chance.uniform(0.05, 0.5)),
            Event(at, "applications reset", where),
            Event(at, "applications cut off", where, chance.uniform(0.3, 2.0)),
            Event(at, "reset", channel),
        )
    )


def _remote(channel: str) -> str:
    return channel.replace("G", "").strip(".")
