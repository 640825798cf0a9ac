"""The operator as a process: `python -m qsg_operator`. Ends when a watch dies or a task fails, so that it is started afresh."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, cast

import kopf
import structlog
from prometheus_client import GCCollector, PlatformCollector, ProcessCollector, start_http_server
from prometheus_client.registry import CollectorRegistry

from qsg.endings import ended
from qsg_operator.api import Api
from qsg_operator.handlers import configure, register
from qsg_operator.metrics import Metrics
from qsg_operator.runtime import Runtime
from qsg_operator.settings import Settings

log = structlog.get_logger()


def login() -> kopf.ConnectionInfo:
    """Of the pod's service account; outside a cluster of the KUBECONFIG."""
    logger = logging.getLogger("qsg_operator.login")
    settings = kopf.OperatorSettings()
    info = kopf.login_with_service_account(logger=logger, settings=settings) or kopf.login_with_kubeconfig(logger=logger, settings=settings)
    if info is None:
        raise kopf.LoginError("neither a service account nor a KUBECONFIG")
    return info


async def run(settings: Settings) -> int:
    registry = kopf.OperatorRegistry()
    kopf_settings = kopf.OperatorSettings()
    configure(kopf_settings)

    @kopf.on.login(registry=registry)
    def log_in(**_: Any) -> kopf.ConnectionInfo:
        return login()

    numbers = CollectorRegistry()
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=numbers)
    metrics = Metrics(numbers)
    api = Api(login)
    runtime = Runtime(settings, api, metrics)
    register(registry, runtime)
    loop = asyncio.get_running_loop()
    server, _ = start_http_server(settings.metrics_port, registry=numbers) if settings.metrics_port else (None, None)
    watching = kopf.operator(
        registry=registry,
        settings=kopf_settings,
        standalone=True,
        identity=cast(Any, settings.identity),  # else it asks for the name of a user, whom an image need not have
        clusterwide=not settings.watch,
        namespaces=list(settings.watch),
        liveness_endpoint=settings.liveness or None,
    )
    # kopf takes the signals, and ends what runs beside it too; what has not failed then was told to end.
    tasks = [loop.create_task(runtime.run(), name="runtime"), loop.create_task(watching, name="watches")]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        # The lease is given back, and watches end, before the session to the API server does.
        for task in tasks:
            await ended(task)
        failures = [(task.get_name(), task.exception()) for task in tasks if not task.cancelled() and task.exception() is not None]
        for name, error in failures:
            log.error("the operator cannot go on", task=name, error=repr(error))
        return 1 if failures else 0
    finally:
        await api.close()
        if server is not None:
            server.shutdown()


def main() -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    sys.exit(asyncio.run(run(Settings.from_environment())))
