"""A channel's entry of the status table as a line of `qsg channel status`: the answer's fields and their names.

Owns what the entry tells of MQ's DISPLAY CHSTATUS, under plainer names, and what it tells beyond it; docs/cli.md has both names side by
side, and says which fields of MQ's are not kept. Not guaranteed: that a line is current. A running channel's owner writes its entry at
most once a second.
"""

from __future__ import annotations

from typing import Any

from qsg.pb import records_pb2 as pb
from qsg.rules import status
from qsg.rules.definitions import SEQUENCE_WRAP
from qsg.rules.negotiate import is_ahead
from qsg.rules.records import read_record

BOUND = frozenset({pb.RUNNING, pb.PAUSED})
"""A session is bound: what was agreed on with the partner holds. Elsewhere the entry has what the last one agreed on."""


def describe(entry: pb.ChannelStatus, wrap: int = SEQUENCE_WRAP) -> dict[str, Any]:
    """`wrap`: of the channel's sequence numbers."""
    line: dict[str, Any] = {
        "channel": entry.channel,
        "type": "sender" if entry.type == pb.SENDER else "receiver",
        "status": status.name(entry.state),
        "owner": entry.owner,
        "owner_incarnation": entry.owner_incarnation,
        "owner_initiator": entry.owner_initiator,
        "partner": entry.partner,
        "transmission_queue": entry.transmission_queue,
        "address": entry.address,
        "updated_at_ms": entry.updated_at_ms,
        "started_at_ms": entry.started_at_ms,
        "last_message_at_ms": entry.last_message_at_ms,
        "epoch": entry.epoch,
        "instance": entry.instance,
        "stream": entry.stream.hex(),
        "messages": entry.messages,
        "bytes": entry.bytes,
        "batches": entry.batches,
        "current_sequence": entry.current_sequence,
        "last_sequence": entry.last_sequence,
        "current_luwid": entry.current_luwid,
        "last_luwid": entry.last_luwid,
        "in_doubt": entry.in_doubt,
        "current_messages": _current_messages(entry, wrap),
        "short_retries_left": entry.short_retries_left,
        "long_retries_left": entry.long_retries_left,
        "reason": int(entry.reason),
        "detail": entry.detail,
        "takeovers": entry.takeovers,
    }
    if entry.state in BOUND and entry.batch_messages:
        line["negotiated"] = {
            "batch_messages": entry.batch_messages,
            "heartbeat_ms": entry.heartbeat_ms,
            "max_message_bytes": entry.message_bytes_max,
        }
    if entry.state == pb.STOPPING:
        line["stop_mode"] = "force" if entry.stop_force else "quiesce"
        line["stopping_to"] = status.name(entry.stop_to)
        line["note"] = "partner not fenced" if entry.partner_not_fenced else ""
    if entry.HasField("takeover"):
        line["takeover"] = _takeover(entry.takeover)
    return line


def _takeover(last: pb.Takeover) -> dict[str, Any]:
    return {
        "from": getattr(last, "from"),
        "to": last.to,
        "cause": last.cause,
        "at_ms": last.at_ms,
        "detect_ms": round(last.detect_ms, 1),
        "claim_ms": round(last.claim_ms, 1),
        "resume_ms": round(last.resume_ms, 1),
    }


def _current_messages(entry: pb.ChannelStatus, wrap: int) -> int:
    """Sent and not known to be confirmed, of all batches under way."""
    if not entry.in_doubt or not is_ahead(entry.current_sequence, entry.last_sequence, wrap):
        return 0
    return (entry.current_sequence - entry.last_sequence) % wrap


def saved(fence: bytes, progress: bytes) -> dict[str, Any]:
    """MQ's SAVED of a sender: what the SYNCQ records in the structure of its transmission queue say."""
    f, p = read_record(pb.SenderFence, fence), read_record(pb.Progress, progress)
    return {
        "epoch": f.epoch,
        "open": f.open,
        "partner": f.partner,
        "channel": f.channel,
        "stream": f.stream.hex(),
        "last_luwid": p.luwid,
        "last_sequence": p.sequence,
        "messages": p.messages,
        "batches": p.batches,
        "reset_to": p.reset_to,
    }
