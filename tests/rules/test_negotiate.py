"""Both sides of a channel agree on one set of parameters."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsg.pb import channel_pb2
from qsg.rules.definitions import Channel
from qsg.rules.negotiate import advance, is_ahead, negotiate, offer
from qsg.rules.reasons import Reason, Refusal


def definition(**values: object) -> Channel:
    return Channel.model_validate({"name": "CH", "type": "receiver", **values})


def test_the_lower_value_wins_whoever_asks() -> None:
    a = offer(definition(batch_messages=50, batch_bytes=2_000_000, heartbeat_ms=900, batch_window=8))
    b = offer(definition(batch_messages=60, batch_bytes=1_000_000, heartbeat_ms=300, max_message_bytes=1000))
    session = negotiate(a, b)
    assert session == negotiate(b, a)
    assert (session.batch_messages, session.batch_bytes, session.batch_window) == (50, 1_000_000, 4)
    assert (session.heartbeat_ms, session.message_bytes_max) == (300, 1000)


def test_sequence_wrap_must_be_equal() -> None:
    with pytest.raises(Refusal) as refused:
        negotiate(offer(definition(sequence_wrap=1000)), offer(definition()))
    assert refused.value.reason is Reason.SEQUENCE_WRAP_MISMATCH


def test_a_missing_parameter_is_a_protocol_error() -> None:
    theirs = offer(definition())
    theirs.batch_window = 0
    with pytest.raises(Refusal) as refused:
        negotiate(offer(definition()), theirs)
    assert refused.value.reason is Reason.PROTOCOL_ERROR


@given(st.integers(100, 5000), st.integers(1, 9_999), st.integers(1, 64))
def test_less_than_half_of_the_sequence_numbers_can_be_in_flight(wrap: int, messages: int, window: int) -> None:
    mine = offer(definition(sequence_wrap=wrap, batch_messages=messages, batch_window=window))
    session = negotiate(mine, mine)
    in_flight = session.batch_messages * session.batch_window
    assert session.batch_messages >= 1
    assert in_flight <= wrap // 2
    for sequence in (0, 1, wrap // 2, wrap):
        ahead = advance(sequence, in_flight, wrap)
        assert not is_ahead(sequence, ahead, wrap)
    assert is_ahead(advance(3, 1, wrap), 3, wrap)


def test_sequence_numbers_wrap_to_one() -> None:
    assert [advance(0, 1, 100), advance(99, 1, 100), advance(100, 1, 100), advance(98, 5, 100), advance(7, 0, 100)] == [1, 100, 1, 3, 7]


PARAMETERS = st.builds(
    channel_pb2.Parameters,
    version=st.integers(1, 3),
    batch_messages=st.integers(1, 9_999),
    batch_bytes=st.integers(1, 1 << 26),
    batch_window=st.integers(1, 64),
    message_bytes_max=st.integers(0, 100 << 20),
    heartbeat_ms=st.integers(1, 60_000),
    sequence_wrap=st.just(1_000),
)


@given(PARAMETERS, PARAMETERS, PARAMETERS)
def test_both_sides_derive_the_same_and_what_is_agreed_stands(
    a: channel_pb2.Parameters, b: channel_pb2.Parameters, c: channel_pb2.Parameters
) -> None:
    agreed = negotiate(a, b)
    assert agreed == negotiate(b, a)
    assert negotiate(a, agreed) == negotiate(agreed, b) == agreed
    assert agreed.batch_bytes <= min(a.batch_bytes, b.batch_bytes) and agreed.message_bytes_max <= min(
        a.message_bytes_max, b.message_bytes_max
    )
    assert negotiate(negotiate(a, b), c).batch_bytes == negotiate(a, negotiate(b, c)).batch_bytes


@given(st.integers(100, 2_000), st.integers(0, 2_000), st.lists(st.integers(1, 40), max_size=9))
def test_what_was_counted_on_is_ahead_of_where_it_began(wrap: int, start: int, counts: list[int]) -> None:
    at = start = start % (wrap + 1)
    for count in counts:
        at = advance(at, count, wrap)
        assert 1 <= at <= wrap
    if 0 < sum(counts) < (wrap + 1) // 2:
        assert is_ahead(at, start, wrap) and not is_ahead(start, at, wrap)
    if not counts:
        assert not is_ahead(at, start, wrap)
