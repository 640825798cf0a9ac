"""Reports of inbound sessions to the status table: what a receiver tells, as an entry that is kept up to date."""

from __future__ import annotations

from qsg.manager.catalog import ADMIN
from qsg.manager.inbound import Inbound, InboundTable
from qsg.manager.receiving import ReceiverCounters
from qsg.pb import records_pb2 as pb
from qsg.rules.definitions import PRIVATE
from qsg.rules.reasons import Reason


class InboundReports:
    """Implements `qsg.manager.receiving.InboundObserver`."""

    def __init__(self, table: InboundTable) -> None:
        self._table = table
        self._sessions: dict[bytes, list[Inbound]] = {}
        """By stream; a session that replaces another is reported before the old one's end."""

    def inbound_started(self, channel: str, partner: str, stream: bytes, address: str, portal: str) -> None:
        home = ADMIN if portal == "group" else PRIVATE
        self._sessions.setdefault(stream, []).append(self._table.started(home, channel, partner, address, stream, 0, 0))

    def inbound_progress(self, channel: str, partner: str, stream: bytes, counters: ReceiverCounters) -> None:
        if not self._sessions.get(stream):
            return
        session = self._sessions[stream][-1]
        session.state = pb.PAUSED if counters.paused else pb.RUNNING
        session.epoch, session.instance = counters.epoch, counters.instance
        session.messages, session.bytes, session.batches = counters.messages, counters.bytes, counters.batches
        session.sequence, session.luwid = counters.sequence, counters.luwid
        session.last_message_at_ms = counters.last_message_at_ms

    def inbound_ended(self, channel: str, partner: str, stream: bytes, reason: Reason, detail: str) -> None:
        sessions = self._sessions.get(stream)
        if sessions:
            self._table.ended(sessions.pop(0))
            if not sessions:
                del self._sessions[stream]
