"""Definitions of queues, channels and groups, as users write them (YAML or JSON), checked on the way in."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

NAME = r"^[A-Za-z0-9._/%]{1,48}$"
Name = Annotated[str, StringConstraints(pattern=NAME)]
OptionalName = Annotated[str, StringConstraints(pattern=r"^([A-Za-z0-9._/%]{1,48})?$")]

MESSAGE_BYTES_MAX = 104_857_600
SEQUENCE_WRAP = 999_999_999
"""MQ's SEQWRAP: the highest number there is, and the default."""
UINT32_MAX = 4_294_967_295
"""What records and frames hold of a channel's times: beyond, it could be defined, but never bind, nor be stopped."""
PRIVATE = "private"


def is_address(text: str) -> bool:
    """Whether it is host:port; a literal IPv6 address is in brackets."""
    found = re.fullmatch(r"(?:\[[0-9a-fA-F:.]+\]|[^:\s]+):(\d{1,5})", text)
    return found is not None and int(found[1]) <= 65_535


class Definition(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Managed(Definition):
    """What may be there for the sake of something outside, which says so here, as the Kubernetes operator does."""

    managed_by: str = Field(default="", max_length=512)
    """Kind/namespace/name/uid of the resource that this definition comes from; "" = made by hand."""
    deletion_policy: Literal["delete", "retain"] = "delete"
    """What becomes of it when that resource is no more; a queue with messages stays anyway."""


class Queue(Managed):
    """A queue. `local`: holds messages. `remote`: names a queue elsewhere (blank `remote_queue`: queue-manager alias). `alias`."""

    name: Name
    type: Literal["local", "remote", "alias"] = "local"
    description: str = ""
    # local
    structure: str = PRIVATE
    """Where its messages lie: "private" (this queue manager's own store) or a structure of the group."""
    usage: Literal["normal", "transmission"] = "normal"
    max_depth: int = Field(default=999_999_999, ge=0, le=999_999_999)
    max_message_bytes: int = Field(default=MESSAGE_BYTES_MAX, ge=0, le=MESSAGE_BYTES_MAX)
    default_priority: int = Field(default=0, ge=0, le=9)
    """Of messages put on it whose putter names none; a transmission queue's for what is put on it for elsewhere."""
    put_enabled: bool = True
    get_enabled: bool = True
    backout_threshold: int = Field(default=0, ge=0)
    backout_queue: OptionalName = ""
    internal_target: str = Field(default="", max_length=128)
    """Of an internal transmission queue, which queue managers make themselves (`qsg.rules.internal`): where its messages go on to."""
    # remote
    remote_queue: OptionalName = ""
    remote_queue_manager: OptionalName = ""
    transmission_queue: OptionalName = ""
    # alias
    target: OptionalName = ""

    @model_validator(mode="after")
    def _check(self) -> Queue:
        if self.type == "alias" and not self.target:
            raise ValueError("an alias needs target")
        if self.type == "remote" and not (self.remote_queue_manager or self.transmission_queue):
            raise ValueError("a remote queue needs remote_queue_manager or transmission_queue")
        if self.type != "local" and self.usage == "transmission":
            raise ValueError("only a local queue can have usage: transmission")
        if self.internal_target and not (self.usage == "transmission" and self.name.startswith("SYSTEM.INTERNAL.")):
            raise ValueError("internal_target is of internal transmission queues only, which are defined by queue managers")
        if self.backout_queue and not self.backout_threshold:
            raise ValueError("backout_queue needs backout_threshold above 0")
        return self


class Retry(Definition):
    """MQ's SHORTRTY/SHORTTMR/LONGRTY/LONGTMR. The first retry comes after `first_ms`; each short one behind it waits twice as long as
    the one before, up to `short_ms`; then come long ones. With jitter."""

    first_ms: int = Field(default=100, ge=10)
    short_count: int = Field(default=60, ge=0)
    short_ms: int = Field(default=1_000, ge=10)
    long_count: int = Field(default=999_999_999, ge=0)
    long_ms: int = Field(default=30_000, ge=10)


class Channel(Managed):
    """A channel. A sender is shared if its transmission queue is; a receiver if it came in through the group listener."""

    name: Name
    type: Literal["sender", "receiver"]
    description: str = ""
    # sender
    transmission_queue: OptionalName = ""
    connection_names: tuple[str, ...] = ()
    """host:port, tried in order = one attempt."""
    partner: OptionalName = ""
    """Queue manager (or group) expected at the other end; "" = not checked."""
    disposition: Literal["shared", "fixed-shared", "private"] = "shared"
    # both
    batch_messages: int = Field(default=512, ge=1, le=9_999)
    batch_bytes: int = Field(default=1_048_576, ge=1, le=67_108_864)
    batch_interval_ms: int = Field(default=0, ge=0)
    batch_window: int = Field(default=4, ge=1, le=64)
    heartbeat_ms: int = Field(default=500, ge=50, le=UINT32_MAX)
    silence_ms: int = Field(default=1_500, ge=100, le=UINT32_MAX)
    connect_timeout_ms: int = Field(default=1_000, ge=50, le=UINT32_MAX)
    disconnect_interval_s: float = Field(default=6_000, ge=0)
    """An idle sender ends after this; 0 = never."""
    max_message_bytes: int = Field(default=MESSAGE_BYTES_MAX, ge=0, le=MESSAGE_BYTES_MAX)
    sequence_wrap: int = Field(default=SEQUENCE_WRAP, ge=100, le=SEQUENCE_WRAP)
    retry: Retry = Retry()
    # receiver
    message_retry_count: int = Field(default=10, ge=0)
    message_retry_ms: int = Field(default=1_000, ge=1)
    use_dead_letter_queue: bool = True
    structure: str = ""
    """Home structure of a shared receiver, for ever; "" = the admin structure."""
    allowed_identities: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Channel:
        if self.type == "sender":
            if not self.transmission_queue:
                raise ValueError("a sender needs transmission_queue")
            if not self.connection_names:
                raise ValueError("a sender needs at least one connection name")
        for address in self.connection_names:
            if not is_address(address):
                raise ValueError(f"connection name {address!r} is not host:port")
        return self


class Settings(Definition):
    """Of a queue manager outside a group, or of a group as a whole."""

    dead_letter_queue: OptionalName = "SYSTEM.DEAD.LETTER.QUEUE"
    default_transmission_queue: OptionalName = ""
    hop_limit: int = Field(default=16, ge=1, le=255)
    channels_max: int = Field(default=200, ge=1)
    """Active channels of one member: it starts no more. Inbound sessions count, and are taken also beyond it."""


class Definitions(Definition):
    """A file of definitions."""

    settings: Settings = Settings()
    queues: tuple[Queue, ...] = ()
    channels: tuple[Channel, ...] = ()
