"""kopf: the watches. Handlers only hand on what they are told; nothing is remembered in resources, nothing holds up their deletion."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import kopf

from qsg_operator import names
from qsg_operator.api import KINDS
from qsg_operator.runtime import CHILDREN, OURS, RESOURCES, Runtime


def configure(settings: kopf.OperatorSettings) -> None:
    """Against watches that freeze, against noise, and against rights that are not needed."""
    settings.posting.enabled = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.persistence.finalizer = f"{names.GROUP}/unused"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=names.GROUP)
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 30
    settings.watching.inactivity_timeout = 70
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.error_backoffs = [1, 2, 4, 8, 16, 30]
    for kind in (*CHILDREN, "Lease"):
        settings.watching.label_selectors[_where(kind)] = OURS


def _where(kind: str) -> tuple[str, str, str]:
    base, plural = KINDS[kind]
    group, _, version = base.removeprefix("apis/").rpartition("/")
    return ("" if group == "api" else group), version, plural


def register(registry: kopf.OperatorRegistry, runtime: Runtime) -> None:
    for kind in (*RESOURCES, *CHILDREN, "Lease"):
        _watch(registry, kind, runtime)

    # Any other mode than PERMANENT makes kopf repeat the probe instead of answering it.
    @kopf.on.probe(id="watches", registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    async def watches(**_: Any) -> str:
        problem = runtime.problem()
        if problem:
            raise kopf.PermanentError(problem)
        return "told"


def _watch(registry: kopf.OperatorRegistry, kind: str, runtime: Runtime) -> None:
    group, version, plural = _where(kind)

    @kopf.on.event(group, version, plural, id=f"observe-{plural}", registry=registry)
    async def observe(event: Mapping[str, Any], **_: Any) -> None:
        found = copy.deepcopy(dict(event["object"]))
        found["kind"] = kind
        runtime.observed(found, deleted=event.get("type") == "DELETED")
