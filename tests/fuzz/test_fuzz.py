"""Every target in bounded time: its corpus, its seeds, and mutations of them. Longer: `python -m fuzz --seconds 600`."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from fuzz import wire
from fuzz.run import corpus, run
from fuzz.target import Target, Violation
from fuzz.targets import TARGETS

SECONDS = 2.5
PLAIN = ("frames", "batches", "records", "unix", "texts")
"""Targets without a state: here hypothesis chooses the changes, and finds the smallest that violates the property."""


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_the_property_holds(name: str) -> None:
    target = TARGETS[name]()
    try:
        result = run(target, SECONDS, seed=20_261_125)
    finally:
        target.close()
    assert not result.found, result.found
    assert result.inputs > 20


@pytest.mark.parametrize("name", PLAIN)
def test_the_property_holds_for_what_hypothesis_makes(name: str) -> None:
    target = TARGETS[name]()
    pool = [*corpus(name), *target.seeds]

    @settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(pool), st.integers(1, 3), st.randoms(use_true_random=False))
    def holds(data: bytes, changes: int, random: Random) -> None:
        for _ in range(changes):
            data = target.mutate(data, target.seeds, random)
        note(repr(data))
        target.hold(data)

    holds()


@pytest.mark.parametrize("bad", [b"ABC", b"", b"x" * 20])
def test_a_parser_that_raises_anything_else_is_found(bad: bytes) -> None:
    """The runner itself, with a planted error."""

    def check(data: bytes) -> None:
        if b"A" in data:
            raise KeyError("planted")

    target = Target("planted", [bad], check, lambda data, seeds, random: wire.mutate_bytes(data, random))
    if b"A" in bad:
        with pytest.raises(Violation, match="KeyError"):
            target.hold(bad)
    else:
        target.hold(bad)


def test_frames_of_any_bytes_can_be_split_and_joined() -> None:
    random = Random(5)
    for _ in range(500):
        data = random.randbytes(random.randrange(40))
        assert wire.split(wire.join(wire.split(data))) == wire.split(data)
        fields = wire.parse(data)
        assert fields is None or wire.parse(wire.build(fields)) == fields
