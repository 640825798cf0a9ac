"""Reading definitions: what is wrong, and where."""

from __future__ import annotations

import pytest
import typer

from qsg.cli.definitions import Fault, from_options, read
from qsg.rules.definitions import Definitions


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("queues: [", Fault(1, "", "not YAML: expected the node content, but found '<stream end>'")),
        ("a: 1\n\tb: 2\n", Fault(2, "", "not YAML: found character '\\t' that cannot start any token")),
        ("- 1\n", Fault(1, "", "expected a mapping with queues, channels, settings")),
        ("queues:\n  name: A\n", Fault(1, "queues", "Input should be a valid tuple")),
        ("\nqueue: []\n", Fault(2, "queue", "Extra inputs are not permitted")),
        ("queues:\n- name: A\n- type: alias\n  target: A\n", Fault(3, "queues[1].name", "Field required")),
        ("queues:\n- name: A\n  name: B\n", Fault(3, "name", "is there twice")),
        ("queues:\n- name: A\n- name: A\n", Fault(3, "queue A", "is defined twice")),
        ("settings:\n  hop_limit: 0\n", Fault(2, "settings.hop_limit", "Input should be greater than or equal to 1")),
    ],
)
def test_faults(text: str, fault: Fault) -> None:
    found = read(text)

    assert isinstance(found, list)
    assert fault in found


def test_empty() -> None:
    assert read("") == Definitions()
    assert read("# nothing\n") == Definitions()


def test_good() -> None:
    found = read("queues: [{name: A}]\nchannels: [{name: C, type: receiver}]\n")

    assert isinstance(found, Definitions)
    assert (found.queues[0].name, found.channels[0].name) == ("A", "C")


def test_options() -> None:
    assert from_options({"a": 1, "b": None}, ["c=2", "retry.short_ms=5", "d=[x, y]", "e=text", "f="]) == {
        "a": 1,
        "c": 2,
        "retry": {"short_ms": 5},
        "d": ["x", "y"],
        "e": "text",
        "f": None,
    }
    with pytest.raises(typer.BadParameter):
        from_options({}, ["nonsense"])
