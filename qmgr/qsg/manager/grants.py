"""What the taker of a channel gives its sender, and what it gets back: the contract between `qsg.manager.sending` and who supervises it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from qsg.manager.structure import Structure
from qsg.pb import channel_pb2, initiator_pb2, records_pb2
from qsg.rules import negotiate
from qsg.rules.definitions import Channel
from qsg.rules.reasons import Reason
from qsg.rules.records import read_record
from qsg.rules.unit import Cell, Unit


@dataclass
class Grant:
    """What the one who took the channel holds. The cells are kept up to date."""

    channel: Channel
    structure: Structure
    lock: Cell
    fence: Cell
    progress: Cell
    epoch: int
    instance: int
    stream: bytes
    sender_name: str
    """GROUP NAME of a shared channel, LOCAL NAME of a private one."""


@dataclass(frozen=True)
class Outcome:
    """Why an instance ended; the supervisor decides what follows."""

    kind: Literal["idle", "stopped", "failed", "fenced", "handed-over"]
    reason: Reason = Reason.NONE
    detail: str = ""
    clean: bool = False
    """Bound at this epoch, and everything sent is confirmed and deleted, once `last` is committed."""
    last: Unit | None = None
    """What is left to delete: it belongs into the transaction that gives the lock up."""
    epoch_seen: int = 0
    instance_seen: int = 0


@dataclass
class SenderCounters:
    """For the status table. Sequence and LUWID: current = last sent, last = last confirmed."""

    messages: int = 0
    bytes: int = 0
    batches: int = 0
    current_sequence: int = 0
    sequence: int = 0
    current_luwid: str = ""
    luwid: str = ""
    last_message_at_ms: int = 0
    in_doubt: bool = False
    address: str = ""
    partner: str = ""
    partner_member: str = ""
    parameters: channel_pb2.Parameters = field(default_factory=channel_pb2.Parameters)
    """As negotiated; empty before it is bound."""


def open_order(grant: Grant, *, fence_only: bool = False, query: bool = False) -> initiator_pb2.Open:
    """What the initiator needs to open a session for this grant."""
    channel = grant.channel
    fence = read_record(records_pb2.SenderFence, grant.fence.value or b"", grant.fence.key)
    progress = read_record(records_pb2.Progress, grant.progress.value or b"", grant.progress.key)
    bind = channel_pb2.Bind(
        channel=channel.name,
        sender=grant.sender_name,
        receiver=channel.partner,
        stream=grant.stream,
        epoch=grant.epoch,
        instance=grant.instance,
        bound_before=fence.bound_before,
        reset_to=progress.reset_to,
        sequence=progress.sequence,
        parameters=negotiate.offer(channel),
        fence_only=fence_only,
    )
    return initiator_pb2.Open(
        channel=channel.name,
        addresses=channel.connection_names,
        bind=bind,
        connect_timeout_ms=channel.connect_timeout_ms,
        silence_ms=channel.silence_ms,
        heartbeat_ms=channel.heartbeat_ms,
        query=query,
    )
