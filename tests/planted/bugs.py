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

    def arguments(self, bug: str) -> list[str]:
        only = [argument for kind in self.kinds for argument in ("--only", kind)]
        return ["simulation", "--planted", bug, "--seeds", str(self.count), *only, "--jobs", "1", "--no-shrink"]


@dataclass(frozen=True, slots=True)
class Bug:
    plant: Plant
    finders: tuple[Search | Seeds, ...]
    """Any of them finds it; the quickest comes first."""
    behind: Plant | None = None
    """The bug that it is the last defence against, which is planted with it above the named tests."""

    @property
    def name(self) -> str:
        return self.plant.__name__

    @property
    def what(self) -> str:
        """One line that says what is wrong."""
        return (self.plant.__doc__ or "").strip().splitlines()[0]


def _bug(plant: Plant, *finders: Search | Seeds, behind: Plant | None = None) -> Bug:
    return Bug(plant, finders, behind)


_ALL = (
    _bug(in_rules.no_fence, Search("stop")),
    _bug(in_rules.lock_not_compared, Search("cut off")),
    _bug(in_rules.member_key_not_compared, Search("puts, verdict")),
    _bug(in_rules.verdict_by_name, Search("restart")),
    _bug(in_rules.ownership_from_a_stale_read, Search("cut off")),
    _bug(in_rules.lock_from_a_stale_read, Search("cut off")),
    _bug(in_rules.recovery_not_idempotent, Search("recovery")),
    _bug(in_rules.stopped_lost_at_takeover, Search("stop")),
    _bug(in_rules.stopped_without_the_partner, Search("stop, losses")),
    _bug(in_rules.doorbells_not_compared, Search("idle")),
    _bug(in_rules.blind_repeat, Search("puts, blame")),
    _bug(in_rules.failed_copy_is_the_end, Search("puts, blame")),
    _bug(in_rules.guard_by_number, Search("puts, blame")),
    _bug(in_rules.record_without_epoch, Search("stop, losses")),
    _bug(in_rules.positions_not_checked, Search("cut off"), behind=in_rules.resync_one_too_few),
    _bug(in_rules.resync_one_too_few, Search("cut off")),
    _bug(in_rules.resync_one_too_many, Search("getters")),
    _bug(in_rules.lanes_each_for_itself, Search("lanes")),
    _bug(in_manager.acknowledged_before_the_commit, Seeds()),
    _bug(in_manager.confirmed_before_the_commit, Seeds()),
    _bug(in_manager.record_apart_from_its_batch, Seeds()),
    _bug(in_manager.deleted_before_the_confirm, Seeds()),
    _bug(in_manager.watch_from_the_wrong_revision, Seeds()),
    _bug(in_manager.lease_by_wall_clock, Seeds(("clock step",))),
    _bug(in_manager.claims_not_released, Seeds()),
    _bug(in_manager.claims_of_the_dead_kept, Seeds(("kill queue manager", "kill member", "power loss"))),
    _bug(in_manager.gets_do_not_compare_the_fence, Search("getters")),
    _bug(in_manager.producer_epoch_ignored, Search("puts, late copies")),
    _bug(in_manager.producer_gap_ignored, Search("puts, blame")),
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
