"""The status table's state diagram and its entries."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsg.pb import records_pb2 as pb
from qsg.rules import status


def test_every_state_that_is_reached_can_be_left() -> None:
    reached = {after for arrows in status.TRANSITIONS.values() for after in arrows}
    assert reached == set(status.TRANSITIONS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (pb.STOPPED, pb.STARTING),
        (pb.STOPPED, pb.RUNNING),
        (pb.STOPPING, pb.RUNNING),
        (pb.STOPPING, pb.RECOVERING),
        (pb.INACTIVE, pb.STOPPED),
    ],
)
def test_no_way_around_a_stop(before: status.State, after: status.State) -> None:
    with pytest.raises(status.IllegalTransition):
        status.check(before, after)


def test_only_a_command_leaves_stopped() -> None:
    assert set(status.TRANSITIONS[pb.STOPPED]) == {pb.INITIALIZING, pb.INACTIVE}
    assert "command" in status.TRANSITIONS[pb.STOPPED][pb.INITIALIZING]


def test_what_holds_a_channel_can_be_recovered() -> None:
    for state in (status.HELD - {pb.PAUSED}) | {pb.RETRYING, pb.INITIALIZING}:
        assert pb.RECOVERING in status.TRANSITIONS[state]
    assert pb.STOPPED not in status.RECOVERABLE and pb.STOPPING not in status.RECOVERABLE


def test_altered_leaves_the_before_image_alone() -> None:
    before = status.altered(None, pb.STARTING, 5, channel="C", owner="X")
    after = status.altered(before, pb.RUNNING, 9, address="r:1", takeover=pb.Takeover(to="Y"))

    assert (before.state, before.updated_at_ms, before.address, before.HasField("takeover")) == (pb.STARTING, 5, "", False)
    assert (after.state, after.updated_at_ms, after.owner, after.address, after.takeover.to) == (pb.RUNNING, 9, "X", "r:1", "Y")
    with pytest.raises(status.IllegalTransition):
        status.altered(after, pb.INITIALIZING, 10)


def test_images_of_equal_entries_are_equal() -> None:
    entry = status.altered(None, pb.STARTING, 5, channel="C", request=b"1")
    copy = status.parse(status.image(entry))

    assert copy is not None and status.image(copy) == status.image(entry)
    assert status.state_of(status.parse(None)) == pb.INACTIVE


def test_the_diagram_shows_every_arrow() -> None:
    lines = status.diagram().splitlines()
    assert len(lines) == 2 + sum(len(arrows) for arrows in status.TRANSITIONS.values())
    assert "    STOPPING --> STOPPED: partner fenced and settled" in lines


def test_the_documentation_shows_this_diagram() -> None:
    text = (Path(__file__).parents[2] / "docs" / "channel-states.md").read_text()
    assert status.diagram() in text
