"""Which replica of the operator works: the holder of one Lease. The others watch, and take it when it is not renewed for a while.

Invariant: a holder that could not renew in time stops working before another may take the Lease. Clocks of replicas are not compared: a
replica waits `DURATION_S` by its own clock after it last saw the Lease change. Nothing of the product waits for a holder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import structlog

from qsg_operator import names
from qsg_operator.api import Api, ApiError

log = structlog.get_logger()

NAME = "qsg-operator"
RENEW_S = 5.0
DURATION_S = 20.0
GIVE_UP_S = 12.0
"""A holder that has not renewed for so long holds it no more; below DURATION_S by more than a request may take."""


class Leader:
    """`changed` is called whenever `leading` changes."""

    def __init__(self, api: Api, namespace: str, identity: str, changed: Callable[[], None]) -> None:
        self._api, self._namespace, self._identity, self._changed = api, namespace, identity, changed
        self.leading = False
        self.renewed_at = float("-inf")
        """When this replica last wrote the Lease."""
        self._seen = ""
        self._seen_at = float("-inf")

    async def run(self) -> None:
        try:
            while True:
                began = asyncio.get_running_loop().time()
                try:
                    async with asyncio.timeout(RENEW_S):
                        await self.once()
                except (ApiError, TimeoutError) as error:
                    log.warning("the lease was not reached", error=str(error))
                if self.leading and asyncio.get_running_loop().time() - self.renewed_at > GIVE_UP_S:
                    self._set(False)
                await asyncio.sleep(max(0.1, began + RENEW_S - asyncio.get_running_loop().time()))
        finally:
            await self._release()

    async def once(self) -> None:
        """Takes or renews the Lease when that may be done."""
        began = asyncio.get_running_loop().time()
        lease = await self._api.get("Lease", self._namespace, NAME)
        if lease is None:
            written = await self._write(self._api.create(self._lease(None)))
        else:
            holder = lease["spec"].get("holderIdentity") or ""
            seen = f"{lease['metadata']['resourceVersion']}"
            if seen != self._seen:
                self._seen, self._seen_at = seen, began
            if holder and holder != self._identity and began - self._seen_at < DURATION_S:
                self._set(False)
                return
            written = await self._write(self._api.replace(self._lease(lease)))
        if written:
            self.renewed_at = began
        self._set(written)

    async def _write(self, writing: Any) -> bool:
        try:
            written = await writing
        except ApiError as error:
            if error.status == 409:  # another was quicker
                return False
            raise
        self._seen, self._seen_at = written["metadata"]["resourceVersion"], asyncio.get_running_loop().time()
        return True

    def _lease(self, present: dict[str, Any] | None, holder: str | None = None) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = (present or {}).get("spec", {})
        mine = before.get("holderIdentity") == self._identity
        spec = {
            "holderIdentity": self._identity if holder is None else holder,
            "leaseDurationSeconds": int(DURATION_S),
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if mine else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not mine and present is not None),
        }
        meta: dict[str, Any] = {
            "name": NAME,
            "namespace": self._namespace,
            "labels": {names.APP: "qsg", names.MANAGED_BY: names.FIELD_MANAGER},
        }
        if present is not None:
            meta["resourceVersion"] = present["metadata"]["resourceVersion"]
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta, "spec": spec}

    async def _release(self) -> None:
        """The next one need not wait."""
        if not self.leading:
            return
        self._set(False)
        try:
            async with asyncio.timeout(3.0):
                lease = await self._api.get("Lease", self._namespace, NAME)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    await self._api.replace(self._lease(lease, holder=""))
        except (ApiError, TimeoutError) as error:
            log.warning("the lease was not given back", error=str(error))

    def _set(self, leading: bool) -> None:
        if leading != self.leading:
            self.leading = leading
            log.info("leading" if leading else "not leading", identity=self._identity)
            self._changed()
