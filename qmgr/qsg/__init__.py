"""qsg: queue-sharing groups for Kubernetes. Applications use `connect`, or `sync.connect` without asyncio (see `qsg.client`).

Names are loaded when they are first used, so that the inner rings can be imported without the client library.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsg.client import (
        BackedOut,
        ConnectionBroken,
        DeadLetter,
        DefinitionError,
        GetInhibited,
        HostNotAvailable,
        Message,
        MessageTooBig,
        NoMessageAvailable,
        NotAuthorized,
        ObjectInUse,
        OptionsError,
        OutcomeUnknown,
        ProducerFenced,
        ProtocolError,
        PutInhibited,
        QsgError,
        QueueFull,
        QueueManager,
        QueueManagerNameError,
        QueueManagerQuiescing,
        Reason,
        ReconnectFailed,
        ReplyTo,
        StorageNotAvailable,
        StructureNotAvailable,
        SyncpointLimitReached,
        UnitOfWork,
        UnknownObjectName,
        connect,
    )
    from qsg.client import sync as sync

__all__ = [
    "BackedOut",
    "ConnectionBroken",
    "DeadLetter",
    "DefinitionError",
    "GetInhibited",
    "HostNotAvailable",
    "Message",
    "MessageTooBig",
    "NoMessageAvailable",
    "NotAuthorized",
    "ObjectInUse",
    "OptionsError",
    "OutcomeUnknown",
    "ProducerFenced",
    "ProtocolError",
    "PutInhibited",
    "QsgError",
    "QueueFull",
    "QueueManager",
    "QueueManagerNameError",
    "QueueManagerQuiescing",
    "Reason",
    "ReconnectFailed",
    "ReplyTo",
    "StorageNotAvailable",
    "StructureNotAvailable",
    "SyncpointLimitReached",
    "UnitOfWork",
    "UnknownObjectName",
    "connect",
    "sync",
]


def __getattr__(name: str) -> Any:
    if name == "sync":
        return importlib.import_module("qsg.client.sync")
    if name in __all__:
        return getattr(importlib.import_module("qsg.client"), name)
    raise AttributeError(f"module 'qsg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
