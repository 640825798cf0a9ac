"""The way to the API server, over real HTTP: what is sent, what errors become, and credentials that are renewed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from qsg_operator import api as module
from qsg_operator import names
from qsg_operator.api import Api, ApiError, path_of


class Server:
    """Answers `status` and `body` to whatever is asked with a token that it takes."""

    def __init__(self) -> None:
        self.tokens = {"one"}
        self.status, self.body = 200, "{}"
        self.hold: asyncio.Event | None = None
        self.asked: list[tuple[str, str, dict[str, str], str, str]] = []

    async def answer(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization", "").removeprefix("Bearer ") not in self.tokens:
            return web.Response(status=401, text="{}")
        text = await request.text()
        self.asked.append((request.method, request.path, dict(request.query), request.content_type, text))
        if self.hold is not None:
            await self.hold.wait()
        return web.Response(status=self.status, text=self.body)


@contextlib.asynccontextmanager
async def serving(tokens: list[str]) -> AsyncIterator[tuple[Server, Api]]:
    """`tokens`: what each login finds."""
    server, app = Server(), web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(app) as http:
        api = Api(lambda: kopf.ConnectionInfo(server=str(http.make_url("/")), token=tokens.pop(0)))
        try:
            yield server, api
        finally:
            await api.close()


CHILD: dict[str, Any] = {"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "a"}}


async def test_children_are_applied_by_the_server() -> None:
    async with serving(["one"]) as (server, api):
        await api.apply(CHILD)
        method, path, query, form, _ = server.asked[0]
        assert (method, path, form) == ("PATCH", "/api/v1/namespaces/shop/services/a", "application/apply-patch+yaml")
        assert query == {"fieldManager": "qsg-operator", "force": "true"}
        await api.apply_status(names.SHARED_QUEUE, "shop", "q", {"depth": 1}, "7")
        method, path, query, _, text = server.asked[1]
        assert path == "/apis/qsg.dev/v1alpha1/namespaces/shop/sharedqueues/q/status"
        assert query["fieldManager"] == "qsg-operator-status" and '"spec"' not in text and '"resourceVersion": "7"' in text


async def test_lists_come_from_the_cache_of_the_server_and_know_their_kind() -> None:
    async with serving(["one"]) as (server, api):
        server.body = '{"apiVersion": "v1", "items": [{"metadata": {"name": "p"}}]}'
        (found,) = await api.list("Pod", "shop", "a=b")
        assert found == {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}}
        assert server.asked[0][1:3] == ("/api/v1/namespaces/shop/pods", {"resourceVersion": "0", "labelSelector": "a=b"})
        await api.list("Pod")
        assert server.asked[1][1] == "/api/v1/pods"


async def test_what_is_not_there_is_none_or_no_matter() -> None:
    async with serving(["one"]) as (server, api):
        server.status, server.body = 404, '{"message": "not found"}'
        assert await api.get("Pod", "shop", "p") is None
        assert await api.apply_status(names.SHARED_QUEUE, "shop", "q", {}, "7") is None
        await api.delete("Pod", "shop", "p", grace_s=0)
        assert '"gracePeriodSeconds": 0' in server.asked[-1][4]
        with pytest.raises(ApiError) as caught:
            await api.apply(CHILD)
        assert caught.value.status == 404


@pytest.mark.parametrize(
    ("status", "body", "told"), [(403, '{"message": "forbidden: x"}', "forbidden: x"), (500, "null", "Internal"), (200, "not JSON", "JSON")]
)
async def test_errors_are_of_one_kind_and_say_what_the_server_says(status: int, body: str, told: str) -> None:
    async with serving(["one"]) as (server, api):
        server.status, server.body = status, body
        with pytest.raises(ApiError, match=told) as caught:
            await api.apply(CHILD)
        assert caught.value.status == (status if status >= 400 else 0)


async def test_a_server_that_is_away_is_an_error_of_the_same_kind() -> None:
    api = Api(lambda: kopf.ConnectionInfo(server="http://127.0.0.1:1"))
    with pytest.raises(ApiError) as caught:
        await api.get("Pod", "shop", "p")
    assert caught.value.status == 0
    await api.close()


async def test_a_token_that_is_no_longer_taken_is_replaced_and_calls_under_way_end_as_they_should() -> None:
    async with serving(["one", "two"]) as (server, api):
        server.hold = asyncio.Event()
        under_way = asyncio.create_task(api.get("Pod", "shop", "slow"))
        async with asyncio.timeout(5):
            while not server.asked:  # noqa: ASYNC110  the server has no event for it
                await asyncio.sleep(0.01)
        server.tokens = {"two"}
        hold, server.hold = server.hold, None
        assert await api.get("Pod", "shop", "p") == {}
        hold.set()
        assert await under_way == {}


async def test_a_token_that_is_never_taken_is_an_error() -> None:
    async with serving(["other", "another"]) as (_, api):
        with pytest.raises(ApiError) as caught:
            await api.get("Pod", "shop", "p")
        assert caught.value.status == 401


async def test_credentials_are_read_anew_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = ["one", "one"]
    async with serving(tokens) as (_, api):
        await api.get("Pod", "shop", "p")
        await api.get("Pod", "shop", "p")
        assert len(tokens) == 1
        monkeypatch.setattr(module, "FRESH_S", -1.0)
        await api.get("Pod", "shop", "p")
        assert tokens == []


def test_names_are_quoted() -> None:
    assert path_of("Pod", "a/b", "c?d") == "/api/v1/namespaces/a%2Fb/pods/c%3Fd"
