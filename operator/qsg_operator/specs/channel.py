"""SharedChannel. A field that is None is taken from the group's channel defaults, and then from `qsg.rules.definitions.Channel`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qsg_operator.specs.common import MqName, Names, ObjectName, Spec

MESSAGE_BYTES_MAX = 104_857_600


class Batch(Spec):
    messages: int | None = Field(default=None, ge=1, le=9_999)
    bytes: int | None = Field(default=None, ge=1, le=67_108_864)
    interval_ms: int | None = Field(default=None, ge=0, le=3_600_000)
    window: int | None = Field(default=None, ge=1, le=64)


class Retry(Spec):
    first_ms: int | None = Field(default=None, ge=10, le=86_400_000)
    short_count: int | None = Field(default=None, ge=0, le=999_999_999)
    short_ms: int | None = Field(default=None, ge=10, le=86_400_000)
    long_count: int | None = Field(default=None, ge=0, le=999_999_999)
    long_ms: int | None = Field(default=None, ge=10, le=86_400_000)


class Tuning(Spec):
    """What a group can give as defaults to all of its channels."""

    batch: Batch = Batch()
    retry: Retry = Retry()
    heartbeat_ms: int | None = Field(default=None, ge=50, le=3_600_000)
    silence_ms: int | None = Field(default=None, ge=100, le=3_600_000)
    connect_timeout_ms: int | None = Field(default=None, ge=50, le=3_600_000)
    disconnect_interval_seconds: int | None = Field(default=None, ge=0, le=999_999)
    max_message_bytes: int | None = Field(default=None, ge=0, le=MESSAGE_BYTES_MAX)
    message_retry_count: int | None = Field(default=None, ge=0, le=999_999_999)
    message_retry_ms: int | None = Field(default=None, ge=1, le=999_999_999)
    use_dead_letter_queue: bool | None = None


class SharedChannel(Tuning):
    group: ObjectName = ""
    queue_manager: ObjectName = ""
    channel_name: MqName = ""
    """"" = the resource's name in upper case, with dots."""
    type: Literal["Sender", "Receiver"]
    description: str = Field(default="", max_length=256)
    transmission_queue: MqName = ""
    connection_names: Names = Field(default=(), max_length=16)
    partner: MqName = ""
    disposition: Literal["Shared", "FixedShared"] = "Shared"
    sequence_wrap: int | None = Field(default=None, ge=100, le=999_999_999)
    structure: str = ""
    allowed_identities: Names = Field(default=(), max_length=64)
    desired_state: Literal["Running", "Stopped"] = "Running"
    deletion_policy: Literal["Delete", "Retain"] = "Delete"
