"""One channel in this member's care: what whoever asks others for it and whoever runs it have in common.

Owns the orders that came from outside, and what is known of a takeover under way. Invariant: all of it is used by the channel's one task
(`qsg.manager.caretaker`), or set for it together with `wake`. Holds nothing that could not be lost: the table decides.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TypeVar

from qsg.manager.office import Office, Passage
from qsg.manager.table import StatusTable
from qsg.pb import records_pb2 as pb
from qsg.rules.steps import Place, Sight, Steps

T = TypeVar("T")
GIVE_UP_S = 1.5
"""A change that a structure does not take for so long counts as one that cannot be made."""


@dataclass(eq=False)
class Care:
    office: Office
    place: Place
    passage: Passage | None = None
    elsewhere: bool = False
    """Others are asked first: it has just failed here."""
    handing_over: bool = False
    """A planned move."""
    ready: str = ""
    """The member that has made itself ready for a planned move."""
    move_cause: str = "drain"
    """Why it is moved, for the record of the takeover."""
    written: pb.ChannelStatus | None = None
    """The entry as we have just written it, so that it need not be read."""
    left: Sight | None = None
    """What we have just released, for whoever takes it."""
    written_at: int = 0
    """Revision of that: what the watch shows up to it is nothing new."""
    stop: bool | None = None
    """A stop was ordered; True: by force."""
    not_before: float = 0.0
    """Loop time before which nobody is asked to start it."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def name(self) -> str:
        return self.place.channel.name

    @property
    def table(self) -> StatusTable:
        return self.office.tables[self.place.admin]

    def order_stop(self, *, force: bool) -> None:
        self.stop = force or bool(self.stop)
        self.wake.set()

    async def run(self, steps: Steps[T], label: str = "", timeout_s: float = GIVE_UP_S) -> T:
        async with asyncio.timeout(timeout_s):
            return await self.office.driver.run(steps, label)

    async def pause(self, seconds: float) -> bool:
        """Waits, or until something has changed; whether the time has passed."""
        try:
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        except TimeoutError:
            return True
        self.wake.clear()
        return False

    def takeover(self, cause: str) -> pb.Takeover:
        takeover = pb.Takeover(cause=cause, at_ms=self.now())
        setattr(takeover, "from", self.office.driver.member)
        return takeover

    def now(self) -> int:
        """Milliseconds of wall time."""
        return self.office.world.wall_ms()
