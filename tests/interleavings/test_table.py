"""The table of known bad interleavings: no row without a test, no test that is gone, none of this folder that is not in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = (
    "C1 C2a C2b C3 C4 C5 C6 C7 C7b H1 H2 H3 H3b H4a H4b H5 H6 H6b H7 H8 H9 H10 M1 M2a M2b M4 M5 M6 "
    "N1 N2 N3 N4 N5 N6 N7 N8 N9 N10 N11 N12 N13 N14 N15 N16 N17 N18 N19 N20 "
    "P1 P2 P3 P4 P5 P6 P7 P8 P9 P10 P11 P12 P13 P14 P15 P16"
).split()
DEFECTS = (
    "IBM MQ PH67368,IBM MQ PH62197,IBM MQ PH45363,IBM MQ PM81116,IBM MQ PI89568,IBM MQ PH07185,IBM MQ PI08889,IBM MQ PH37290,"
    "IBM MQ PH49585,IBM MQ PM79000,IBM MQ IT40467,IBM MQ CSQX507E,"
    "RabbitMQ 16662a,RabbitMQ 16662b,RabbitMQ 16662c,RabbitMQ 16662d,RabbitMQ 16662e,RabbitMQ 16662f,RabbitMQ 16662g,RabbitMQ 16662h"
).split(",")


def table() -> dict[str, list[str]]:
    """Row -> its tests, as path under `tests` and name."""
    found: dict[str, list[str]] = {}
    for line in (HERE / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        tests = re.findall(r"`([\w/]+\.py::\w+)`", line)
        if line.startswith("|") and tests:
            assert cells[0] not in found, f"{cells[0]} has two rows"
            found[cells[0]] = tests
    return found


def defined(path: Path) -> dict[str, str]:
    """Tests -> their docstrings."""
    body = ast.parse(path.read_text()).body
    tests = (n for n in body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n.name.startswith("test_"))
    return {n.name: ast.get_docstring(n) or "" for n in tests}


def test_every_row_and_every_defect_has_a_test() -> None:
    assert sorted(table()) == sorted([*ROWS, *DEFECTS])


def test_every_test_that_is_named_exists() -> None:
    for row, tests in table().items():
        for test in tests:
            path, _, name = test.partition("::")
            assert name in defined(HERE.parent / path), f"{row}: {test}"


def test_every_test_here_is_in_the_row_that_it_is_named_after() -> None:
    rows = table()
    for path in sorted(HERE.glob("test_*.py")):
        if path == Path(__file__):
            continue
        for name in defined(path):
            words = name.split("_")
            row = next(r for r in rows if r.lower().removeprefix("ibm mq ").split()[-1] in words[1:3])
            assert f"interleavings/{path.name}::{name}" in rows[row], name


def test_every_test_that_is_named_says_which_row_it_is_of() -> None:
    """In its name or its docstring, wherever it lies: who changes it must know what rests on it."""
    for row, tests in table().items():
        for test in tests:
            path, _, name = test.partition("::")
            told = f"{name.replace('_', ' ')} {defined(HERE.parent / path)[name]}"
            assert re.search(rf"\b{row.removeprefix('IBM MQ ').removeprefix('RabbitMQ ')}\b", told, re.IGNORECASE), f"{row}: {test}"


def test_every_named_interleaving_says_what_went_wrong_or_whose_defect_it_was() -> None:
    for path in sorted(HERE.glob("test_*.py")):
        if path == Path(__file__):
            continue
        for name, told in defined(path).items():
            assert "Prevented:" in told or "IBM MQ" in told or "RabbitMQ PR 16662" in told or "(What C3 rests on.)" in told, name
