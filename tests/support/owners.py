"""Owners for tests of the operator, their specs defaulted by the chart's schemas as the API server does it."""

from __future__ import annotations

from typing import Any

from qsg_operator import names
from qsg_operator.children.objects import Images, Owner
from qsg_operator.specs.group import QueueSharingGroup
from qsg_operator.specs.manager import QueueManager
from support.crds import defaulted, schema

IMAGES = Images(qsg="registry.example/qsg:1", etcd="registry.example/etcd:1")
NAMESPACE = "shop"


def group(name: str = "orders", **spec: Any) -> Owner:
    full = defaulted(spec, schema(names.QUEUE_SHARING_GROUP, "spec"))
    return Owner(names.QUEUE_SHARING_GROUP, NAMESPACE, name, f"uid-of-{name}", QueueSharingGroup.model_validate(full), IMAGES)


def manager(name: str = "bank", **spec: Any) -> Owner:
    full = defaulted(spec, schema(names.QUEUE_MANAGER, "spec"))
    return Owner(names.QUEUE_MANAGER, NAMESPACE, name, f"uid-of-{name}", QueueManager.model_validate(full), IMAGES)
