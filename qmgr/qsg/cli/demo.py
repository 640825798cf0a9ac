"""`qsg demo`: kills the owner of a channel again and again, and shows that nothing is lost or sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, TextIO

import structlog
import typer
import uvloop
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

import qsg
from qsg.cli.common import Store, cell
from qsg.cli.flow import CountedSize
from qsg.process.demo import KILLS, Demo, Plan, Result
from qsg.process.etcd_cluster import EtcdFailed
from qsg.process.go_build import CannotProvide
from qsg.process.ledger import Counts
from qsg.process.local import REMOTE, LocalGroup

FRAME_S = 0.25
LOOK_S, UNSEEN_LOOK_S = 0.2, 1.0
"""How often status and depths are asked for: each time costs the group as much as some messages do."""
FAILED, INTERRUPTED = 1, 130

_STORES = {"embedded": "an embedded store", "etcd": "an etcd of three members"}


def _table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, no_wrap=True, justify="right" if column in numbers else "left")
    return table


class Screen:
    """What a person sees while the demo runs: a line for each event, and below them the owners, depths and counts."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self._console = console
        self._live = live
        self._demo: Demo | None = None
        self._since = time.monotonic()
        self._last = (0.0, 0)
        self._rate = 0.0

    @property
    def live(self) -> bool:
        """Somebody sees more than the events."""
        return self._live is not None

    def say(self, text: str) -> None:
        self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False, soft_wrap=True)

    def __call__(self, demo: Demo, text: str) -> None:
        self._demo = demo
        if text:
            self.say(text)

    async def draw(self) -> None:
        """Until cancelled; one frame at a time, also while nobody answers."""
        while self._live is not None:
            self._live.update(self._render(), refresh=True)
            await asyncio.sleep(FRAME_S)

    def _render(self) -> RenderableType:
        demo = self._demo
        if demo is None or not demo.started_at:
            return f"[dim]{time.monotonic() - self._since:.0f} s[/dim]"
        now, arrived = time.monotonic(), sum(len(d.ledger.arrivals) for d in demo.directions)
        if now - self._last[0] > 1.0:
            self._rate = (arrived - self._last[1]) / (now - self._last[0]) if self._last[0] else 0.0
            self._last = (now, arrived)
        channels = _table("channel", "owner", "status", "epoch", "takeovers", numbers=("epoch", "takeovers"))
        for name, status in sorted(demo.status.items()):
            channels.add_row(name, *(cell(status.get(k)) for k in ("owner", "status", "epoch", "takeovers")))
        counts = ("sent", "acknowledged", "arrived", "depth")
        traffic = _table("direction", *counts, numbers=counts)
        for d in demo.directions:
            row = (d.ledger.sent_total, d.ledger.acknowledged_total, len(d.ledger.arrivals), demo.depths.get(d.name, 0))
            traffic.add_row(d.name, *map(str, row))
        total = demo.plan.messages * len(demo.directions)
        kills = demo.plan.kills if demo.plan.kill != "none" else 0
        head = f"[bold]{arrived}[/bold] of {total} arrived, {self._rate:.0f} msg/s, {len(demo.takeovers)} of {kills} takeovers"
        return Group("", head, "", channels, traffic)


def takeover_table(result: Result) -> Table:
    """One line each; times in milliseconds, "-" where the status did not tell."""
    numbers = ("detect", "claim", "resume", "gap", "worst wait")
    table = _table("cause", "channel", "from", "to", *numbers, numbers=numbers)
    table.title, table.title_justify = "takeovers (ms)", "left"
    for t in result.takeovers:
        parts = ["-" if n is None else f"{n:.0f}" for n in (t.detect_ms, t.claim_ms, t.resume_ms)]
        table.add_row(t.cause, t.channel, t.from_, t.to, *parts, f"{t.gap_ms:.0f}", f"{t.worst_wait_ms:.0f}")
    return table


def verdict(result: Result) -> str:
    c = result.counts
    if result.clean:
        order = f"in order but for {c.returned} given back by a getter whose session ended" if c.returned else "all in order"
        head = f"[bold green]EXACTLY ONCE[/bold green]: {c.acknowledged} acknowledged, none lost, none twice, {order}"
    else:
        wrong = {"lost": c.lost, "twice": c.duplicated, "unexpected": c.unexpected, "out of order": c.out_of_order}
        wrong["on dead-letter queues"] = result.dead_letters
        told = [f"{count} {what}" for what, count in wrong.items() if count] + ([cell(result.error)] if result.error else [])
        head = f"[bold red]BROKEN[/bold red]: {'; '.join(told)}"
    return "\n".join((
        head,
        f"  sent {c.sent}, acknowledged {c.acknowledged}, received {c.received}, ok {c.ok}, "
        f"lost {c.lost}, duplicated {c.duplicated},",
        f"  unexpected {c.unexpected}, out of order {c.out_of_order} (returned {c.returned}), dead letters {result.dead_letters}; "
        f"{result.duplicates_suppressed} duplicates suppressed, {result.fenced_writes} writes fenced;",
        f"  longest gap {result.max_gap_ms:.0f} ms, longest wait {result.worst_wait_ms:.0f} ms, {result.rate_per_s:.0f} msg/s",
    ))  # fmt: skip


