"""The page that says what is tested names what there is: kinds of fault, places of the code, targets of the fuzzing."""

from __future__ import annotations

import re
from pathlib import Path

from fuzz.targets import TARGETS
from qsg.failpoint import POINTS
from torture.faults import KINDS, POINT_KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()


def test_every_place_of_the_code_is_in_the_table() -> None:
    rows = dict(re.findall(r"^\| `(\w+\.\w+)` \| (.+) \|$", PAGE, re.MULTILINE))
    assert rows == POINTS


def test_the_numbers_are_those_of_today() -> None:
    assert f"| places of the code ({len(POINT_KINDS)}) |" in PAGE
    (targets,) = re.findall(r"^\| fuzzing \| (\d+) targets(?: \((\d+) now\))? \|", PAGE, re.MULTILINE)
    assert int(targets[1] or targets[0]) == len(TARGETS)
    for word in ("kill", "freeze"):
        (number,) = re.findall(rf"^\|.*\b{word} \((\d+)\)", PAGE, re.MULTILINE)
        assert int(number) == sum(kind.startswith(f"{word} ") and "etcd" not in kind for kind in KINDS), word
    for word, marks in (
        ("etcd", ("etcd",)),
        ("clock", ("clock",)),
        ("cut", ("cut ",)),
        ("one-way", ("one-way",)),
        ("half-open", ("half-open",)),
    ):
        (number,) = re.findall(rf"\b{word} \((\d+)\)", PAGE)
        assert int(number) == sum(any(mark in kind for mark in marks) for kind in KINDS), word
