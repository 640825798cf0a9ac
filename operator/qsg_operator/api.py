"""The Kubernetes API, as much of it as is written here: server-side apply, status, Events, Leases, lists. JSON in, JSON out.

One session, renewed with fresh credentials when they are no longer taken (tokens of service accounts are rotated on disk). Every call
ends within `TIMEOUT_S` and raises `ApiError` otherwise; retrying is the work queue's business. Why no client library: docs/decisions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import kopf

from qsg_operator import names

Object = dict[str, Any]
TIMEOUT_S = 30.0
KINDS = {
    "StatefulSet": ("apis/apps/v1", "statefulsets"),
    "Pod": ("api/v1", "pods"),
    "Service": ("api/v1", "services"),
    "ConfigMap": ("api/v1", "configmaps"),
    "Secret": ("api/v1", "secrets"),
    "Event": ("api/v1", "events"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    **{kind: (f"apis/{names.API_VERSION}", plural) for kind, plural in names.PLURALS.items()},
}


class ApiError(Exception):
    """`status` 0 = no answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def path_of(kind: str, namespace: str, name: str = "") -> str:
    base, plural = KINDS[kind]
    place = f"/namespaces/{quote(namespace)}" if namespace else ""
    return f"/{base}{place}/{plural}" + (f"/{quote(name)}" if name else "")


class Api:
    def __init__(self, login: Callable[[], kopf.ConnectionInfo]) -> None:
        self._login = login
        self._server = ""
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            info = self._login()
            self._server = info.server.rstrip("/")
            connector = aiohttp.TCPConnector(limit=16, ssl=info.as_ssl_context())
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(connector=connector, headers=info.as_http_headers(), timeout=timeout)
        return self._session

    async def request(self, method: str, path: str, body: Object | None = None, *, form: str = "application/json", **query: str) -> Object:
        """Raises `ApiError`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": form, "Accept": "application/json"}
        for attempt in (1, 2):
            session = await self._open()
            try:
                async with session.request(method, self._server + path, data=data, params=query, headers=headers) as response:
                    if response.status == 401 and attempt == 1:
                        await self.close()
                        continue
                    answer = await response.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise ApiError(0, f"{method} {path}: {error!r}") from error
            if response.status >= 400:
                told = answer.get("message", "") if isinstance(answer, dict) else str(answer)
                raise ApiError(response.status, f"{told or response.reason} ({response.status})")
            return answer if isinstance(answer, dict) else {}
        raise AssertionError("unreachable")

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """None when it is not there."""
        try:
            return await self.request("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def list(self, kind: str, namespace: str = "", selector: str = "") -> list[Object]:
        """From the API server's cache: cheap, and perhaps a moment old."""
        path = path_of(kind, namespace)
        if selector:
            found = await self.request("GET", path, resourceVersion="0", labelSelector=selector)
        else:
            found = await self.request("GET", path, resourceVersion="0")
        version = found.get("apiVersion", "")
        return [{"apiVersion": version, "kind": kind, **item} for item in found.get("items") or ()]

    async def apply(self, child: Object) -> Object:
        meta = child["metadata"]
        path = path_of(child["kind"], meta["namespace"], meta["name"])
        return await self.request("PATCH", path, child, form="application/apply-patch+yaml", fieldManager=names.FIELD_MANAGER, force="true")

    async def create(self, child: Object) -> Object:
        return await self.request("POST", path_of(child["kind"], child["metadata"]["namespace"]), child, fieldManager=names.FIELD_MANAGER)

    async def replace(self, child: Object) -> Object:
        meta = child["metadata"]
        return await self.request("PUT", path_of(child["kind"], meta["namespace"], meta["name"]), child, fieldManager=names.FIELD_MANAGER)

    async def delete(self, kind: str, namespace: str, name: str, *, grace_s: int | None = None) -> None:
        """Also when it is not there."""
        options = None if grace_s is None else {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": grace_s}
        try:
            await self.request("DELETE", path_of(kind, namespace, name), options)
        except ApiError as error:
            if error.status != 404:
                raise

    async def apply_status(self, kind: str, namespace: str, name: str, status: Object) -> Object | None:
        """The whole status: what it does not have is removed. None: the resource is gone."""
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": namespace}, "status": status}
        path = path_of(kind, namespace, name) + "/status"
        try:
            return await self.request(
                "PATCH", path, body, form="application/apply-patch+yaml", fieldManager=f"{names.FIELD_MANAGER}-status", force="true"
            )
        except ApiError as error:
            if error.status == 404:
                return None
            raise
