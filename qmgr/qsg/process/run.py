"""Entry points of the two processes of a member: the queue manager and the channel initiator.

`python -m qsg.process.run serve|initiator CONFIG`. Each builds one incarnation after the other until it is told to end. Modules are loaded
late, so that a process that was killed is back soon.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path

from qsg.failpoint import arm_from_environment


def configure_logging() -> None:
    """One JSON object a line on standard error."""
    # structlog loads rich, where it is installed, for tracebacks on terminals. These processes have none, and it takes 0.3 s.
    sys.modules.setdefault("rich", None)  # type: ignore[arg-type]
    import structlog

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
    # Without its own I/O engine grpc takes a tenth to a quarter less CPU time for many small calls, as etcd's are.
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")
    if len(arguments) != 2 or arguments[0] not in ("serve", "initiator"):
        sys.stderr.write("usage: python -m qsg.process.run serve|initiator CONFIG\n")
        return 2
    configure_logging()
    from qsg.process.config import ConfigError, load

    try:
        arm_from_environment()
        config = load(Path(arguments[1]))
    except (ConfigError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if arguments[0] == "serve":
        from qsg.process.queue_manager import run
    else:
        from qsg.process.initiator import run
    import uvloop

    gc.freeze()  # what was loaded stays: the collector need not look at it again
    return uvloop.run(run(config))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
