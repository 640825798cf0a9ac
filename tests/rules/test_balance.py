"""Where a channel is started."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsg.rules.balance import Load, able, choose, ranked

BOTH = frozenset({"admin", "app1"})


def load(member: str, channels: int = 0, most: int = 100, **values: object) -> Load:
    attributes: dict[str, object] = {"initiator": True, "structures": BOTH, **values}
    return Load(member, channels, most, **attributes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "unable",
    [load("X", initiator=False), load("X", draining=True), load("X", 100), load("X", structures=frozenset({"admin"}))],
    ids=["no initiator", "draining", "full", "structure out of reach"],
)
def test_who_cannot(unable: Load) -> None:
    assert not able(unable, {"admin", "app1"})
    assert choose([unable], "C", {"admin", "app1"}) is None
    assert choose([unable, load("Y", 99)], "C", {"admin", "app1"}) == "Y"


def test_lowest_percentage_then_most_headroom() -> None:
    assert choose([load("X", 10, 100), load("Y", 11, 200)], "C", BOTH) == "Y"
    assert choose([load("X", 10, 100), load("Y", 20, 200)], "C", BOTH) == "Y"


def test_channels_spread_over_equal_members_and_all_choosers_agree() -> None:
    loads = [load(m) for m in "XYZ"]
    chosen = Counter(choose(loads, f"CHANNEL.{i}", BOTH) for i in range(300))
    assert set(chosen) == {"X", "Y", "Z"} and min(chosen.values()) > 60
    assert all(choose(loads, f"C{i}", BOTH) == choose(loads[::-1], f"C{i}", BOTH) for i in range(50))


def test_excluded_members_and_order() -> None:
    loads = [load("X", 1), load("Y", 2), load("Z", 3)]
    assert ranked(loads, "C", BOTH) == ["X", "Y", "Z"]
    assert ranked(loads, "C", BOTH, exclude=["X"]) == ["Y", "Z"]
    assert choose(loads, "C", BOTH, exclude=["X", "Y", "Z"]) is None


LOADS = st.lists(
    st.builds(
        Load,
        st.sampled_from("UVWXYZ"),
        st.integers(0, 5),
        st.integers(1, 5),
        st.booleans(),
        st.booleans(),
        st.sampled_from([BOTH, frozenset({"admin"}), frozenset()]),
    ),
    unique_by=lambda load: load.member,
    max_size=6,
)


@given(LOADS, st.randoms(use_true_random=False), st.sets(st.sampled_from("UVWXYZ")))
def test_whoever_chooses_finds_the_same_and_never_one_that_cannot(loads: list[Load], chance: Random, exclude: set[str]) -> None:
    found = ranked(loads, "C", BOTH, exclude=exclude)
    shuffled = list(loads)
    chance.shuffle(shuffled)
    assert ranked(shuffled, "C", BOTH, exclude=exclude) == found
    assert choose(loads, "C", BOTH, exclude=exclude) == (found[0] if found else None)
    by_name = {load.member: load for load in loads}
    assert set(found) == {load.member for load in loads if able(load, BOTH) and load.member not in exclude}
    percents = [by_name[m].channels / by_name[m].channels_max for m in found]
    assert percents == sorted(percents)
