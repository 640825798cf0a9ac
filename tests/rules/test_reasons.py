"""Reason codes: each is in use, and numbers from elsewhere are taken for what they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import qsg
from qsg.rules.reasons import Reason, reason_of

HERE = Path(qsg.__file__).parent
USED = {name for path in HERE.rglob("*.py") if "pb" not in path.parts for name in re.findall(r"\bReason\.([A-Z_]+)", path.read_text())}


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_is_raised_or_reported_somewhere(reason: Reason) -> None:
    """One that nothing uses promises a distinction that nobody makes."""
    assert reason.name in USED


def test_a_number_that_is_not_known_here_is_an_unexpected_error() -> None:
    assert [reason_of(2085), reason_of(9016), reason_of(1)] == [
        Reason.UNKNOWN_OBJECT_NAME,
        Reason.UNEXPECTED_ERROR,
        Reason.UNEXPECTED_ERROR,
    ]
