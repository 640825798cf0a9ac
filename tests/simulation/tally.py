"""What became of every message: the seven counts, and order.

Invariant: nothing is guessed. A message whose put was acknowledged and that never arrived is *lost* (unless it may expire); one that
arrived though its producer was told that it was not put is *unexpected*, as is one that nobody sent; one that arrived though its
producer does not know is *recovered*. A get whose commit has an unknown outcome counts as an arrival only when nothing else does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields

ORDERED_QUEUES = frozenset({"IN.G", "IN.R", "IN.S"})


@dataclass(slots=True)
class Sent:
    flow: str
    number: int
    priority: int
    size: int
    expires: bool
    state: str = "unknown"
    """unknown, acknowledged, refused"""
    arrived: int = 0
    perhaps: int = 0
    """Units of work that got it and whose outcome is unknown."""


@dataclass(slots=True)
class Counts:
    sent: int = 0
    acknowledged: int = 0
    ok: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    recovered: int = 0
    out_of_order: int = 0
    expired: int = 0
    dead_letters: int = 0

    def add(self, other: Counts) -> None:
        for f in fields(self):
            setattr(self, f.name, getattr(self, f.name) + getattr(other, f.name))

    def __str__(self) -> str:
        return ", ".join(f"{f.name.replace('_', ' ')} {getattr(self, f.name)}" for f in fields(self))


def payload(flow: str, number: int, size: int) -> bytes:
    head = f"{flow}/{number}/{size}/".encode()
    return head + bytes((number + i) & 0xFF for i in range(16)) * ((size + 15) // 16)


@dataclass(slots=True)
class Tally:
    messages: dict[tuple[str, int], Sent] = field(default_factory=dict)
    strangers: list[bytes] = field(default_factory=list)
    dead_letters: int = 0
    unordered: set[str] = field(default_factory=set)
    """Flows that nobody promised an order."""
    ids: dict[bytes, Sent] = field(default_factory=dict)
    """By message id, as far as the producer was told it."""
    order: list[tuple[str, int, bytes]] = field(default_factory=list)
    """(store, revision, message id) as messages came to lie on target queues."""
    _last: dict[str, int] = field(default_factory=dict)

    def send(self, flow: str, priority: int, size: int, *, expires: bool = False) -> tuple[Sent, bytes]:
        number = self._last[flow] = self._last.get(flow, 0) + 1
        sent = self.messages[flow, number] = Sent(flow, number, priority, size, expires)
        return sent, payload(flow, number, size)

    def find(self, body: bytes) -> Sent | None:
        try:
            flow, number, _, _ = body.split(b"/", 3)
            sent = self.messages[flow.decode(), int(number)]
        except (ValueError, KeyError):
            return None
        return sent if body == payload(sent.flow, sent.number, sent.size) else None

    def committing(self, bodies: Iterable[bytes]) -> None:
        for body in bodies:
            if (sent := self.find(body)) is not None:
                sent.perhaps += 1

    def backed_out(self, bodies: Iterable[bytes]) -> None:
        for body in bodies:
            if (sent := self.find(body)) is not None:
                sent.perhaps -= 1

    def arrived(self, bodies: Iterable[bytes], *, dead_letters: bool = False) -> None:
        for body in bodies:
            self.dead_letters += dead_letters
            sent = self.find(body)
            if sent is None:
                self.strangers.append(body[:60])
            else:
                sent.arrived += 1
                sent.perhaps -= 1

    @property
    def missing(self) -> list[Sent]:
        """Acknowledged, and not seen to arrive."""
        return [s for s in self.messages.values() if s.state == "acknowledged" and not s.arrived and not s.perhaps and not s.expires]

    def counts(self) -> Counts:
        all_ = list(self.messages.values())
        came = [s for s in all_ if s.arrived or (s.perhaps and s.state != "refused")]
        return Counts(
            sent=len(all_),
            acknowledged=sum(s.state == "acknowledged" for s in all_),
            ok=sum(s.state == "acknowledged" for s in came),
            lost=len(self.missing),
            duplicated=sum(max(0, s.arrived - 1) for s in all_),
            unexpected=len(self.strangers) + sum(s.state == "refused" for s in came),
            recovered=sum(s.state == "unknown" for s in came),
            out_of_order=len(self.out_of_order()),
            expired=sum(s.state == "acknowledged" and s.expires and not s.arrived and not s.perhaps for s in all_),
            dead_letters=self.dead_letters,
        )

    def published(self, store: str, revision: int, queue: str, message_id: bytes) -> None:
        """A message became visible on a target queue."""
        if queue in ORDERED_QUEUES:
            self.order.append((store, revision, message_id))

    def rewound(self, store: str, revision: int) -> None:
        """What a store had behind `revision` was lost in a crash."""
        self.order = [entry for entry in self.order if entry[0] != store or entry[1] <= revision]

    def out_of_order(self) -> list[tuple[Sent, Sent]]:
        """(what came earlier, a later one with a lower number), of one flow and priority; only of what was acknowledged.

        As they came to lie on the queue: what applications see is another matter, as one unit of work may hold a message while the next
        gets what lies behind it.
        """
        last: dict[tuple[str, int], Sent] = {}
        found = []
        for _, _, message_id in self.order:
            sent = self.ids.get(message_id)
            if sent is None or sent.flow in self.unordered or sent.state != "acknowledged":
                continue
            before = last.get((sent.flow, sent.priority))
            if before is not None and before.number > sent.number:
                found.append((before, sent))
            else:
                last[sent.flow, sent.priority] = sent
        return found
