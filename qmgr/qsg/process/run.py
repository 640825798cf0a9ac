"""Entry points of the two processes of a member: the queue manager and the channel initiator.

`python -m qsg.process.run serve|initiator CONFIG`. Each builds one incarnation after the other until it is told to end.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from pathlib import Path

import structlog

from qsg.process.config import ConfigError, load


def configure_logging() -> None:
    """One JSON object a line on standard error."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
    )


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] not in ("serve", "initiator"):
        sys.stderr.write("usage: python -m qsg.process.run serve|initiator CONFIG\n")
        return 2
    try:
        config = load(Path(arguments[1]))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    configure_logging()
    if arguments[0] == "serve":
        from qsg.process.queue_manager import run as run_queue_manager

        return asyncio.run(run_queue_manager(config))
    from qsg.process.initiator import run as run_initiator

    return asyncio.run(run_initiator(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
