"""A planned move, made ready while the channel still runs: the member that is to have it connects to the partner ahead.

Owns both ends of that: asking the best member, and what an asked one does. Invariant: nothing is taken, locked or told to the partner; the
old instance goes on until the next one is ready, so that what lies between them is no more than letting the lock go, taking it, and a bind.
Does not guarantee that whoever was made ready gets the channel: without it the move only takes longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from qsg.manager.asking import candidates, stays_here, tell_known
from qsg.manager.care import Care
from qsg.manager.link import InitiatorLink, SessionFailed
from qsg.manager.peers import PeerUnreachable
from qsg.pb import initiator_pb2, peer_pb2
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Place, Sight

log = structlog.get_logger()

PREPARE_S = 1.0
"""A move does not wait longer for the next member to be ready, nor for one that can be asked at all."""
LOOK_S = 0.02


async def make_ready(care: Care, to: str = "") -> Refusal | None:
    """Asks other members (or `to` alone), best first, until one is ready; `care.ready` is that one. Answers why the last was not."""
    office = care.office
    why: Refusal | None = None
    care.ready = ""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for target in await _those_able(care, to):
        assert office.peers is not None
        request = peer_pb2.Request(prepare=peer_pb2.PrepareStart(channel=care.name))
        try:
            await office.peers.request(target, request, PREPARE_S)
        except (Refusal, PeerUnreachable) as error:
            log.info("not ready to take it", channel=care.name, member=target, error=str(error))
            detail = error.detail if isinstance(error, Refusal) else str(error)
            why = Refusal(error.reason if isinstance(error, Refusal) else Reason.HOST_NOT_AVAILABLE, f"{target} is not ready: {detail}")
        else:
            care.ready = target
            log.info("next member is ready", channel=care.name, member=target, ms=round(1000 * (loop.time() - began), 1))
            return None
    return why


async def _those_able(care: Care, to: str) -> list[str]:
    """The other members (or `to` alone) that can run it, best first. They are waited for: one may be starting, or not be heard just now."""
    peers, me = care.office.peers, care.office.driver.member
    if peers is None or stays_here(care):
        return []
    until = asyncio.get_running_loop().time() + PREPARE_S
    while True:
        able = [member for member in candidates(care) if member != me and to in ("", member)]
        if able or not peers.remains(to) or asyncio.get_running_loop().time() >= until:
            return able
        await asyncio.sleep(LOOK_S)


async def tell_given(care: Care, target: str, told: Sight, since: float) -> None:
    """Tells a member that the channel is its own now. One that does not hear it finds out by the table."""
    assert care.office.peers is not None
    since_ms = round(1000 * (asyncio.get_running_loop().time() - since))
    start = peer_pb2.StartChannel(channel=care.name, cause=care.move_cause, since_ms=since_ms)
    setattr(start, "from", care.office.driver.member)
    tell_known(start, told)
    try:
        await care.office.peers.request(target, peer_pb2.Request(start=start))
        log.info("given away", channel=care.name, member=target)
    except (Refusal, PeerUnreachable) as error:
        log.info("given away, not taken up", channel=care.name, member=target, error=str(error))


async def get_ready(link: InitiatorLink, find: Callable[[str], Place | None], request: peer_pb2.Request) -> str:
    """What an asked member does. Raises `Refusal`."""
    place = find(request.prepare.channel)
    if place is None:
        raise Refusal(Reason.CHANNEL_NOT_FOUND, f"no sender channel {request.prepare.channel} here")
    channel = place.channel
    order = initiator_pb2.Open(
        channel=channel.name,
        addresses=channel.connection_names,
        connect_timeout_ms=channel.connect_timeout_ms,
        silence_ms=channel.silence_ms,
        heartbeat_ms=channel.heartbeat_ms,
        prepare=True,
    )
    try:
        await link.prepare(order)
    except SessionFailed as failed:
        raise Refusal(failed.reason, failed.detail) from failed
    return ""
