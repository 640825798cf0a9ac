"""Resources become definitions, and only what a resource made is ever deleted for its sake."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from qsg.rules import definitions as rules
from qsg_operator import names
from qsg_operator.definitions import BadDefinition, Mark, Plan, Wanted, channel, dead_letter_queue, plan, queue, released
from qsg_operator.specs.channel import Batch, Retry, Tuning
from qsg_operator.specs.common import Settings
from support.shared import SENDER, shared_channel, shared_queue

MARK = Mark(names.SHARED_CHANNEL, "shop", "orders-to-bank", "u1")
QUEUE_MARK = Mark(names.SHARED_QUEUE, "shop", "in-box", "u2")


def rows(*definitions: rules.Definition) -> list[dict[str, Any]]:
    return [one.model_dump(mode="json") | {"depth": 0} for one in definitions]


def test_a_channel_takes_its_name_from_the_resource_and_its_defaults_from_the_rules() -> None:
    made = channel(shared_channel(**SENDER), MARK, Tuning())
    assert made == rules.Channel(
        name="ORDERS.TO.BANK", type="sender", transmission_queue="BANK", connection_names=("bank:1414",), managed_by=str(MARK)
    )


NUMBERS = {
    "batch": ("messages", "bytes", "interval_ms", "window"),
    "retry": ("first_ms", "short_count", "short_ms", "long_count", "long_ms"),
    "": ("heartbeat_ms", "silence_ms", "connect_timeout_ms", "max_message_bytes", "message_retry_count", "message_retry_ms"),
}


def limits(model: type[BaseModel], name: str) -> dict[str, Any]:
    of = model.model_json_schema(by_alias=False)["properties"][name]
    return {end: one[end] for one in of.get("anyOf", [of]) for end in ("minimum", "maximum") if end in one}


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in NUMBERS.items() for name in names])
def test_who_defines_a_channel_by_hand_may_give_what_a_resource_may(group: str, name: str) -> None:
    resources: dict[str, type[BaseModel]] = {"batch": Batch, "retry": Retry, "": Tuning}
    theirs = limits(resources[group], name)
    found = limits(rules.Retry if group == "retry" else rules.Channel, f"batch_{name}" if group == "batch" else name)
    assert found["minimum"] <= theirs["minimum"] and theirs["maximum"] <= found.get("maximum", theirs["maximum"])


@pytest.mark.parametrize("name", ["heartbeat_ms", "silence_ms", "connect_timeout_ms"])
def test_a_time_that_no_record_can_hold_is_refused(name: str) -> None:
    """Such a channel could be defined by hand, but never bind, nor be stopped."""
    given = {"name": "C", "type": "sender", "transmission_queue": "X", "connection_names": ["a:1"]}
    assert getattr(rules.Channel.model_validate({**given, name: 2**32 - 1}), name) == 2**32 - 1
    with pytest.raises(ValidationError):
        rules.Channel.model_validate({**given, name: 2**32})


def test_a_field_comes_from_the_channel_then_from_the_group_then_from_the_rules() -> None:
    defaults = Tuning.model_validate(
        {"heartbeatMs": 700, "silenceMs": 2_000, "batch": {"window": 8, "messages": 10}, "retry": {"longMs": 99}}
    )
    made = channel(shared_channel(**SENDER, heartbeatMs=600, batch={"messages": 20}), MARK, defaults)
    assert (made.heartbeat_ms, made.silence_ms, made.batch_messages, made.batch_window) == (600, 2_000, 20, 8)
    assert (made.retry.long_ms, made.retry.short_ms) == (99, rules.Retry().short_ms)
    assert made.batch_bytes == rules.Channel.model_fields["batch_bytes"].default


def test_every_field_of_a_channel_definition_can_be_said_by_the_resource() -> None:
    spec = shared_channel(
        group="orders",
        channelName="X.Y",
        type="Receiver",
        description="d",
        disposition="FixedShared",
        partner="P",
        batch={"messages": 2, "bytes": 3, "intervalMs": 4, "window": 5},
        retry={"firstMs": 11, "shortCount": 12, "shortMs": 13, "longCount": 14, "longMs": 15},
        heartbeatMs=100,
        silenceMs=200,
        connectTimeoutMs=300,
        disconnectIntervalSeconds=400,
        maxMessageBytes=500,
        sequenceWrap=600,
        messageRetryCount=7,
        messageRetryMs=8,
        useDeadLetterQueue=False,
        structure="fast",
        allowedIdentities=["BANK"],
        deletionPolicy="Retain",
    )
    made = channel(spec, MARK, Tuning())
    same = [name for name in rules.Channel.model_fields if getattr(made, name) == rules.Channel.model_fields[name].default]
    assert sorted(same) == ["connection_names", "transmission_queue"]  # a receiver has none


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"group": "g"}, {"type": "local", "structure": "admin"}),
        ({"queueManager": "m"}, {"type": "local", "structure": "private"}),
        ({"group": "g", "structure": "fast"}, {"type": "local", "structure": "fast"}),
        ({"group": "g", "type": "Transmission"}, {"type": "local", "usage": "transmission", "structure": "admin"}),
        ({"group": "g", "type": "Alias", "target": "T"}, {"type": "alias", "target": "T", "structure": "private"}),
        (
            {"group": "g", "type": "Remote", "remoteQueue": "R", "remoteQueueManager": "M", "transmissionQueue": "X"},
            {"type": "remote", "remote_queue": "R", "remote_queue_manager": "M", "transmission_queue": "X"},
        ),
    ],
)
def test_a_queue_of_each_type(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    made = queue(shared_queue(**spec), QUEUE_MARK)
    assert made.name == "IN.BOX" and made.managed_by == str(QUEUE_MARK)
    assert {name: getattr(made, name) for name in expected} == expected


def test_what_a_queue_manager_would_refuse_is_said_with_the_field() -> None:
    with pytest.raises(BadDefinition, match="connection name 'bank:99999' is not host:port"):
        channel(shared_channel(**SENDER | {"connectionNames": ["bank:99999"]}), MARK, Tuning())


def wanted(name: str, uid: str = "u", created: str = "2026-01-01T00:00:00Z", **spec: Any) -> Wanted:
    mark = Mark(names.SHARED_QUEUE, "shop", name, uid)
    return Wanted(mark, (created, uid), queue(shared_queue(**({"group": "g"} | spec)), mark))


def test_nothing_is_done_where_everything_is_there() -> None:
    one = wanted("a")
    assert not plan([one], rows(one.definition), [])


def test_what_was_altered_or_removed_by_hand_is_defined_again() -> None:
    one, two = wanted("a"), wanted("b", "v")
    altered = one.definition.model_copy(update={"description": "by hand"})
    assert plan([one, two], rows(altered), []).define == [one.definition, two.definition]


def test_queues_come_before_the_channels_and_queues_that_use_them() -> None:
    remote = wanted("a", "r", type="Remote", remoteQueueManager="BANK", transmissionQueue="Z.X")
    transmission = wanted("z-x", "x", type="Transmission")
    sender = Wanted(MARK, ("", ""), channel(shared_channel(**SENDER), MARK, Tuning()))
    assert plan([sender, remote, transmission], [], []).define == [transmission.definition, remote.definition, sender.definition]


def test_a_resource_that_is_gone_takes_its_definition_with_it_or_leaves_it() -> None:
    gone, kept = wanted("gone").definition, wanted("kept", "k", deletionPolicy="Retain").definition
    by_hand = rules.Queue(name="BY.HAND", structure="admin")
    found = plan([], rows(gone, kept, by_hand), [])
    assert found == Plan(release=[kept], delete=[gone])
    assert released(kept) == kept.model_copy(update={"managed_by": "", "deletion_policy": "delete"})


def test_a_definition_that_is_not_understood_is_left_alone_or_defined_anew() -> None:
    """Members may be newer than the operator."""
    one = wanted("a")
    newer = [row | {"type": "stream"} for row in rows(one.definition, wanted("b", "v").definition)]
    assert plan([one], newer, []) == Plan(define=[one.definition])


def test_the_oldest_resource_has_the_name() -> None:
    old = wanted("old", "2", "2026-01-01T00:00:00Z", queueName="Q")
    new = wanted("new", "1", "2026-01-02T00:00:00Z", queueName="Q")
    found = plan([new, old], [], [])
    assert found.define == [old.definition]
    assert found.taken == {new.mark: old.mark}


def test_a_dead_letter_queue_comes_with_the_group_and_gives_way_to_a_resource() -> None:
    mark = Mark(names.QUEUE_SHARING_GROUP, "shop", "orders", "g")
    own = dead_letter_queue(Settings(), mark, in_group=True)
    assert own is not None and own.deletion_policy == "retain" and own.structure == "admin"
    theirs = wanted("dlq", queueName=own.name, maxDepth=5)
    found = plan([Wanted(mark, ("", ""), own), theirs], [], [])
    assert found.define == [theirs.definition] and not found.taken
    assert dead_letter_queue(Settings(dead_letter_queue=""), mark, in_group=True) is None


def test_a_definition_of_another_resource_of_the_name_is_defined_anew_not_deleted() -> None:
    """The resource was deleted and made again: its uid is another."""
    before, after = wanted("a", "before"), wanted("a", "after")
    assert plan([after], rows(before.definition), []) == Plan(define=[after.definition])


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvw"), st.booleans()), max_size=6), st.permutations("abcd"))
def test_applying_a_plan_leaves_nothing_to_do(resources: list[tuple[str, str, bool]], there: list[str]) -> None:
    asked = [wanted(n, u, queueName=n.upper(), deletionPolicy="Retain" if r else "Delete") for n, u, r in resources]
    present = {n.upper(): wanted(n, "before").definition for n in there[:2]} | {"BY.HAND": rules.Queue(name="BY.HAND")}
    found = plan(asked, rows(*present.values()), [])
    for one in found.release:
        present[one.name] = released(one)
    for one in found.define:
        present[one.name] = one
    for one in found.delete:
        del present[one.name]
    assert "BY.HAND" in present
    assert not plan(asked, rows(*present.values()), [])
    assert {w.key[1] for w in asked} <= set(present)


def test_a_mark_is_read_as_it_was_written() -> None:
    assert Mark.parse(str(MARK)) == MARK
    assert Mark.parse("") is None and Mark.parse("a/b") is None
