"""What the operator remembers of one group or queue manager between two reconciles. All of it can be lost: it only saves work."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from qsg_operator.definitions import Mark
from qsg_operator.members import Members, Way

FULL_S = 60.0
"""So often everything is looked at again, changed or not."""


@dataclass
class TargetState:
    uid: str
    members: Members
    applied: dict[tuple[str, str], tuple[str, object]] = field(default_factory=dict)
    """Child -> (hash of what was applied, version that the API server made of it)."""
    certificates_for: str = ""
    way: Way = field(default_factory=lambda: Way((), ""))
    expires: str = ""
    store_trust: str = ""
    """Of the store's authorities, when there are several: etcd's pods are started again when it changes."""
    defined_for: str = ""
    defined_at: float = float("-inf")
    judged: dict[Mark, int] = field(default_factory=dict)
    """Resource -> its generation in the last round over all definitions that came to its end: only of this one can anything be told."""
    hindered: str = ""
    """Why there was none since; "" = nothing has hindered it."""
    refused: dict[Mark, str] = field(default_factory=dict)
    """Definitions that members do not take, and why."""
    taken: dict[Mark, Mark] = field(default_factory=dict)
    start_refused: dict[Mark, str] = field(default_factory=dict)
    commanded: dict[Mark, tuple[str, float]] = field(default_factory=dict)
    """The last command to a channel, and when: the same one is not given again at once."""
    outcomes: dict[Mark, dict[str, Any]] = field(default_factory=dict)
    """`lastOperation` of channels, until it is written."""
    full_at: float = float("-inf")
