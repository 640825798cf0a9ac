"""What a level that was run with a bug planted says: found, after how much, or nothing."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from planted.children import Ended

FOUND = {
    "named": r"(?P<tests>[1-9]\d*) of (?P=tests) named interleavings found",
    "model": r"violated after (?P<states>\d+) states\nmodel [^:]+: (?P<told>.+)\n(?:.*\n)+?(?P<case>\{\"model\": .*\})",
    "simulation": r"seed (?P<seed>\d+) violates:\n(?P<told>(?:  .*\n)+)see it again: make simulate SEED=(?P=seed)",
}
"""By level, what it prints when it has found something that can be seen again."""
SEEDS = r"simulated: (\d+) seeds"


@dataclass(frozen=True, slots=True)
class Found:
    level: str
    how: str
    """After how much; "": not found."""
    seconds: float
    """Of processor time."""
    command: str


def found(level: str, ended: Ended, told: str) -> str:
    """Exit status 1, a case, and a violation that is as `told` (of the model and the simulation): a level that broke, was killed, gave up,
    or found something else has not found the bug."""
    matches = re.finditer(FOUND[level], ended.output) if ended.status == 1 else iter(())
    match = next((m for m in matches if level == "named" or _is_told(told, m["told"])), None)
    if match is None:
        return ""
    if level == "named":
        return f"{match['tests']} tests"
    if level == "model":
        case = json.loads(match["case"])
        return f"{case['model']!r} {match['states']} states, {len(case['steps'])} steps"
    seeds = re.search(SEEDS, ended.output)
    return f"{seeds[1]} seeds (seed {match['seed']})" if seeds else ""


def _is_told(told: str, violations: str) -> bool:
    """The model tells one violation; the simulation many, a line each."""
    return any(re.search(told, line.strip()) for line in violations.splitlines())
