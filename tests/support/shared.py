"""SharedChannels and SharedQueues for tests, defaulted by the chart's schemas."""

from __future__ import annotations

from typing import Any

from qsg_operator import names
from qsg_operator.specs.channel import SharedChannel
from qsg_operator.specs.queue import SharedQueue
from support.crds import defaulted, schema

SENDER: dict[str, Any] = {"type": "Sender", "group": "orders", "transmissionQueue": "BANK", "connectionNames": ["bank:1414"]}


def shared_channel(**spec: Any) -> SharedChannel:
    return SharedChannel.model_validate(defaulted(spec, schema(names.SHARED_CHANNEL, "spec")))


def shared_queue(**spec: Any) -> SharedQueue:
    return SharedQueue.model_validate(defaulted(spec, schema(names.SHARED_QUEUE, "spec")))
