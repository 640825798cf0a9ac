"""Every planted bug has its place in the product, and leaves nothing behind."""

from __future__ import annotations

import pytest

from planted.bugs import BUGS, planted
from planted.named import FINDERS, found_by
from planted.patching import GoneError, Patches
from qsg.rules import ownership, slots
from qsg.store import contract


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_planted_and_taken_back(name: str) -> None:
    watched = contract, ownership, slots.Slot
    before = [dict(vars(owner)) for owner in watched]
    with planted(name):
        assert BUGS[name].what.endswith(".")
    assert [dict(vars(owner)) for owner in watched] == before


@pytest.mark.parametrize("name", BUGS)
def test_a_named_interleaving_finds_the_bug(name: str) -> None:
    assert len(found_by(name)) == len(FINDERS[name]), "each of the tests that are said to find it does"


def test_a_bug_whose_place_is_gone_fails_loudly() -> None:
    with pytest.raises(GoneError):
        Patches().wrap(ownership, "no_such_function", lambda original: original)


def test_there_are_bugs_enough_for_each_level() -> None:
    assert len(BUGS) >= 16
    assert sum("model" in bug.levels for bug in BUGS.values()) >= 10
    assert all(set(bug.levels) <= {"model", "simulation"} and bug.levels for bug in BUGS.values())
