"""A machine that stands still for a moment makes no outcome unknown here, but where a test says how long a transaction may take."""

from __future__ import annotations

import pytest

from support.stores import PATIENT_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (
        "sqlite.TXN_TIMEOUT_S",
        "sqlite.READ_TIMEOUT_S",
        "sqlite.CONTROL_TIMEOUT_S",
        "serve_calls.REQUEST_TIMEOUT_S",
        "etcd.store._READ_TOTAL_S",
        "etcd.leases._TOTAL_S",
    ):
        monkeypatch.setattr(f"qsg.store.{limit}", PATIENT_S)
