"""What a line of `qsg channel status` tells of an entry in the table."""

from __future__ import annotations

from typing import Any

import pytest

from qsg.manager.status_line import describe
from qsg.pb import records_pb2 as pb


def entry(state: str, **fields: Any) -> pb.ChannelStatus:
    agreed = {"batch_messages": 50, "heartbeat_ms": 250, "message_bytes_max": 4_096}
    return pb.ChannelStatus(channel="C", type=pb.SENDER, owner="X", state=pb.ChannelState.Value(state), **(agreed | fields))


@pytest.mark.parametrize("state", pb.ChannelState.keys())
def test_what_was_agreed_on_is_told_while_a_session_is_bound(state: str) -> None:
    agreed = {"batch_messages": 50, "heartbeat_ms": 250, "max_message_bytes": 4_096}
    assert describe(entry(state)).get("negotiated") == (agreed if state in ("RUNNING", "PAUSED") else None)


def test_an_entry_of_an_older_member_tells_nothing_of_it() -> None:
    assert "negotiated" not in describe(entry("RUNNING", batch_messages=0, heartbeat_ms=0, message_bytes_max=0))


@pytest.mark.parametrize(
    ("current", "last", "in_doubt", "messages"),
    [(42, 40, True, 2), (42, 40, False, 0), (40, 40, True, 0), (3, 98, True, 5), (0, 40, True, 0)],
    ids=["under way", "settled", "nothing", "over the wrap", "not known"],
)
def test_messages_that_are_not_confirmed(current: int, last: int, in_doubt: bool, messages: int) -> None:
    line = describe(entry("RUNNING", current_sequence=current, last_sequence=last, in_doubt=in_doubt), 100)
    assert line["current_messages"] == messages


@pytest.mark.parametrize(("force", "mode"), [(True, "force"), (False, "quiesce")])
def test_how_it_was_told_to_stop(force: bool, mode: str) -> None:
    line = describe(entry("STOPPING", stop_to=pb.INACTIVE, stop_force=force, partner_not_fenced=True))
    assert (line["stop_mode"], line["stopping_to"], line["note"]) == (mode, "INACTIVE", "partner not fenced")
    assert "stop_mode" not in describe(entry("STOPPED", stop_force=force))


def test_which_process_owns_it() -> None:
    line = describe(entry("RUNNING", owner_incarnation=7, owner_initiator=9))
    assert (line["owner"], line["owner_incarnation"], line["owner_initiator"]) == ("X", 7, 9)
