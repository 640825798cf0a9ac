"""What came of a run: counts, gaps by kind of fault, what was found wrong; as text for people and as one JSON object."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from qsg.process.ledger import Counts
from torture.history import Takeover


@dataclass(frozen=True, slots=True)
class Measured:
    """One fault that stood alone."""

    kind: str
    gap_ms: float
    """The longest silence in arrivals, in either direction, from the harm until messages flowed again."""
    takeovers: tuple[Takeover, ...] = ()


@dataclass
class Report:
    seed: int
    minutes: float
    counts: Counts = field(default_factory=Counts)
    recovered: int = 0
    """Arrived though their put was never acknowledged: its outcome was unknown."""
    faults: dict[str, int] = field(default_factory=dict)
    """Kind -> how often it did harm."""
    effects: dict[str, str] = field(default_factory=dict)
    """Kind -> what it did, where that depends on what the machine allows."""
    missing: list[str] = field(default_factory=list)
    """Kinds that never were."""
    measured: list[Measured] = field(default_factory=list)
    changes: int = 0
    breaks: int = 0
    reads: int = 0
    """Of the registers of ownership, judged with the changes."""
    problems: list[str] = field(default_factory=list)
    """Each with seed, phase and fault in its words."""
    seconds: float = 0.0
    logs: str = ""
    again: str = ""
    """The command that draws the same faults again."""

    @property
    def clean(self) -> bool:
        return self.counts.clean and not self.problems

    def line(self) -> str:
        c = self.counts
        told = (
            f"attempt {c.sent}, acknowledged {c.acknowledged}, ok {c.ok}, lost {c.lost}, duplicated {c.duplicated}, "
            f"unexpected {c.unexpected}, recovered {self.recovered}, out of order {c.out_of_order} (returned {c.returned})"
        )
        kinds = f"{sum(self.faults.values())} faults of {len(self.faults)} kinds, {len(self.missing)} kinds missing"
        verdict = "CLEAN" if self.clean else "BROKEN"
        return f"{verdict} seed {self.seed}: {told}; {kinds}; {self.changes} changes of the table, {self.reads} reads; {self.seconds:.0f} s"

    def json(self) -> str:
        fields: dict[str, Any] = {"seed": self.seed, "minutes": self.minutes, "clean": self.clean, **_renamed(self.counts)}
        fields |= {"recovered": self.recovered, "faults": self.faults, "effects": self.effects, "missing": self.missing}
        fields |= {
            "gaps": [row(kind, found) for kind, found in self._by_kind()],
            "changes": self.changes,
            "breaks": self.breaks,
            "reads": self.reads,
        }
        fields |= {
            "reads": self.reads,
            "problems": self.problems,
            "seconds": round(self.seconds, 1),
            "logs": self.logs,
            "again": self.again,
        }
        return json.dumps(fields)

    def _by_kind(self) -> list[tuple[str, list[Measured]]]:
        kinds = sorted({m.kind for m in self.measured})
        found = [(kind, [m for m in self.measured if m.kind == kind]) for kind in kinds]
        return [*found, ("all", self.measured)] if found else []

    def table(self) -> str:
        """Milliseconds; detect, claim and resume as the status table tells them: median and longest."""
        head = ("fault", "n", "gap p50", "p95", "p99", "max", "takeovers", "detect", "claim", "resume")
        lines: list[tuple[str, ...]] = [head]
        for kind, found in self._by_kind():
            r = row(kind, found)
            parts = [f"{r[f'{n}_p50_ms']:.0f}/{r[f'{n}_max_ms']:.0f}" if r["takeovers"] else "" for n in ("detect", "claim", "resume")]
            gaps = [f"{r[f'gap_{n}_ms']:.0f}" for n in ("p50", "p95", "p99", "max")]
            lines.append((kind, str(r["n"]), *gaps, str(r["takeovers"]), *parts))
        widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
        return "\n".join("  ".join(f"{cell:{'<' if i == 0 else '>'}{widths[i]}}" for i, cell in enumerate(line)) for line in lines)


def row(kind: str, found: Sequence[Measured]) -> dict[str, float | int | str]:
    gaps = [m.gap_ms for m in found]
    takeovers = [t for m in found for t in m.takeovers]
    told: dict[str, float | int | str] = {"kind": kind, "n": len(found), "takeovers": len(takeovers)}
    told |= {f"gap_{name}_ms": share(gaps, q) for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0))}
    for part in ("detect", "claim", "resume"):
        values = [getattr(t, f"{part}_ms") for t in takeovers]
        told |= {f"{part}_p50_ms": share(values, 0.5), f"{part}_max_ms": share(values, 1.0)}
    return told


def share(values: Iterable[float], q: float) -> float:
    """The value below or at which a share `q` of them lies."""
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, int(q * len(ordered)))], 1) if ordered else 0.0


def _renamed(counts: Counts) -> dict[str, int]:
    fields = asdict(counts)
    return {"attempt": fields.pop("sent"), **fields}
