"""Planted bugs: defects that this design was made against, each to be found by the model, the simulation or the torture.

A bug is a function that replaces something of the product from outside (`planted.patching`); the product knows nothing of it.
`apply` plants one for the rest of the process (first thing, before anything of the product is made), `planted` for a while.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from planted import in_manager, in_rules
from planted.patching import Patches

Plant = Callable[[Patches], None]


@dataclass(frozen=True, slots=True)
class Search:
    """Level 2: the search of one model finds it, within so many states."""

    model: str
    states: int = 60_000

    def arguments(self, bug: str) -> list[str]:
        return ["model", "--planted", bug, "--only", self.model, "--at-most", str(self.states)]


@dataclass(frozen=True, slots=True)
class Seeds:
    """Level 3: one of so many seeds of the simulation finds it, with faults of these kinds alone (none named: of every kind)."""

    kinds: tuple[str, ...] = ()
    count: int = 40
    failures: int = 1
    """Seeds that are played to their violations; more than one where the first may show something else that the bug has done."""

    def arguments(self, bug: str) -> list[str]:
        only = [argument for kind in self.kinds for argument in ("--only", kind)]
        more = ["--failures", str(self.failures)] if self.failures > 1 else []
        return ["simulation", "--planted", bug, "--seeds", str(self.count), *only, *more, "--jobs", "1", "--no-shrink"]


@dataclass(frozen=True, slots=True)
class Bug:
    plant: Plant
    finders: tuple[Search | Seeds, ...]
    """Any of them finds it; the quickest comes first."""
    told: str
    """What a finder above the named tests must say is violated (a regular expression): anything else is another bug, or one that breaks."""
    behind: Plant | None = None
    """The bug that it is the last defence against, which is planted with it above the named tests."""

    @property
    def name(self) -> str:
        return self.plant.__name__

    @property
    def what(self) -> str:
        """One line that says what is wrong."""
        return (self.plant.__doc__ or "").strip().splitlines()[0]


def _bug(plant: Plant, *finders: Search | Seeds, told: str, behind: Plant | None = None) -> Bug:
    return Bug(plant, finders, told, behind)


UNCOVERED = "(no partner has a record|the partner's record in .* does not cover that)"
FREED = r"a stopped channel still moves \w+ \(invariant 5\)"
TWICE = r"\w+ delivered twice \(invariant 1\)"
FALSELY_REFUSED = r"told as refused, and committed: "
FALSELY_COMMITTED = r"told as committed, and not there: "
KEPT = r"left behind: q/\S+/[bch]/"
RECOVERED_AGAIN = r"^INACTIVE -> RECOVERING$"

_ALL = (
    _bug(in_rules.no_fence, Search("stop"), told="a stopped channel's queue is locked"),
    _bug(in_rules.lock_not_compared, Search("cut off"), told="messages are confirmed by who does not hold the lock"),
    _bug(in_rules.member_key_not_compared, Search("puts, verdict"), told="has written, and was declared dead"),
    _bug(in_rules.verdict_by_name, Search("restart"), told="is dead is carried out against a living one"),
    _bug(in_rules.ownership_from_a_stale_read, Search("cut off"), told=RECOVERED_AGAIN),
    _bug(in_rules.lock_from_a_stale_read, Search("cut off"), told=TWICE),
    _bug(in_rules.recovery_not_idempotent, Search("recovery"), told=RECOVERED_AGAIN),
    _bug(in_rules.stopped_lost_at_takeover, Search("stop"), told=r"^STOPP(ED|ING) -> RECOVERING$"),
    _bug(in_rules.stopped_without_the_partner, Search("stop, losses"), told=FREED),
    _bug(in_rules.doorbells_not_compared, Search("idle"), told="an idle channel ends while a message waits"),
    _bug(in_rules.blind_repeat, Search("puts, blame"), told=FALSELY_REFUSED),
    _bug(in_rules.failed_copy_is_the_end, Search("puts, blame"), told=FALSELY_REFUSED),
    _bug(in_rules.guard_by_number, Search("puts, blame"), told=FALSELY_COMMITTED),
    _bug(in_rules.record_without_epoch, Search("stop, losses"), told=FREED),
    _bug(in_rules.positions_not_checked, Search("cut off"), told=TWICE, behind=in_rules.resync_one_too_few),
    _bug(in_rules.resync_one_too_few, Search("cut off"), told="the survivor cannot bring the channel to its end .* RETRYING"),
    _bug(in_rules.resync_one_too_many, Search("getters"), told=r"\w+ lost \(invariant 1\)"),
    _bug(in_rules.lanes_each_for_itself, Search("lanes"), told="is handed out before .* would be deleted unsent"),
    _bug(in_manager.acknowledged_before_the_commit, Seeds(), told=f" confirmed, and {UNCOVERED}"),
    _bug(in_manager.confirmed_before_the_commit, Seeds(), told=f" confirmed, and {UNCOVERED}"),
    _bug(in_manager.record_apart_from_its_batch, Seeds(), told=f" confirmed, and {UNCOVERED}"),
    _bug(in_manager.deleted_before_the_confirm, Seeds(), told=f" is deleted, and {UNCOVERED}"),
    _bug(in_manager.watch_from_the_wrong_revision, Seeds(failures=2), told="a live copy of .* shows .*, not "),
    _bug(in_manager.lease_by_wall_clock, Seeds(("clock step",), failures=2), told="(epoch|incarnation) of .* while nothing failed"),
    _bug(in_manager.claims_not_released, Seeds(failures=2), told=KEPT),
    _bug(in_manager.claims_of_the_dead_kept, Seeds(("kill queue manager", "kill member", "power loss"), failures=2), told=KEPT),
    _bug(in_manager.gets_do_not_compare_the_fence, Search("getters"), told=TWICE),
    _bug(in_manager.producer_epoch_ignored, Search("puts, late copies"), told=FALSELY_REFUSED),
    _bug(in_manager.producer_gap_ignored, Search("puts, blame"), told=FALSELY_COMMITTED),
)
BUGS: dict[str, Bug] = {bug.name: bug for bug in _ALL}


def apply(name: str) -> None:
    """Plants a bug (and the one `behind` it) for the rest of the process.

    Raises `KeyError` for an unknown name, `GoneError` when its place is gone.
    """
    bug = BUGS[name]
    bug.plant(Patches())
    if bug.behind is not None:
        bug.behind(Patches())


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Plants a bug for a while."""
    patches = Patches()
    try:
        BUGS[name].plant(patches)
        yield
    finally:
        patches.undo()
