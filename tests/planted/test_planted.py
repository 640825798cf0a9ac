"""Every planted bug has its place in the product, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.catalogue import MODELS
from planted import __main__ as command
from planted import named
from planted.bugs import BUGS, Search, Seeds, planted
from planted.children import BROKEN, LATE, Ended
from planted.finding import found
from planted.named import FINDERS, found_by
from planted.patching import GoneError, Patches
from qsg.rules import ownership, slots
from qsg.store import contract
from simulation.plan import KINDS


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
    finders = [finder for bug in BUGS.values() for finder in bug.finders]
    searches, seeds = [f for f in finders if isinstance(f, Search)], [f for f in finders if isinstance(f, Seeds)]
    assert all(bug.finders for bug in BUGS.values()) and len(searches) >= 10 and len(seeds) >= 5
    assert {f.model for f in searches} <= {entry.name for entry in MODELS}
    assert {kind for f in seeds for kind in f.kinds} <= set(KINDS)


def test_the_command_finds_a_bug_and_tells_how_to_see_it_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--only", "member_key_not_compared", "--only", "blind_repeat", "--cases"]) == 0
    printed = capsys.readouterr().out
    assert "see it again: make model ARGS=\"--planted blind_repeat --only 'puts, blame' --at-most 60000\"" in printed
    assert printed.splitlines()[-1].startswith("planted 2 found 2 (named 2, model 2, simulation 0)")


def test_a_bug_that_is_not_found_makes_the_command_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    bug = BUGS["blind_repeat"]
    monkeypatch.setitem(BUGS, "blind_repeat", replace(bug, finders=(Search("puts, blame", states=20),)))
    assert command.main(["--only", "blind_repeat"]) == 1
    printed = capsys.readouterr().out
    assert "model NOT FOUND" in printed and printed.splitlines()[-1].endswith("not found: blind_repeat")


@pytest.mark.parametrize(
    ("level", "ended"),
    [
        ("named", Ended(1, "0 of 2 named interleavings found x")),
        ("named", Ended(1, "1 of 2 named interleavings found x")),
        ("model", Ended(1, "  NOT EXHAUSTED: 5 states")),
        ("simulation", Ended(BROKEN, "Traceback (most recent call last)")),
        ("simulation", Ended(LATE, "")),
    ],
)
def test_what_is_no_find(level: str, ended: Ended) -> None:
    assert found(level, ended, "") == ""


MODEL = 'cut off: 3 members\n  violated after 5 states\nmodel cut off: {}\n   1  X: run\n{{"model": "cut off", "steps": ["X: run"]}}\n'
SEED = "\nseed {0} violates:\n  1.500 {1}\n  2.500 something else\nsee it again: make simulate SEED={0}\n"


def test_a_find_tells_what_the_bug_does() -> None:
    """A bug that breaks, or does something else than it should, violates something too."""
    for name, level, violation in (
        ("lock_not_compared", "model", "messages are confirmed by who does not hold the lock (invariant 3)"),
        ("recovery_not_idempotent", "model", "INACTIVE -> RECOVERING"),
        ("deleted_before_the_confirm", "simulation", "admin: q/R/h/5/X.0/1 is deleted, and no partner has a record of its stream"),
    ):
        told = BUGS[name].told

        def ended(*violations: str, level: str = level) -> Ended:
            if level == "model":
                return Ended(1, MODEL.format(*violations))
            seeds = "".join(SEED.format(number, text) for number, text in enumerate(violations, start=7))
            return Ended(1, f"{seeds}simulated: 9 seeds, 0.1 hours\n")

        assert found(level, ended(violation), told)
        assert found(level, ended("unhandled in X-qm: TypeError()"), told) == ""
        assert found(level, ended("m1 lost (invariant 1)"), told) == ""
        if level == "simulation":
            assert found(level, ended("1 lost", violation), told) == "9 seeds (seed 8)"


def test_a_test_that_breaks_has_found_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise AttributeError("no such name")

    def failing() -> None:
        raise AssertionError("not as it should be")

    bug = "lock_not_compared"
    for play, finds in ((broken, []), (failing, [f"{FINDERS[bug][0]}: not as it should be"])):
        monkeypatch.setattr(named, "test_of", lambda name, play=play: play)
        assert found_by(bug) == finds
    assert "broke: AttributeError" in capsys.readouterr().out
