"""What happens in one seed, drawn up front: flows of messages, and a list of timed events.

Invariant: an event carries everything that it needs, so that any subset of a seed's events can be run again (`simulation.shrink`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from simulation.apps import Flow

LOAD_S = 40.0
"""Load and faults end."""
END_S = 60.0
"""The run takes at least so long."""
FIRST_S = 2.0
MEMBERS = ("X", "Y", "Z")
REMOTES = ("R", "S")
HOSTS = (*MEMBERS, *REMOTES)
CHANNELS = ("G.R", "G.S", "R.G", "S.G")

PUT = "put"
"""An event that breaks nothing: messages of the flow `detail` are put in just this moment."""
FAULTS_LEAST = 10
"""Of each seed."""
CALM_SHARE = 0.8
STEPS_MS = (-3_600_000, -5_000, 2_000, 60_000, 86_400_000)

FLOWS = (
    Flow("g-r", "G", "TO.R"),
    Flow("g-s", "G", "TO.S"),
    Flow("r-g", "R", "TO.G"),
    Flow("s-g", "S", "TO.G"),
    Flow("r-s", "R", "TO.S"),
    Flow("s-r", "S", "TO.R"),
    Flow("bridged", "R", "TO.BRIDGE", ordered=False),  # a unit that was lost comes back behind what was got meanwhile
    Flow("work", "G", "WORK", ordered=False),
    Flow("g-r-unit", "G", "TO.R", "unit"),
    Flow("r-g-unit", "R", "TO.G", "unit"),
    Flow("g-s-expiring", "G", "TO.S", "expiring"),
    Flow("r-g-large", "R", "TO.G", "large", every_s=12.0),
    Flow("g-r-large", "G", "TO.R", "large", every_s=12.0),
)


@dataclass(frozen=True, slots=True)
class Event:
    at: float
    kind: str
    where: str = ""
    """A host, or "owner of" a channel: the member that runs it when the time comes."""
    for_s: float = 0.0
    """How long it lasts; of a death: until the next start."""
    detail: str = ""
    amount: float = 0.0

    def __str__(self) -> str:
        rest = "".join(
            (f" {self.where}" * bool(self.where), f" {self.detail}" * bool(self.detail), f" {self.amount:g}" * bool(self.amount))
        )
        return f"{self.at:7.3f} {self.kind}{rest}" + (f" for {self.for_s:.2f} s" if self.for_s else "")


@dataclass(frozen=True, slots=True)
class Plan:
    seed: int
    structures: tuple[str, ...]
    flows: tuple[Flow, ...]
    events: tuple[Event, ...]
    quiet: tuple[Event, ...]
    """What happens when everything has drained, and must not matter."""
    poacher: bool
    """An application gets from a transmission queue whenever it may."""
    calm: bool
    """Idle parts beat and look at longer intervals (`simulation.tempo`), and less is put."""
    batch: int = 0
    """Messages a batch, 0 = as many as there are."""
    idle_s: float = 0.0
    """A sender with nothing to send ends after this; 0 = never."""


def base(seed: int, only: Sequence[str] = ()) -> Plan:
    """Faults one by one (`simulation.knots` ties some together). `only`: faults of these kinds alone."""
    chance = Random(f"plan {seed}")
    structures = ("admin", "app1") if chance.random() < 0.3 else ("admin",)
    flows = [f for f in FLOWS if chance.random() < (0.6 if f.kind == "plain" else 0.25)] or [FLOWS[0]]
    kinds = sorted(KINDS)
    chosen = chance.sample(kinds, chance.randint(4, len(kinds)))  # not every kind in every seed: some combinations hide others
    chosen = list(only) or chosen
    times = _times(chance, chance.randint(12, 20))
    commands = [_command(chance, times.pop(chance.randrange(len(times)))) for _ in range(chance.choice((0, 2, 5)))]
    times += _times(chance, max(0, FAULTS_LEAST - len(times)))
    events = [_event(chance, chance.choice(chosen), structures, at) for at in times]
    ordered = tuple(sorted((*events, *commands), key=lambda e: (e.at, str(e))))
    quiet = _quiet(chance, together="clock step" in only)
    poacher, calm = chance.random() < 0.25, chance.random() < CALM_SHARE and not only
    return Plan(seed, structures, tuple(flows), ordered, quiet, poacher, calm)


def moments(plan: Plan, flow: Flow) -> list[float]:
    """When an application puts messages. In a calm seed half as often, and mostly when something breaks, is broken or has just been mended:
    what goes on then is what tells."""
    chance = Random(f"load {plan.seed} {flow.name}")
    found = []
    at = FIRST_S - 1
    while (at := at + chance.expovariate(1 / flow.every_s)) < LOAD_S:
        if not plan.calm:
            found.append(at)
        elif chance.random() < 0.5:
            event = chance.choice(plan.events)
            near = event.at + chance.uniform(-0.2, event.for_s + 1.0)
            found.append(min(near, LOAD_S) if chance.random() < 0.7 else at)
    return sorted(found)


def _quiet(chance: Random, *, together: bool) -> tuple[Event, ...]:
    """`together`: by the same amount at all members, again and again, as by a time server that is wrong."""
    if together:
        steps = [(END_S - 8 + 0.7 * n, chance.choice((2_000, 60_000))) for n in range(10)]
        return tuple(Event(at, "clock step", member, amount=amount) for at, amount in steps for member in MEMBERS)
    return tuple(Event(LOAD_S, "clock step", host, amount=chance.choice(STEPS_MS)) for host in HOSTS if chance.random() < 0.3)


def _times(chance: Random, count: int) -> list[float]:
    """Spread over the load, or in bursts: what breaks while something else is being mended finds more."""
    if chance.random() < 0.5:
        return [chance.uniform(FIRST_S, LOAD_S - 2) for _ in range(count)]
    bursts = [chance.uniform(FIRST_S, LOAD_S - 4) for _ in range(chance.randint(2, 4))]
    return [chance.choice(bursts) + chance.expovariate(1.5) for _ in range(count)]


KINDS: dict[str, tuple[tuple[str, ...], float, float]] = {
    # kind: (where, shortest, longest)
    "kill queue manager": (HOSTS, 0.2, 3.0),
    "kill initiator": (HOSTS, 0.1, 3.0),
    "kill member": (HOSTS, 0.3, 8.0),
    "power loss": (HOSTS, 2.0, 10.0),
    "pause queue manager": (HOSTS, 0.3, 9.0),
    "pause initiator": (HOSTS, 0.3, 6.0),
    "pause member": (HOSTS, 0.3, 9.0),
    "kill application": (("G", "R", "S"), 0.2, 2.0),
    "pause application": (("G", "R", "S"), 0.3, 4.0),
    "applications cut off": (HOSTS, 0.5, 5.0),
    "applications reset": (HOSTS, 0.0, 0.0),
    "drain": (HOSTS, 0.2, 3.0),
    "everything dies": (("",), 0.5, 4.0),
    "store lossy": ((*MEMBERS, ""), 1.0, 6.0),
    "store slow": ((*MEMBERS, ""), 1.0, 6.0),
    "store compacted": (("",), 0.0, 0.0),
    "store leader change": (("",), 0.3, 1.5),
    "store out of reach": (MEMBERS, 0.5, 8.0),
    "store full": (("",), 1.0, 5.0),
    "watches break": (MEMBERS, 0.0, 0.0),
    "disk slow": (HOSTS, 1.0, 5.0),
    "disk full": (HOSTS, 1.0, 5.0),
    "network slow": (("",), 1.0, 5.0),
    "connections reset": (HOSTS, 0.0, 0.0),
    "path cut": (HOSTS, 0.5, 6.0),
    "path cut one way": (HOSTS, 0.5, 6.0),
    "host cut off": (HOSTS, 0.5, 8.0),
    "clock step": (HOSTS, 0.0, 0.0),
    "clock skew": (HOSTS, 0.0, 0.0),
}


def _event(chance: Random, kind: str, structures: tuple[str, ...], at: float) -> Event:
    places, shortest, longest = KINDS[kind]
    where = chance.choice(places)
    if where in MEMBERS and chance.random() < 0.6:
        where = f"owner of {chance.choice(CHANNELS)}"
    detail, amount = "", 0.0
    if kind.startswith(("store", "watches")):
        detail = chance.choice(structures)
    if kind == "store lossy":
        amount = chance.choice((0.02, 0.1, 0.3))
    elif kind == "store slow":
        amount = chance.choice((0.02, 0.1, 0.4))
    elif kind in ("connections reset", "path cut", "path cut one way"):
        detail = chance.choice([h for h in HOSTS if h != where])
    elif kind == "clock step":
        amount = chance.choice(STEPS_MS)
    elif kind == "clock skew":
        amount = chance.choice((0.9, 0.999, 1.001, 1.1))
    elif kind == "disk slow":
        amount = chance.choice((0.05, 0.5))
    elif kind == "network slow":
        amount = chance.choice((0.005, 0.05, 0.3))
    return Event(min(at, LOAD_S - 1), kind, where, chance.uniform(shortest, longest), detail, amount)


def _command(chance: Random, at: float) -> Event:
    kind = chance.choice(("stop", "stop", "start", "start", "reset", "resolve"))
    details = {"stop": ("quiesce stopped", "force stopped", "quiesce inactive"), "resolve": ("backout", "commit")}
    return Event(min(at, LOAD_S - 1), kind, chance.choice(CHANNELS), 0.0, chance.choice(details.get(kind, ("",))))
