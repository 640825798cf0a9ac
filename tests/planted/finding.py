"""What a level that was run with a bug planted says: found, after how much, or nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from planted.children import Ended

FOUND = {
    "named": r"(?P<tests>[1-9]\d*) of (?P=tests) named interleavings found",
    "model": r"violated after (?P<states>\d+) states\n(?:.*\n)+?(?P<case>\{\"model\": .*\})",
    "simulation": r"see it again: make simulate SEED=(?P<seed>\d+)(?:.*\n)*?simulated: (?P<seeds>\d+) seeds",
}
"""By level, what it prints when it has found something that can be seen again."""


@dataclass(frozen=True, slots=True)
class Found:
    level: str
    how: str
    """After how much; "": not found."""
    seconds: float
    """Of processor time."""
    command: str


def found(level: str, ended: Ended) -> str:
    """Exit status 1 and a case: a level that broke, was killed, or gave up has found nothing."""
    match = re.search(FOUND[level], ended.output) if ended.status == 1 else None
    if match is None:
        return ""
    if level == "named":
        return f"{match['tests']} tests"
    if level == "model":
        case = json.loads(match["case"])
        return f"{case['model']!r} {match['states']} states, {len(case['steps'])} steps"
    return f"{match['seeds']} seeds (seed {match['seed']})"
