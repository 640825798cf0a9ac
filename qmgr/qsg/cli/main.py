"""The command line `qsg`: builds the application from the modules beside this one.

Commands that run whole processes (`serve`, `up`, `demo`) are loaded only when they are asked for: `qsg put` must not wait for them.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from importlib.metadata import version as version_of
from typing import Annotated

import structlog
import typer

PROCESSES = ("serve", "initiator", "up", "demo")
"""Modules `qsg.cli.<name>` with a function of that name, or `register(app)`."""
if not {"serve", "initiator"} & set(sys.argv[1:3]):
    # Before grpc is loaded: it tells standard error of every connection that ends, which the commands report in their own words.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client")  # as `qsg.process.run`

from qsg.cli import apply, bench, channels, messages, queues, store  # noqa: E402


def build(arguments: list[str]) -> typer.Typer:
    """The application; `arguments` tell which of the slow modules are needed."""
    app = typer.Typer(name="qsg", no_args_is_help=True, help="Queue-sharing groups: channels that survive whatever dies, exactly once.")
    app.callback()(_options)
    for command in (messages.put, messages.get, messages.browse, apply.apply):
        app.command(rich_help_panel="Messages" if command.__module__ == messages.__name__ else "Objects")(command)
    app.add_typer(queues.app, name="queue", rich_help_panel="Objects")
    app.add_typer(channels.app, name="channel", rich_help_panel="Objects")
    app.add_typer(channels.group_app, name="group", rich_help_panel="Objects")
    app.add_typer(store.app, name="store", rich_help_panel="Processes")
    app.add_typer(bench.app, name="bench", rich_help_panel="Processes")
    asked = next((argument for argument in arguments if not argument.startswith("-")), None)
    for name in PROCESSES:
        if asked in (None, name) and importlib.util.find_spec(f"qsg.cli.{name}") is not None:
            module = importlib.import_module(f"qsg.cli.{name}")
            if hasattr(module, "register"):
                module.register(app)
            else:
                app.command(name, rich_help_panel="Processes")(getattr(module, name))
    app.command("version", rich_help_panel="Objects")(version)
    return app


def _options(verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more on standard error.")] = False) -> None:
    level = logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(message)s")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(level), logger_factory=structlog.WriteLoggerFactory(file=sys.stderr)
    )


def version() -> None:
    """Shows the version."""
    sys.stdout.write(version_of("qsg") + "\n")


def main() -> None:
    build(sys.argv[1:])(prog_name="qsg")


if __name__ == "__main__":
    main()
