"""Is a member dead? Decided from what this member's links saw and what the peers report (design, failure and recovery).

Owns: three rules.
1. The link broke and reconnecting is refused: nobody listens there, the process is gone. Dead at once.
2. Silent for 1.5 s to a majority of the *registered* members, this one among them: dead. A majority, because two halves of a split
   group must not accuse each other for ever (interleavings H3, N15).
3. Otherwise its lease decides, which is not judged here.
Only ever against an incarnation that this member's own link had reached (H3b: a verdict by name would hit the process that has just
replaced the dead one). A wrong verdict is harmless: the victim's next write fails and it joins again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SILENCE_MS = 1_500
REPORT_FRESH_MS = 1_000
"""A peer's report older than this says nothing."""


@dataclass(frozen=True, slots=True)
class Link:
    """What this member's link to another has seen. `reached` 0 = never had a link to it."""

    reached: int
    silent_ms: float
    refused: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer's last beat said about a member, `age_ms` ago."""

    member: str
    incarnation: int
    silent_ms: float
    refused: bool
    age_ms: float


@dataclass(frozen=True, slots=True)
class Verdict:
    member: str
    incarnation: int
    cause: str
    silent_ms: float


def judge(me: str, registered: Mapping[str, int], links: Mapping[str, Link], reports: Mapping[str, Sequence[Report]]) -> list[Verdict]:
    """Verdicts against registered members (name -> incarnation). `reports`: by reporting peer, from its last beat."""
    verdicts = []
    for victim, incarnation in sorted(registered.items()):
        link = links.get(victim)
        if victim == me or link is None or link.reached != incarnation:
            continue
        if link.refused:
            verdicts.append(Verdict(victim, incarnation, "link broke, reconnecting refused", link.silent_ms))
        elif link.silent_ms >= SILENCE_MS:
            others = [peer for peer in registered if peer not in (me, victim)]
            accusers = 1 + sum(_accuses(victim, incarnation, registered, peer, links, reports) for peer in others)
            if 2 * accusers > len(registered):
                verdicts.append(Verdict(victim, incarnation, f"silent to {accusers} of {len(registered)} members", link.silent_ms))
    return verdicts


def _accuses(
    victim: str,
    incarnation: int,
    registered: Mapping[str, int],
    peer: str,
    links: Mapping[str, Link],
    reports: Mapping[str, Sequence[Report]],
) -> bool:
    """Does `peer`, as a registered member that we hear now, say the same of that incarnation?"""
    link = links.get(peer)
    if link is None or link.reached != registered[peer]:
        return False
    for report in reports.get(peer, ()):
        if report.member == victim and report.incarnation == incarnation and report.age_ms < REPORT_FRESH_MS:
            return report.refused or report.silent_ms + report.age_ms >= SILENCE_MS
    return False
