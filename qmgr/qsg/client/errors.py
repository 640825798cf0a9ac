"""Errors of the client library: MQ's names and numbers, one class per common reason.

Every error says whether something was changed: `OutcomeUnknown` (2549) is the only one after which a put or a commit may have been done.
"""

from __future__ import annotations

from qsg.rules.reasons import Reason


class QsgError(Exception):
    """A call was refused or failed. `reason` is MQ's reason code, `detail` says more."""

    default: Reason = Reason.UNEXPECTED_ERROR

    def __init__(self, detail: str = "", reason: Reason | None = None) -> None:
        self.reason = self.default if reason is None else reason
        self.detail = detail
        self.done: list[bytes] = []
        """Of `put_many`: ids of the messages that were put before the error."""
        super().__init__(f"{self.reason.name} ({int(self.reason)})" + (f": {detail}" if detail else ""))


class NoMessageAvailable(QsgError):
    """2033: no message (with these ids) within the wait."""

    default = Reason.NO_MSG_AVAILABLE


class BackedOut(QsgError):
    """2003: the unit of work was backed out; nothing of it was done."""

    default = Reason.BACKED_OUT


class OutcomeUnknown(QsgError):
    """2549 (CALL_INTERRUPTED): the connection was lost at a moment that leaves open whether the call was done."""

    default = Reason.CALL_INTERRUPTED


class ConnectionBroken(QsgError):
    """2009: the connection was closed or lost."""

    default = Reason.CONNECTION_BROKEN


class HostNotAvailable(QsgError):
    """2538: no member answered at any address."""

    default = Reason.HOST_NOT_AVAILABLE


class ReconnectFailed(QsgError):
    """2548: the connection was lost and no member answered within `reconnect_s`. The call was not done."""

    default = Reason.RECONNECT_FAILED


class QueueManagerNameError(QsgError):
    """2058: whoever answered is not the queue manager that was asked for."""

    default = Reason.Q_MGR_NAME_ERROR


class QueueManagerQuiescing(QsgError):
    """2161: the queue manager ends and takes no new work."""

    default = Reason.Q_MGR_QUIESCING


class NotAuthorized(QsgError):
    """2035."""

    default = Reason.NOT_AUTHORIZED


class UnknownObjectName(QsgError):
    """2085: there is no such queue."""

    default = Reason.UNKNOWN_OBJECT_NAME


class ObjectInUse(QsgError):
    """2042."""

    default = Reason.OBJECT_IN_USE


class PutInhibited(QsgError):
    """2051."""

    default = Reason.PUT_INHIBITED


class GetInhibited(QsgError):
    """2016."""

    default = Reason.GET_INHIBITED


class QueueFull(QsgError):
    """2053."""

    default = Reason.Q_FULL


class MessageTooBig(QsgError):
    """2030: longer than the queue's or the queue manager's limit."""

    default = Reason.MSG_TOO_BIG_FOR_Q


class SyncpointLimitReached(QsgError):
    """2024: the unit of work would not fit into one commit. The call was not done, the unit goes on without it."""

    default = Reason.SYNCPOINT_LIMIT_REACHED


class StorageNotAvailable(QsgError):
    """2071: the store is full; getting goes on."""

    default = Reason.STORAGE_NOT_AVAILABLE


class StructureNotAvailable(QsgError):
    """9012: the member does not reach the store of this queue."""

    default = Reason.STRUCTURE_NOT_AVAILABLE


class ProducerFenced(QsgError):
    """9014: another connection has opened a producer of this name."""

    default = Reason.PRODUCER_FENCED


class ProtocolError(QsgError):
    """9004: the other side said something that the protocol does not have."""

    default = Reason.PROTOCOL_ERROR


class DefinitionError(QsgError):
    """9018: a definition was refused."""

    default = Reason.DEFINITION_ERROR


class OptionsError(QsgError):
    """2046: an argument is out of range or does not fit the others."""

    default = Reason.OPTIONS_ERROR


_CLASSES: dict[int, type[QsgError]] = {int(c.default): c for c in QsgError.__subclasses__()}
_CLASSES[int(Reason.MSG_TOO_BIG_FOR_Q_MGR)] = MessageTooBig
_CLASSES[int(Reason.Q_MGR_STOPPING)] = QueueManagerQuiescing


def error_for(reason: int, detail: str = "") -> QsgError:
    """The error of a reason code; of one that this version does not know, a plain QsgError that says so."""
    try:
        known = Reason(reason)
    except ValueError:
        return QsgError(f"reason {reason}: {detail}")
    return _CLASSES.get(reason, QsgError)(detail, known)
