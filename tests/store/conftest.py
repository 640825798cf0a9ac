"""A machine that stands still for a moment makes no outcome unknown here, but where a test says how long a transaction may take."""

from __future__ import annotations

import pytest

from support.stores import PATIENT_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qsg.store.sqlite.TXN_TIMEOUT_S", PATIENT_S)
