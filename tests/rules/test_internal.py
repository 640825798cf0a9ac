"""Names and definitions of internal channels."""

from __future__ import annotations

import re

import pytest
from pydantic import ValidationError

from qsg.rules import internal
from qsg.rules.definitions import NAME, Queue


@pytest.mark.parametrize("home", ["admin", "app1", "private", "a-structure with a long and odd name"])
@pytest.mark.parametrize("target", ["app2", internal.private_of("X"), internal.private_of("x" * 48), "b-structure"])
def test_every_pair_has_a_queue_and_a_channel(home: str, target: str) -> None:
    queue = internal.definition(home, target)
    assert re.fullmatch(NAME, queue.name) and queue.name == internal.internal_queue(home, target)
    assert Queue.model_validate_json(queue.model_dump_json(exclude_defaults=True)) == queue
    sender, receiver = internal.sending(queue), internal.receiving(queue)
    assert (sender.type, receiver.type) == ("sender", "receiver") and sender.name == receiver.name == sender.transmission_queue
    only = internal.only_at(queue)
    assert only == (target.removeprefix("private.") if target.startswith("private.") else "")
    assert (sender.disposition, receiver.structure) == (("fixed-shared", "") if only else ("shared", target))


def test_names_differ_by_home_and_target() -> None:
    pairs = [("a", "b.c"), ("a.b", "c"), ("x" * 30, "y" * 30), ("y" * 30, "x" * 30), ("admin", "private.X")]
    assert len({internal.internal_queue(*pair) for pair in pairs}) == len(pairs)


def test_only_internal_transmission_queues_have_a_target() -> None:
    for attributes in ({"name": "MINE", "usage": "transmission"}, {"name": "SYSTEM.INTERNAL.A.B"}):
        with pytest.raises(ValidationError, match="internal_target"):
            Queue.model_validate({"internal_target": "app1", **attributes})