async def run_demo(plan: Plan, store: str, directory: Path, screen: Screen) -> Result:
    """Raises CancelledError on SIGINT and SIGTERM, once all processes have ended."""
    group = LocalGroup(directory, store=store, isolable=plan.kill == "isolate", cuttable=plan.kill == "network")
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    drawing = loop.create_task(screen.draw())
    try:
        members = ", ".join(group.members)
        screen.say(f"starting {_STORES.get(store, store)}, queue managers {members} and {REMOTE}, and their initiators")
        await group.start()
        screen.say("processes are started; waiting until every member sees the others")
        return await Demo(group, plan, watch=screen, look_s=LOOK_S if screen.live else UNSEEN_LOOK_S).run()
    except (TimeoutError, OSError, qsg.QsgError, EtcdFailed, CannotProvide) as error:
        return Result(Counts(), error=str(error) or type(error).__name__)
    finally:
        drawing.cancel()
        await asyncio.gather(drawing, return_exceptions=True)
        await group.stop()


@contextlib.contextmanager
def _logs(directory: Path, *, verbose: bool) -> Iterator[None]:
    """What this process itself has to say goes to a file: it would garble the screen."""
    if verbose:
        yield
        return
    folder = directory / "log"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "demo.log").open("a", buffering=1) as file:
        _log_to(file, logging.INFO)
        try:
            yield
        finally:
            _log_to(sys.stderr, logging.WARNING)


def _log_to(file: TextIO, level: int) -> None:
    logging.basicConfig(level=level, stream=file, format="%(asctime)s %(levelname)s %(message)s", force=True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level), logger_factory=structlog.WriteLoggerFactory(file=file))


def _check(kill: str, direction: str, store: str, keep: Path | None) -> None:
    if kill not in KILLS:
        raise typer.BadParameter(f"one of {', '.join(KILLS)}", param_hint="--kill")
    if direction not in ("out", "in", "both"):
        raise typer.BadParameter("out, in or both", param_hint="--direction")
    if kill == "store" and store.startswith("etcd://"):
        raise typer.BadParameter("an etcd that was not started here is not killed: use --store etcd", param_hint="--kill")
    if keep is not None and keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise typer.BadParameter(f"{keep} is not an empty folder", param_hint="--keep")


def demo(
    ctx: typer.Context,
    messages: Annotated[int, typer.Option(min=1, help="Messages in each direction.")] = 5000,
    size: CountedSize = 1024,
    rate: Annotated[float, typer.Option(min=1, help="Messages a second in each direction.")] = 500,
    direction: Annotated[str, typer.Option(help="out (group to R), in (R to group) or both.")] = "out",
    kill: Annotated[
        str,
        typer.Option(
            help="Whom, or how: initiator, queue-manager, member (both), pause (frozen, not dead), store (etcd's leader), "
            "network (paths to R cut), isolate (all paths cut), drain (a planned stop) or none."
        ),
    ] = "queue-manager",
    kills: Annotated[int, typer.Option(min=0, help="How often.")] = 5,
    store: Store = "embedded",
    seed: Annotated[int, typer.Option(help="For the moments of the kills.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="The last line of standard output is one JSON object.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Folder for data and logs (default: a temporary one, removed if all is well).", show_default=False)
    ] = None,
) -> None:
    """Runs a group X, Y, Z and a remote queue manager R, kills the owner of the channel under load, and gives a verdict.

    Exit code 0: every acknowledged message arrived exactly once and in order (what a getter whose session ended gave back
    may come later: `returned`). 1: not so, or it did not run to its end. 130: Ctrl-C.
    """
    _check(kill, direction, store, keep)
    plan = Plan(messages, size, rate, direction, kill, kills, seed)  # type: ignore[arg-type]
    console = Console(stderr=True) if json_output else Console()
    directory = keep.absolute() if keep else Path(tempfile.mkdtemp(prefix="qsg-demo-"))
    on_screen = console.is_terminal and not json_output
    clean = False
    try:
        with _logs(directory, verbose=bool(ctx.find_root().params.get("verbose"))):
            with Live(console=console, auto_refresh=False) if on_screen else contextlib.nullcontext() as live:
                result = uvloop.run(run_demo(plan, store, directory, Screen(console, live)))
        clean = result.clean
    except asyncio.CancelledError:
        console.print("interrupted; all processes have ended", highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if keep is None and clean:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            console.print(f"data and logs: {directory}", highlight=False, soft_wrap=True)
    if result.takeovers:
        console.print(takeover_table(result))
    console.print(verdict(result), highlight=False, soft_wrap=True)
    if json_output:
        sys.stdout.write(result.json() + "\n")
    raise typer.Exit(0 if result.clean else FAILED)
