"""The models that are searched, and how large. `deep`: beyond what fits into two minutes on one core."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from model import lanes, puts, receiving
from model.ownership import Ownership
from model.ownership_state import Bounds
from model.search import Model


class Entry(NamedTuple):
    name: str
    make: Callable[[], Model]
    deep: bool = False


OWNERSHIP = [
    Bounds("takeover", (("run", 1), ("own", 1)), walks=2, verdicts=1, joins=1, half_dead=True),
    Bounds("takeover, one structure", (("run", 1), ("own", 2)), (2,), apart=False, walks=3, at_once=2, verdicts=1, losses=1),
    Bounds("recovery", (("run", 1), ("own", 2)), apart=False, walks=3, at_once=2, verdicts=1),
    Bounds("initiator", (("run", 1), ("own", 2)), walks=2, initiators=1, losses=1),
    Bounds("cut off", (("run", 1), ("own", 1)), walks=2, cuts=1, losses=1),
    Bounds("idle", (("run", 1), ("own", 1)), walks=2, puts=1, primed=True),
    Bounds("stop", (("run", 1), ("own", 1), ("stop", 1)), (1, 1), walks=2, verdicts=1, primed=True),
    Bounds("stop, losses", (("run", 1), ("stop", 1)), (1, 1), apart=False, walks=2, losses=2, primed=True),
    Bounds("commands", (("run", 1), ("stop", 1), ("start", 1)), apart=False, walks=3, at_once=2, primed=True),
    Bounds("reset", (("run", 2), ("reset", 1)), apart=False, walks=3, losses=1, primed=True),
    Bounds("resolve", (("run", 1), ("stop", 1), ("resolve", 1)), apart=False, members=2, walks=3, at_once=1, losses=2),
    Bounds("getters", (("run", 1), ("get", 1)), (2,), apart=False, walks=2, verdicts=1, losses=1),
    Bounds("getters and stop", (("run", 1), ("get", 1), ("stop", 1)), (2,), apart=False, members=2, walks=3, at_once=2),
    Bounds("planned move", (("give", 1), ("own", 1)), apart=False, walks=2, verdicts=1, losses=1, primed=True),
    Bounds("planned move and an initiator", (("give", 1), ("own", 1)), (2,), apart=False, walks=2, initiators=1),
    Bounds("planned move and stop", (("give", 1), ("stop", 1)), apart=False, walks=2, losses=1, primed=True),
]
OWNERSHIP_DEEP = [
    # A part of "takeover", for planted bugs.
    Bounds("restart", (("run", 1), ("own", 1)), members=2, walks=2, verdicts=1, joins=1, half_dead=True),
    Bounds("planned moves", (("give", 2), ("own", 1)), (1, 1), apart=False, walks=3, verdicts=1, losses=1),
    Bounds("commands, two structures", (("run", 1), ("stop", 1), ("start", 1), ("own", 1)), walks=3, verdicts=1),
    Bounds("resolve by force", (("run", 1), ("stop", 1), ("force backout", 1)), apart=False, walks=3, losses=1),
    Bounds("resolve, three at once", (("run", 1), ("stop", 1), ("resolve", 1)), apart=False, walks=3, losses=1),
    Bounds("getters, three at once", (("run", 1), ("get", 1), ("stop", 1)), (2,), apart=False, walks=3),
    Bounds("takeovers", (("run", 2), ("own", 2)), walks=3, verdicts=2, joins=1),
]

PUTS = [
    puts.Bounds("puts, late copies", connects=2, losses=2),
    puts.Bounds("puts, verdict", connects=2, losses=1, verdicts=1),
    puts.Bounds("puts, restart", members=1, messages=1, connects=2, losses=1, joins=1),
    puts.Bounds("puts, blame", connects=1, losses=2, toggles=2),
]
PUTS_DEEP = [
    puts.Bounds("puts, verdict and restart", messages=1, connects=2, losses=2, verdicts=1, joins=1),
    puts.Bounds("puts, blame and another connection", connects=2, losses=1, toggles=2),
]
LANES = [
    lanes.Bounds("lanes", segments=3, takes=1, reads=4),
    lanes.Bounds("lanes, two priorities", segments=3, priorities=2, takes=0, reads=4),
    lanes.Bounds("lanes, takeover", segments=3, takes=0, takeovers=1, reads=4),
]
LANES_DEEP = [lanes.Bounds("lanes, longer", segments=5, priorities=2, takes=1, takeovers=1, reads=6)]
RECEIVING = [
    receiving.Bounds("receiving", members=3, binds=((1, 1), (2, 1))),
    receiving.Bounds("receiving, three binds", messages=1, verdicts=0),
]
RECEIVING_DEEP = [receiving.Bounds("receiving, three binds and a verdict")]

MODELS: list[Entry] = [
    *(Entry(b.name, partial(Ownership, b)) for b in OWNERSHIP),
    *(Entry(b.name, partial(Ownership, b), True) for b in OWNERSHIP_DEEP),
    *(Entry(b.name, partial(puts.Puts, b)) for b in PUTS),
    *(Entry(b.name, partial(puts.Puts, b), True) for b in PUTS_DEEP),
    *(Entry(b.name, partial(lanes.Lanes, b)) for b in LANES),
    *(Entry(b.name, partial(lanes.Lanes, b), True) for b in LANES_DEEP),
    *(Entry(b.name, partial(receiving.Receiving, b)) for b in RECEIVING),
    *(Entry(b.name, partial(receiving.Receiving, b), True) for b in RECEIVING_DEEP),
]


def find(name: str) -> Entry:
    for entry in MODELS:
        if entry.name == name:
            return entry
    raise LookupError(f"no model {name!r}; these are: {', '.join(e.name for e in MODELS)}")
