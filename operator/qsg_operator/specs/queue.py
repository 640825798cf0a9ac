"""SharedQueue."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from qsg_operator.specs.channel import MESSAGE_BYTES_MAX
from qsg_operator.specs.common import MqName, ObjectName, Spec


class SharedQueue(Spec):
    group: ObjectName = ""
    queue_manager: ObjectName = ""
    queue_name: MqName = ""
    """"" = the resource's name in upper case, with dots."""
    type: Literal["Local", "Transmission", "Remote", "Alias"] = "Local"
    description: str = Field(default="", max_length=256)
    structure: str = ""
    """"" = the group's admin structure; a queue manager outside a group has its own store only."""
    max_depth: int = Field(default=999_999_999, ge=0, le=999_999_999)
    max_message_bytes: int = Field(default=MESSAGE_BYTES_MAX, ge=0, le=MESSAGE_BYTES_MAX)
    default_priority: int = Field(default=0, ge=0, le=9)
    put_enabled: bool = True
    get_enabled: bool = True
    backout_threshold: int = Field(default=0, ge=0, le=999_999_999)
    backout_queue: MqName = ""
    remote_queue: MqName = ""
    remote_queue_manager: MqName = ""
    transmission_queue: MqName = ""
    target: MqName = ""
    deletion_policy: Literal["Delete", "Retain"] = "Delete"
