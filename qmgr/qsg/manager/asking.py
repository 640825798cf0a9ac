"""Whom to ask to run a channel, and asking them: start requests to other members, or to ourselves.

Owns the order of the candidates and the pauses between rounds. Invariant: a start request changes nothing by itself; who accepts one takes
the channel by compare-and-swap, so that asking twice, or two members at once, is harmless. Does not guarantee that anybody accepts:
whoever pursues a channel asks again, choosing anew, until its entry changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from qsg.manager.care import Care
from qsg.manager.peers import PeerUnreachable
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import balance
from qsg.rules.definitions import PRIVATE
from qsg.rules.ownership import Occasion
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Sight
from qsg.store.contract import KeyValue

log = structlog.get_logger()

CHANGED_S = 0.01
"""First pause when a take was overtaken by another change."""
IDLE_S = 0.2
"""Pause when no member can run the channel now."""
OUT_OF_REACH = "status table out of reach"
"""Cause of a start request for a channel whose entry its owner cannot change."""
REFUSED_S = (0.1, 1.0)
"""First and longest pause when every member has refused a start request."""


def stays_here(care: Care) -> bool:
    """No other member can ever run it."""
    return care.place.admin == PRIVATE or care.place.channel.disposition == "fixed-shared"


def candidates(care: Care) -> list[str]:
    """Members that can run it, best first; the first is another one each time it has failed."""
    office = care.office
    me = office.driver.member
    only = office.only_at(care.place)
    if stays_here(care) and only in ("", me):
        own = office.own_load()
        return [me] if own.initiator and not office.draining and not balance.full(own) else []
    found = balance.ranked(office.loads(), care.name, {care.place.admin, care.place.structure})
    if only:
        return [member for member in found if member == only]
    if care.elsewhere and me in found and len(found) > 1:
        found = [m for m in found if m != me] + [me]
    if care.ready in found:
        found = [care.ready] + [m for m in found if m != care.ready]
    return found


def tell_known(request: peer_pb2.StartChannel, left: Sight) -> None:
    request.revision = left.revision
    for kv in left.kvs.values():
        request.known.add(key=kv.key, value=kv.value, mod_revision=kv.mod_revision, create_revision=kv.create_revision)


def told_known(request: peer_pb2.StartChannel) -> Sight | None:
    """What a start request says of the keys that the channel is taken with."""
    if not request.revision:
        return None
    return Sight(request.revision, {k.key: KeyValue(k.key, k.value, k.create_revision, k.mod_revision) for k in request.known})


class Asking:
    """Start requests for one channel; `begin` takes it here, or raises `Refusal`."""

    def __init__(self, care: Care, begin: Callable[[Occasion], Awaitable[None]]) -> None:
        self.care = care
        self._begin = begin
        self._refusals = 0

    def taken(self) -> None:
        """The channel runs here: the next trouble is a new one, and a move that came back is over."""
        self._refusals = 0
        self.care.handing_over, self.care.ready = False, ""

    def nobody_to_hand_to(self) -> bool:
        office = self.care.office
        if not office.draining or candidates(self.care):
            return False
        alone = stays_here(self.care) or office.peers is None or len(office.peers.members.registered) < 2
        return alone or asyncio.get_running_loop().time() >= office.drain_until

    async def pursue(self, entry: pb.ChannelStatus) -> None:
        """RECOVERING, RETRYING or INITIALIZING under our name: start requests, choosing anew each time, until the entry changes (H5)."""
        loop = asyncio.get_running_loop()
        if self.care.not_before > loop.time() and not await self.care.pause(self.care.not_before - loop.time()):
            return
        found = candidates(self.care)
        if not found:
            await self.care.pause(IDLE_S)
            return
        if len(found) > 1 and self.care.elsewhere and not self.care.handing_over:
            others = len(found) - 1
            turn = entry.short_retries_left % others
            found = [*found[turn:others], *found[:turn], found[-1]]
        for target in found:
            if await self._ask(target, entry):
                return
        self._refusals += 1
        await self.care.pause(min(REFUSED_S[0] * 2 ** min(self._refusals, 5), REFUSED_S[1]))

    async def _ask(self, target: str, entry: pb.ChannelStatus) -> bool:
        """Whether `target` has taken it, or the entry is no longer what we read."""
        office = self.care.office
        try:
            if target == office.driver.member:
                await self._begin(Occasion("own", self.care.now()))
                return True
            assert office.peers is not None
            request = peer_pb2.StartChannel(channel=self.care.name, cause=entry.takeover.cause)
            setattr(request, "from", office.driver.member)
            if self.care.passage is not None:
                request.detect_ms = self.care.passage.detect_ms
                request.since_ms = round(1000 * (asyncio.get_running_loop().time() - self.care.passage.since))
            left, self.care.left = self.care.left, None
            if left is not None:
                tell_known(request, left)
            await office.peers.request(target, peer_pb2.Request(start=request))
            log.info("start request accepted", channel=self.care.name, member=target)
            return True
        except Refusal as refusal:
            log.info("start request refused", channel=self.care.name, member=target, reason=refusal.reason.name, detail=refusal.detail)
            if refusal.reason is not Reason.CHANGED_MEANWHILE:
                return False
            self._refusals += 1
            await self.care.pause(min(CHANGED_S * self._refusals, IDLE_S))
            return True
        except PeerUnreachable as error:
            log.info("start request not answered", channel=self.care.name, member=target, error=str(error))
            return False

    async def ask_blindly(self) -> None:
        """Scenario 1: the entry cannot be written from here, so the others are asked, again and again, to take it from us."""
        office, admin = self.care.office, self.care.table.structure
        while not admin.reachable and not admin.fenced.is_set() and office.peers is not None:
            for target in candidates(self.care):
                if target == office.driver.member:
                    continue
                request = peer_pb2.StartChannel(channel=self.care.name, cause=OUT_OF_REACH)
                setattr(request, "from", office.driver.member)
                try:
                    await office.peers.request(target, peer_pb2.Request(start=request))
                    log.warning("another member has taken it from us", channel=self.care.name, member=target)
                    return
                except (Refusal, PeerUnreachable) as error:
                    log.info("start request failed", channel=self.care.name, member=target, error=str(error))
            await asyncio.sleep(REFUSED_S[1])
