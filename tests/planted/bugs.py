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
BOTH = ("model", "simulation")
SIMULATION = ("simulation",)


@dataclass(frozen=True, slots=True)
class Bug:
    plant: Plant
    levels: tuple[str, ...]
    """Those that should find it, quickest first."""
    model: str = ""
    """Of the models, those to search first: how their names begin."""

    @property
    def name(self) -> str:
        return self.plant.__name__

    @property
    def what(self) -> str:
        """One line that says what is wrong."""
        return (self.plant.__doc__ or "").strip().splitlines()[0]


_ALL = (
    Bug(in_rules.no_fence, BOTH, "takeover"),
    Bug(in_rules.lock_not_compared, BOTH, "initiator"),
    Bug(in_rules.member_key_not_compared, BOTH, "puts, verdict"),
    Bug(in_rules.verdict_by_name, BOTH, "takeover"),
    Bug(in_rules.ownership_from_a_stale_read, BOTH, "takeover"),
    Bug(in_rules.lock_from_a_stale_read, BOTH, "takeover"),
    Bug(in_rules.recovery_not_idempotent, BOTH, "takeover"),
    Bug(in_rules.stopped_lost_at_takeover, BOTH, "stop"),
    Bug(in_rules.stopped_without_the_partner, BOTH, "stop"),
    Bug(in_rules.doorbells_not_compared, BOTH, "idle"),
    Bug(in_rules.blind_repeat, BOTH, "puts"),
    Bug(in_rules.failed_copy_is_the_end, BOTH, "puts, blame"),
    Bug(in_rules.guard_by_number, BOTH, "puts"),
    Bug(in_rules.record_without_epoch, BOTH, "takeover"),
    Bug(in_rules.positions_not_checked, SIMULATION),
    Bug(in_rules.resync_one_too_few, SIMULATION),
    Bug(in_rules.resync_one_too_many, SIMULATION),
    Bug(in_rules.lanes_each_for_itself, BOTH, "lanes"),
    Bug(in_manager.acknowledged_before_the_commit, SIMULATION),
    Bug(in_manager.confirmed_before_the_commit, SIMULATION),
    Bug(in_manager.record_apart_from_its_batch, SIMULATION),
    Bug(in_manager.deleted_before_the_confirm, SIMULATION),
    Bug(in_manager.watch_from_the_wrong_revision, SIMULATION),
    Bug(in_manager.lease_by_wall_clock, SIMULATION),
    Bug(in_manager.claims_not_released, SIMULATION),
    Bug(in_manager.claims_of_the_dead_kept, SIMULATION),
    Bug(in_manager.gets_do_not_compare_the_fence, BOTH, "getters"),
    Bug(in_manager.producer_epoch_ignored, BOTH, "puts"),
    Bug(in_manager.producer_gap_ignored, BOTH, "puts"),
)
BUGS: dict[str, Bug] = {bug.name: bug for bug in _ALL}


def apply(name: str) -> None:
    """Plants a bug for the rest of the process. Raises `KeyError` for an unknown name, `GoneError` when its place is gone."""
    BUGS[name].plant(Patches())


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Plants a bug for a while."""
    patches = Patches()
    try:
        BUGS[name].plant(patches)
        yield
    finally:
        patches.undo()
