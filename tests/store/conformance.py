"""What every store must do: subclass `StoreConformance` and give it a fixture `harness` (see `support.stores.Harness`)."""

from __future__ import annotations

from store.conformance_faults import ConnectionConformance, RestartConformance
from store.conformance_reads import ReadConformance
from store.conformance_restore import RestoreConformance
from store.conformance_txn import TxnConformance
from store.conformance_watch import LeaseConformance, WatchConformance

__all__ = ["ConnectionConformance", "RestartConformance", "RestoreConformance", "StoreConformance"]


class StoreConformance(TxnConformance, ReadConformance, WatchConformance, LeaseConformance):
    """What holds for all of them; the others are for those whose harness can cut, restart or restore."""
