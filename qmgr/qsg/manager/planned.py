"""Planned moves: by command (which channels can be moved, and asking the owner, who alone can do it without a gap), and of all at a stop.

Owns no step of the move itself (`Caretaker.move`, decision 14). Invariant: what is refused here has changed nothing. Does not guarantee
that the channel stays where it was moved to: the next failure or planned stop moves it on, as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from qsg.manager import calls
from qsg.manager.peers import PeerUnreachable
from qsg.pb import peer_pb2
from qsg.pb import records_pb2 as pb
from qsg.rules import status
from qsg.rules.definitions import PRIVATE
from qsg.rules.reasons import Reason, Refusal
from qsg.rules.steps import Place

if TYPE_CHECKING:
    from qsg.manager.caretaker import Caretaker
    from qsg.manager.channels import ChannelSupervisor

ANSWER_S = 5.0
"""The owner answers when another member has connected to the partner, or none could."""


async def begin_move(supervisor: ChannelSupervisor, place: Place, to: str) -> tuple[pb.ChannelStatus, str]:
    """The entry as it was, and the member that is ready ("": the owner's answer was lost). Raises `Refusal`."""
    name = place.channel.name
    if supervisor.peers is None or place.admin == PRIVATE:
        raise Refusal(Reason.CHANNEL_CONFIG_ERROR, f"{name} is no channel of a group: it has one place only")
    if place.channel.disposition == "fixed-shared":
        raise Refusal(Reason.CHANNEL_CONFIG_ERROR, f"{name} is fixed-shared: it stays with its member while that lives")
    if supervisor.only_at(place):
        raise Refusal(Reason.CHANNEL_CONFIG_ERROR, f"{name} runs on {supervisor.only_at(place)} only")
    if to and to not in supervisor.peers.members.registered:
        raise Refusal(Reason.UNKNOWN_OBJECT_Q_MGR, f"there is no member {to} now")
    entry = await supervisor.tables[place.admin].read(name)
    if entry is None or entry.state != pb.RUNNING:
        raise Refusal(
            Reason.CHANNEL_NOT_ACTIVE, f"{name} is {status.name(status.state_of(entry)).lower()}: only one that runs can be moved"
        )
    if to == entry.owner:
        raise Refusal(Reason.CHANNEL_ALREADY_RUNNING, f"already running on {to}")
    calls.changing()
    if entry.owner == supervisor.member:
        return entry, await supervisor.give_away(name, to)
    request = peer_pb2.Request(move=peer_pb2.MoveChannel(channel=name, to=to))
    try:
        return entry, await supervisor.peers.request(entry.owner, request, ANSWER_S)
    except PeerUnreachable:
        return entry, ""  # it may have begun: the table tells


async def hand_all_over(care: Mapping[str, Caretaker], timeout_s: float) -> None:
    """Returns when nobody looks after a channel here any more. One may still come: given by a member that ends too, and did not know."""
    for one in care.values():
        one.hand_over()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            while care:
                await asyncio.gather(*(one.finished() for one in care.values()))
