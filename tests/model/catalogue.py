"""The models that are searched, and how large. `deep`: beyond what fits into two minutes on one core."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from model.ownership import Bounds, Ownership
from model.search import Model


class Entry(NamedTuple):
    name: str
    make: Callable[[], Model]
    deep: bool = False


def _ownership(bounds: Bounds, *, deep: bool = False) -> Entry:
    return Entry(bounds.name, lambda: Ownership(bounds), deep)


OWNERSHIP = [
    Bounds("takeover", (("run", 1), ("own", 1)), walks=2, verdicts=1, joins=1, half_dead=True),
    Bounds("takeover, one structure", (("run", 1), ("own", 2)), (2,), apart=False, walks=3, at_once=2, verdicts=1, losses=1),
    Bounds("initiator", (("run", 1), ("own", 2)), walks=2, initiators=1, losses=1),
    Bounds("cut off", (("run", 1), ("own", 1)), walks=2, cuts=1, losses=1),
    Bounds("idle", (("run", 1), ("own", 1)), walks=2, puts=1, primed=True),
    Bounds("stop", (("run", 1), ("own", 1), ("stop", 1)), (1, 1), walks=2, verdicts=1, primed=True),
    Bounds("stop, losses", (("run", 1), ("stop", 1)), (1, 1), apart=False, walks=2, losses=2, primed=True),
    Bounds("commands", (("run", 1), ("stop", 1), ("start", 1)), apart=False, walks=3, at_once=2, primed=True),
    Bounds("reset", (("run", 2), ("reset", 1)), apart=False, walks=3, losses=1, primed=True),
    Bounds("resolve", (("run", 1), ("stop", 1), ("resolve", 1)), apart=False, members=2, walks=3, at_once=2, losses=1),
    Bounds("getters", (("run", 1), ("get", 1)), (2,), apart=False, walks=2, verdicts=1, losses=1),
    Bounds("getters and stop", (("run", 1), ("get", 1), ("stop", 1)), (2,), apart=False, members=2, walks=3, at_once=2),
]
OWNERSHIP_DEEP = [
    Bounds("commands, two structures", (("run", 1), ("stop", 1), ("start", 1), ("own", 1)), walks=3, verdicts=1),
    Bounds("resolve by force", (("run", 1), ("stop", 1), ("force backout", 1)), apart=False, walks=3, losses=1),
    Bounds("resolve, three at once", (("run", 1), ("stop", 1), ("resolve", 1)), apart=False, walks=3, losses=1),
    Bounds("getters, three at once", (("run", 1), ("get", 1), ("stop", 1)), (2,), apart=False, walks=3),
    Bounds("takeovers", (("run", 2), ("own", 2)), walks=3, verdicts=2, joins=1),
]

MODELS: list[Entry] = [*(_ownership(b) for b in OWNERSHIP), *(_ownership(b, deep=True) for b in OWNERSHIP_DEEP)]


def find(name: str) -> Entry:
    for entry in MODELS:
        if entry.name == name:
            return entry
    raise LookupError(f"no model {name!r}; these are: {', '.join(e.name for e in MODELS)}")
