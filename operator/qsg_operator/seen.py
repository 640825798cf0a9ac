"""What the members of a group, or a queue manager outside, have told: the input of every status. Plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Line = Mapping[str, Any]


@dataclass(frozen=True)
class Backlog:
    messages: int
    oldest_age_s: int | None = None


@dataclass
class Seen:
    """`connected`: some member answers now. What was told before stays, and is old then."""

    connected: bool = False
    error: str = "not connected yet"
    members: list[Line] = field(default_factory=list)
    structures: dict[str, bool] = field(default_factory=dict)
    channels: dict[tuple[str, str], Line] = field(default_factory=dict)
    """(channel, partner of an inbound one) -> its entry in the status table; what is not there is inactive."""
    told: bool = False
    """The whole status table was told at least once since the connection was made."""
    depths: dict[str, int] = field(default_factory=dict)
    backlogs: dict[str, Backlog] = field(default_factory=dict)
    """Transmission queue -> backlog."""

    def sender(self, channel: str) -> Line | None:
        return self.channels.get((channel, ""))

    def receivers(self, channel: str) -> list[Line]:
        return [line for (name, partner), line in sorted(self.channels.items()) if name == channel and line["type"] == "receiver"]

    def running(self) -> int:
        return sum(line["status"] in ("RUNNING", "PAUSED") for line in self.channels.values())

    def able(self) -> list[Line]:
        """Members that can take over channels now."""
        return [m for m in self.members if m["linked"] and m["initiator"] and not m["draining"]]

    def lost(self, wanted: Iterable[str]) -> dict[str, list[str]]:
        """Structures, those `wanted` and those told of, that somebody does not reach -> members that do not. What a member has not joined
        it does not reach. Of a member that ends, that nobody is linked to or that has not yet said a word nothing is known."""
        names = {*wanted, *self.structures}
        found: dict[str, list[str]] = {name: [] for name in names if not self.structures.get(name, False)}
        for line in self.members:
            if line["linked"] and not line["draining"] and (line["initiator"] or line.get("structures")):
                for name in names - set(line.get("structures", names)):
                    found.setdefault(name, []).append(str(line["member"]))
        return dict(sorted(found.items()))
