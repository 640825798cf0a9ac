"""Metrics of the operator, named as controller-runtime's are. The queue managers' own are theirs."""

from __future__ import annotations

from datetime import datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SHOWN = ("Ready", "Stalled", "Redundant", "StoreReachable")
VALUES = {"True": 1, "False": 0, "Unknown": -1}
BUCKETS = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    def __init__(self, registry: CollectorRegistry) -> None:
        self.reconciles = Counter("qsg_operator_reconcile", "Reconciles, by result.", ["kind", "result"], registry=registry)
        self.duration = Histogram(
            "qsg_operator_reconcile_duration_seconds", "How long reconciles take.", ["kind"], buckets=BUCKETS, registry=registry
        )
        self.resources = Gauge("qsg_operator_resources", "Resources that are there.", ["kind"], registry=registry)
        self.conditions = Gauge(
            "qsg_operator_condition",
            "1 where a condition of a resource is true, 0 where it is false, -1 where it is unknown.",
            ["kind", "namespace", "name", "type"],
            registry=registry,
        )
        self.expiry = Gauge(
            "qsg_operator_certificate_expiry_timestamp_seconds",
            "When the members' certificate ends.",
            ["kind", "namespace", "name"],
            registry=registry,
        )
        self.queue = Gauge("qsg_operator_queue_length", "Keys that wait for a reconcile.", registry=registry)
        self.leading = Gauge("qsg_operator_leading", "1 while this replica holds the lease.", registry=registry)
        self.last_event = Gauge(
            "qsg_operator_watch_last_event_timestamp_seconds", "When the watch of a kind last told something.", ["kind"], registry=registry
        )
        build = Gauge("qsg_operator_build_info", "1", ["version"], registry=registry)
        build.labels(_version()).set(1)

    def of_resource(self, found: dict[str, Any]) -> None:
        """What a resource's status says."""
        kind, meta, status = found["kind"], found["metadata"], found.get("status") or {}
        for condition in status.get("conditions") or ():
            if condition["type"] in SHOWN and condition["status"] in VALUES:
                shown = self.conditions.labels(kind, meta["namespace"], meta["name"], condition["type"])
                shown.set(VALUES[condition["status"]])
        expires = (status.get("certificates") or {}).get("expires")
        if expires:
            self.expiry.labels(kind, meta["namespace"], meta["name"]).set(datetime.fromisoformat(expires).timestamp())


def _version() -> str:
    try:
        return version_of("qsg")
    except PackageNotFoundError:
        return "unknown"
