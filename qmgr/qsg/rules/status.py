"""The shared channel status table: states of a channel, the one table of legal transitions, and entries made and altered by it.

Owns: what an entry may become (patent: "updates to any channel status entries in this table can only occur via compare-and-swap",
before-image and after-image; here both are whole records and `altered` makes the after-image). Invariant: no after-image leaves the
table below. INACTIVE is the absence of an entry (MQ: an inactive channel has no row). Does not decide who may make a transition: that
is `qsg.rules.ownership`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from qsg.pb import records_pb2 as pb
from qsg.rules.records import read_record

State: TypeAlias = "pb.ChannelState.ValueType"

TRANSITIONS: dict[State, dict[State, str]] = {
    pb.INACTIVE: {
        pb.INITIALIZING: "start command",
        pb.STARTING: "taken by trigger or start request",
        pb.RUNNING: "inbound session bound",
        pb.STOPPING: "stop command",
    },
    pb.INITIALIZING: {
        pb.STARTING: "taken",
        pb.RETRYING: "start failed",
        pb.RECOVERING: "owner lost",
        pb.STOPPING: "stop command",
    },
    pb.STARTING: {
        pb.BINDING: "lock had, session opening",
        pb.RUNNING: "bound",
        pb.RETRYING: "bind failed",
        pb.RECOVERING: "owner lost, or lock not had",
        pb.INITIALIZING: "lock not had",
        pb.INACTIVE: "lock not had",
        pb.STOPPING: "stop command, or an error that needs a command",
    },
    pb.BINDING: {
        pb.RUNNING: "bound",
        pb.RETRYING: "bind failed",
        pb.RECOVERING: "owner lost",
        pb.STOPPING: "stop command, or an error that needs a command",
    },
    pb.RUNNING: {
        pb.PAUSED: "message retry",
        pb.RETRYING: "session failed",
        pb.RECOVERING: "owner lost, or hands over",
        pb.STARTING: "given to another member",
        pb.INACTIVE: "idle, or inbound session ended",
        pb.STOPPING: "stop command, or an error that needs a command",
    },
    pb.PAUSED: {
        pb.RUNNING: "message retry over",
        pb.INACTIVE: "inbound session ended",
    },
    pb.RETRYING: {
        pb.STARTING: "taken by retry",
        pb.RECOVERING: "owner lost",
        pb.INITIALIZING: "start command",
        pb.INACTIVE: "definition deleted",
        pb.STOPPING: "stop command, or retries exhausted",
    },
    pb.RECOVERING: {
        pb.STARTING: "taken by start request",
        pb.RETRYING: "start failed",
        pb.INITIALIZING: "start command",
        pb.INACTIVE: "definition deleted",
        pb.STOPPING: "stop command, or retries exhausted",
    },
    pb.STOPPING: {
        pb.STOPPED: "partner fenced and settled",
        pb.INACTIVE: "partner fenced and settled, stop to inactive",
    },
    pb.STOPPED: {
        pb.INITIALIZING: "start command",
        pb.INACTIVE: "stop to inactive, or definition deleted",
    },
}

HELD = frozenset({pb.STARTING, pb.BINDING, pb.RUNNING, pb.PAUSED})
"""An instance runs, or is about to."""
WANTED = frozenset({pb.INITIALIZING, pb.RETRYING, pb.RECOVERING})
"""No instance runs, and the owner repeats start requests until the entry changes."""
RECOVERABLE = HELD | WANTED
"""Taken over when the owner is lost. STOPPED stays; STOPPING is carried on."""


class IllegalTransition(Exception):
    """A bug: the state diagram has no such arrow."""


def check(before: State, after: State) -> None:
    if before != after and after not in TRANSITIONS.get(before, {}):
        raise IllegalTransition(f"{name(before)} -> {name(after)}")


def name(state: State) -> str:
    return pb.ChannelState.Name(state)


def state_of(entry: pb.ChannelStatus | None) -> State:
    return pb.INACTIVE if entry is None else entry.state


def parse(value: bytes | None) -> pb.ChannelStatus | None:
    """Raises `Damaged`."""
    return None if value is None else read_record(pb.ChannelStatus, value)


def image(entry: pb.ChannelStatus) -> bytes:
    """The record as it is stored: equal records have equal images."""
    return entry.SerializeToString(deterministic=True)


def altered(before: pb.ChannelStatus | None, state: State, now_ms: int, **fields: Any) -> pb.ChannelStatus:
    """The after-image: a copy of `before` in `state`, with `fields` set. `now_ms` is wall time."""
    check(state_of(before), state)
    after = pb.ChannelStatus()
    if before is not None:
        after.CopyFrom(before)
    after.state = state
    after.updated_at_ms = now_ms
    for field, value in fields.items():
        if isinstance(value, pb.Takeover):
            after.takeover.CopyFrom(value)
        else:
            setattr(after, field, value)
    return after


def diagram() -> str:
    """The table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> INACTIVE"]
    lines += [f"    {name(a)} --> {name(b)}: {event}" for a, arrows in TRANSITIONS.items() for b, event in arrows.items()]
    return "\n".join(lines) + "\n"
