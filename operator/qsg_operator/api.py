"""The Kubernetes API, as much of it as is written here: server-side apply, status, Events, Leases, lists. JSON in, JSON out.

One session, made anew with fresh credentials every ten minutes, and when they are no longer taken: tokens of service accounts are rotated
on disk. Calls under way on the old one end there. Every call ends within `TIMEOUT_S` and raises `ApiError` otherwise; retrying is the work
queue's business. Why no client library: docs/decisions.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import aiohttp
import kopf

from qsg.endings import ended
from qsg_operator import names

Object = dict[str, Any]
TIMEOUT_S = 30.0
FRESH_S = 600.0
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


async def _close_later(session: aiohttp.ClientSession) -> None:
    try:
        await asyncio.sleep(TIMEOUT_S + 1)
    finally:
        await session.close()


def path_of(kind: str, namespace: str, name: str = "") -> str:
    base, plural = KINDS[kind]
    place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
    return f"/{base}{place}/{plural}" + (f"/{quote(name, safe='')}" if name else "")


class Api:
    def __init__(self, login: Callable[[], kopf.ConnectionInfo]) -> None:
        self._login = login
        self._server = ""
        self._session: aiohttp.ClientSession | None = None
        self._opened_at = 0.0
        self._old: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        session, self._session = self._session, None
        await ended(*self._old)
        if session is not None:
            await session.close()

    def _open(self) -> aiohttp.ClientSession:
        now = asyncio.get_running_loop().time()
        if self._session is not None and now - self._opened_at > FRESH_S:
            self._leave(self._session)
        if self._session is None:
            info = self._login()
            self._server, self._opened_at = info.server.rstrip("/"), now
            ssl = info.as_ssl_context() if self._server.startswith("https") else False
            timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=16, ssl=ssl), headers=info.as_http_headers(), timeout=timeout
            )
        return self._session

    def _leave(self, session: aiohttp.ClientSession) -> None:
        """The next call makes a new session; this one is closed when its calls are over."""
        if self._session is session:
            self._session = None
            task = asyncio.get_running_loop().create_task(_close_later(session))
            self._old.add(task)
            task.add_done_callback(self._old.discard)

    async def request(self, method: str, path: str, body: Object | None = None, *, form: str = "application/json", **query: str) -> Object:
        """Raises `ApiError`."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": form, "Accept": "application/json"}
        for attempt in (1, 2):
            try:
                session = self._open()
                async with session.request(method, self._server + path, data=data, params=query, headers=headers) as response:
                    if response.status == 401 and attempt == 1:
                        self._leave(session)
                        continue
                    answer = await response.json(content_type=None)
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
                raise ApiError(0, f"{method} {path}: {error!r}") from error
            if response.status >= 400:
                told = answer.get("message", "") if isinstance(answer, dict) else ""
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

    async def apply_status(self, kind: str, namespace: str, name: str, status: Object, version: str) -> Object | None:
        """The whole status: what it does not have is removed. None: the resource is gone. `ApiError` 409: it is not at `version` any
        more."""
        meta = {"name": name, "namespace": namespace, "resourceVersion": version}
        body = {"apiVersion": names.API_VERSION, "kind": kind, "metadata": meta, "status": status}
        path = path_of(kind, namespace, name) + "/status"
        try:
            return await self.request(
                "PATCH", path, body, form="application/apply-patch+yaml", fieldManager=f"{names.FIELD_MANAGER}-status", force="true"
            )
        except ApiError as error:
            if error.status == 404:
                return None
            raise
