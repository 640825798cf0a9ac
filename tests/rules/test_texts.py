"""YAML that people write: plain values, or what is wrong with it."""

from __future__ import annotations

import pytest

from qsg.rules.texts import NotYaml, read_yaml


def test_plain_values_with_their_nodes() -> None:
    value, tree = read_yaml("a: [1, &x two]\nb: *x\n")
    assert value == {"a": [1, "two"], "b": "two"}
    assert tree is not None and tree.start_mark.line == 0
    assert read_yaml("") == (None, None)
    assert read_yaml('{"json": [true, null]}')[0] == {"json": [True, None]}


@pytest.mark.parametrize(
    "text",
    [
        "a: [",
        "a: 2001-13-45",
        "a: " + "9" * 5000,
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: !!python/object:os.system x",
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "[" * 5000,
        "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n"
        + "".join(f"{c}: &{c} [{', '.join(['*' + p] * 9)}]\n" for p, c in zip("abcdef", "bcdefg", strict=True)),
        "\0",
        "--- 1\n--- 2\n",
    ],
)
def test_whatever_is_wrong_is_told(text: str) -> None:
    with pytest.raises(NotYaml) as told:
        read_yaml(text)
    assert told.value.problem


def test_the_line_is_told() -> None:
    with pytest.raises(NotYaml, match="line 3"):
        read_yaml("a: 1\nb:\n  - {c: ]\n")
