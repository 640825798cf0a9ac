"""What a process tells its surroundings over plain HTTP: `/livez`, `/readyz` and `/metrics`.

Served by a thread, so that a probe is answered whatever the event loop does; each answer is fetched *from* the event loop, so that a loop
that hangs is seen: then `/livez` fails. Nothing else depends on this server, and it never waits for a store: a queue manager whose
etcd is gone is alive, and ready once it has served. Bad requests get an error and harm nobody.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIEnvironment

import structlog
from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder
from prometheus_client.metrics_core import Metric

log = structlog.get_logger()

ANSWER_S = 2.0
"""An event loop that does not answer for so long is taken for hung."""
SILENT_CLIENT_S = 5.0

Ready = Callable[[], str]
"""Why the process is not ready; "" = it is."""
Metrics = Callable[[], Awaitable[Iterable[Metric]]]


class Monitor:
    """`address`: host:port (port 0 = one is chosen, see `port`). `start` raises `OSError` when it is taken."""

    def __init__(self, address: str, ready: Ready, metrics: Metrics | None = None) -> None:
        self._host, _, port = address.rpartition(":")
        self.port = int(port)
        self._ready, self._metrics = ready, metrics
        self._registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._registry)
        self._loop = asyncio.get_running_loop()

    def start(self) -> None:
        server = make_server(self._host.strip("[]"), self.port, self._answer, ThreadingWSGIServer, handler_class=_Quiet)
        self._server, self.port = server, server.server_port
        threading.Thread(target=server.serve_forever, name="monitor", daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, request: WSGIEnvironment, start: StartResponse) -> list[bytes]:
        path = request.get("PATH_INFO", "")
        pages = {"/livez": self._livez, "/readyz": self._readyz, "/metrics": self._metrics_page}
        page = pages.get(path)
        if page is None or request.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            status, kind, body = "404 Not Found", "text/plain", b"/livez, /readyz or /metrics\n"
        else:
            try:
                status, kind, body = page(request)
            except FutureTimeout:
                status, kind, body = "503 Service Unavailable", "text/plain", b"the event loop does not answer\n"
        start(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    def _fetch(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Runs `work` in the event loop; `TimeoutError` when it hangs."""
        future = asyncio.run_coroutine_threadsafe(_call(work), self._loop)
        try:
            return future.result(ANSWER_S)
        except FutureTimeout:
            future.cancel()
            raise

    def _livez(self, request: WSGIEnvironment) -> tuple[str, str, bytes]:
        self._fetch(_nothing)
        return "200 OK", "text/plain", b"alive\n"

    def _readyz(self, request: WSGIEnvironment) -> tuple[str, str, bytes]:
        async def ready() -> str:
            return self._ready()

        why = self._fetch(ready)
        if why:
            return "503 Service Unavailable", "text/plain", f"{why}\n".encode()
        return "200 OK", "text/plain", b"ready\n"

    def _metrics_page(self, request: WSGIEnvironment) -> tuple[str, str, bytes]:
        encode, kind = choose_encoder(request.get("HTTP_ACCEPT", ""))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Found([*self._registry.collect(), *(self._fetch(self._metrics) if self._metrics else ())]))
        return "200 OK", kind, encode(registry)


class _Found:
    """Metrics that are there already, as a collector."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._all = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._all


class _Quiet(WSGIRequestHandler):
    timeout = SILENT_CLIENT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        log.debug("monitor", line=format % args)


async def _nothing() -> None:
    pass


async def _call(work: Callable[[], Awaitable[Any]]) -> Any:
    return await work()
