"""Reason codes: MQ's names and numbers where MQ has one, our own from 9000 on. `Refusal` carries one to a caller."""

from __future__ import annotations

import enum


class Reason(enum.IntEnum):
    NONE = 0
    ALIAS_BASE_Q_TYPE_ERROR = 2001
    BACKED_OUT = 2003
    CONNECTION_BROKEN = 2009
    GET_INHIBITED = 2016
    MD_ERROR = 2026
    MSG_TOO_BIG_FOR_Q = 2030
    MSG_TOO_BIG_FOR_Q_MGR = 2031
    NO_MSG_AVAILABLE = 2033
    NOT_AUTHORIZED = 2035
    OBJECT_CHANGED = 2041
    OBJECT_IN_USE = 2042
    OPTIONS_ERROR = 2046
    PRIORITY_ERROR = 2050
    PUT_INHIBITED = 2051
    Q_DELETED = 2052
    Q_FULL = 2053
    Q_NOT_EMPTY = 2055
    Q_MGR_NAME_ERROR = 2058
    Q_MGR_NOT_AVAILABLE = 2059
    SYNCPOINT_LIMIT_REACHED = 2024
    HANDLE_NOT_AVAILABLE = 2017
    UNKNOWN_ALIAS_BASE_Q = 2082
    UNKNOWN_OBJECT_NAME = 2085
    UNKNOWN_OBJECT_Q_MGR = 2086
    UNKNOWN_REMOTE_Q_MGR = 2087
    STORAGE_NOT_AVAILABLE = 2071
    UNEXPECTED_ERROR = 2195
    UNKNOWN_XMIT_Q = 2196
    UNKNOWN_DEF_XMIT_Q = 2197
    DEF_XMIT_Q_USAGE_ERROR = 2199
    XMIT_Q_USAGE_ERROR = 2092
    Q_MGR_QUIESCING = 2161
    Q_MGR_STOPPING = 2162
    WAIT_INTERVAL_ERROR = 2090
    CF_NOT_AVAILABLE = 2345
    CALL_INTERRUPTED = 2549  # the outcome is unknown
    RECONNECT_FAILED = 2548
    CHANNEL_NOT_AVAILABLE = 2537  # as many channels as there may be are active
    HOST_NOT_AVAILABLE = 2538
    CHANNEL_CONFIG_ERROR = 2539
    UNKNOWN_CHANNEL_NAME = 2540
    # of channels and commands (MQ's PCF numbers)
    CHANNEL_IN_USE = 4031
    CHANNEL_NOT_FOUND = 4032
    HOST_UNREACHABLE = 4010  # MQRCCF_HOST_NOT_AVAILABLE
    CHANNEL_ALREADY_RUNNING = 4038  # already running on X
    CHANNEL_NOT_ACTIVE = 4064
    CHANNEL_DISABLED = 4038 + 1000
    COMMAND_FAILED = 3008
    CHANNEL_TYPE_ERROR = 4034
    OBJECT_ALREADY_EXISTS = 4001
    # ours
    SEQUENCE_ERROR = 9001  # the partner knows less than was confirmed (CSQX526E)
    EPOCH_TOO_LOW = 9002  # an older instance of the channel; `epoch_seen` says which is current
    NO_RECORD = 9003  # bound before, but the partner has no record of the stream
    PROTOCOL_ERROR = 9004
    PARTNER_SILENT = 9005
    PARTNER_CLOSED = 9006
    WRONG_PARTNER = 9007
    SEQUENCE_WRAP_MISMATCH = 9008
    FENCED = 9009  # this process was declared dead and replaced
    IN_DOUBT = 9010
    NOT_IN_DOUBT = 9011
    STRUCTURE_NOT_AVAILABLE = 9012
    STRUCTURE_RESTORED = 9013  # restored from a snapshot: needs an operator's confirmation
    PRODUCER_FENCED = 9014  # another connection opened the same producer
    PRODUCER_GAP = 9015  # a number before this one was refused or is missing
    HOP_LIMIT = 9017
    DEFINITION_ERROR = 9018
    STOPPED_BY_COMMAND = 9019
    NO_INITIATOR = 9020
    DRAINING = 9021
    BATCH_OUT_OF_ORDER = 9022
    CHANGED_MEANWHILE = 9023  # a compare failed: read again and decide anew
    LARGE_MESSAGE_INCOMPLETE = 9024
    RECORD_DAMAGED = 9025  # a value in a store cannot be read


def reason_of(number: int) -> Reason:
    """The reason that a number from elsewhere means; one that is not known here is an unexpected error."""
    try:
        return Reason(number)
    except ValueError:
        return Reason.UNEXPECTED_ERROR


class Refusal(Exception):
    """A call refused for a reason that the caller is told. Nothing was changed."""

    def __init__(self, reason: Reason, detail: str = "") -> None:
        super().__init__(f"{reason.name} ({int(reason)})" + (f": {detail}" if detail else ""))
        self.reason = reason
        self.detail = detail
