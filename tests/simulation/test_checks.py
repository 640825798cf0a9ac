"""The observers of the simulation find what they are for, and the seed says how to see it again."""

from __future__ import annotations

import re
import shlex

import pytest

from planted.bugs import planted
from simulation import __main__ as command
from simulation import seeds
from simulation.plan import draw
from simulation.run import run

pytestmark = pytest.mark.timeout(300)

SEEDS = 12
"""Most find it in the first or second; which one that is changes with every change of the product."""


@pytest.mark.parametrize(
    ("bug", "told"),
    [
        ("deleted_before_the_confirm", "is deleted, and "),
        ("confirmed_before_the_commit", "confirmed, and "),
        ("watch_from_the_wrong_revision", "a live copy of "),
    ],
)
def test_what_is_wrong_is_told(bug: str, told: str) -> None:
    seen: list[str] = []
    for seed in range(SEEDS):
        with planted(bug):
            seen += run(draw(seed)).violations
        if any(told in violation for violation in seen):
            return
    raise AssertionError(seen[:3])


def test_a_bug_makes_the_command_fail_with_a_seed_to_be_seen_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (command, seeds):
        monkeypatch.setattr(module, "prepare", lambda planted, logs=False: None)  # it is for a process of its own
    with planted("claims_not_released"):
        assert command.main(["--seeds", "20", "--jobs", "1", "--only", "kill queue manager"]) == 1
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith("failed 1")
    whole = re.search(r"see it again: make simulate SEED=(\d+) ARGS=\"(--only 'kill queue manager')\"", printed)
    fewer = re.search(r"see that: make simulate SEED=(\d+) ARGS=\"(--only 'kill queue manager' --events [0-9,none]+)\"", printed)
    assert whole and fewer
    for told in (whole, fewer):
        with planted("claims_not_released"):
            assert command.main(["--seed", told[1], *shlex.split(told[2])]) == 1
        trace = capsys.readouterr().out
        assert f"seed {told[1]}, structures " in trace and "VIOLATED " in trace
    assert command.main(["--seed", fewer[1], *shlex.split(fewer[2])]) == 0, "without the bug it holds"


def test_only_some_kinds_of_fault() -> None:
    for number in range(5):
        events = draw(number, ("disk full", "power loss")).events
        assert {event.kind for event in events} - {"stop", "start", "reset", "resolve"} <= {"disk full", "power loss"}
    assert draw(3, ()) == draw(3)
