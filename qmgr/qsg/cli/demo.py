"""`qsg demo`: kills the owner of a channel again and again, and shows that nothing is lost or sent twice."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from qsg.process.demo import KILLS, Demo, Plan, Result
from qsg.process.local import LocalGroup


class Screen:
    """What a person sees while the demo runs: the owners, depths and counts, and a line for each event."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self._console = console
        self._live = live
        self._shown_takeovers = 0
        self._last = (0.0, 0)
        self._rate = 0.0

    def __call__(self, demo: Demo, text: str) -> None:
        if text:
            self._console.print(f"[dim]{time.strftime('%H:%M:%S')}[/dim] {text}", highlight=False)
        if self._live is not None:
            self._live.update(self._render(demo))

    def _render(self, demo: Demo) -> Group:
        now, arrived = time.monotonic(), sum(len(d.ledger.arrivals) for d in demo.directions)
        if now - self._last[0] > 0.5:
            self._rate = (arrived - self._last[1]) / (now - self._last[0]) if self._last[0] else 0.0
            self._last = (now, arrived)
        channels = Table(title=f"{arrived} arrived, {self._rate:.0f} msg/s, {len(demo.takeovers)} takeovers", title_justify="left")
        for column in ("channel", "owner", "status", "epoch", "takeovers"):
            channels.add_column(column)
        for name, status in sorted(demo.status.items()):
            channels.add_row(name, *(str(status.get(k, "")) for k in ("owner", "state", "epoch", "takeovers")))
        traffic = Table()
        for column in ("direction", "sent", "acknowledged", "arrived", "depth"):
            traffic.add_column(column, justify="right")
        for d in demo.directions:
            ledger = d.ledger
            row = (ledger.sent_total, ledger.acknowledged_total, len(ledger.arrivals), demo.depths.get(d.name, 0))
            traffic.add_row(d.name, *map(str, row))
        return Group(channels, traffic)


def takeover_table(result: Result) -> Table:
    table = Table(title="takeovers (ms)")
    for column in ("cause", "channel", "from", "to", "detect", "claim", "resume", "gap", "worst wait"):
        table.add_column(column)
    for t in result.takeovers:
        numbers = (t.detect_ms, t.claim_ms, t.resume_ms, t.gap_ms, t.worst_wait_ms)
        table.add_row(t.cause, t.channel, t.from_, t.to, *(f"{n:.0f}" for n in numbers))
    return table


def verdict(result: Result) -> str:
    c = result.counts
    figures = (
        f"sent {c.sent}, acknowledged {c.acknowledged}, received {c.received}, ok {c.ok}, lost {c.lost}, duplicated {c.duplicated}, "
        f"unexpected {c.unexpected}, out of order {c.out_of_order}; {result.duplicates_suppressed} duplicates suppressed, "
        f"{result.fenced_writes} writes fenced; longest gap {result.max_gap_ms:.0f} ms, longest wait {result.worst_wait_ms:.0f} ms, "
        f"{result.rate_per_s:.0f} msg/s"
    )
    head = "[bold green]EXACTLY ONCE[/bold green]" if result.clean else "[bold red]BROKEN[/bold red]"
    return f"{head}: {figures}" + (f"\n[red]{result.error}[/red]" if result.error else "")


async def run_demo(plan: Plan, store: str, directory: Path, screen: Screen) -> Result:
    group = LocalGroup(directory, store=store)
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await group.start()
        return await Demo(group, plan, watch=screen).run()
    finally:
        await group.stop()


def demo(
    messages: Annotated[int, typer.Option(min=1, help="Messages in each direction.")] = 5000,
    size: Annotated[int, typer.Option(min=0, max=1_000_000, help="Bytes of a message.")] = 1024,
    rate: Annotated[float, typer.Option(min=1, help="Messages a second in each direction.")] = 500,
    direction: Annotated[str, typer.Option(help="out (group to R), in (R to group) or both.")] = "out",
    kill: Annotated[str, typer.Option(help=f"Whom to kill: {', '.join(KILLS)}.")] = "queue-manager",
    kills: Annotated[int, typer.Option(min=0, help="How often.")] = 5,
    store: Annotated[str, typer.Option(help="embedded, etcd (three members are started) or etcd://host:port,…")] = "embedded",
    seed: Annotated[int, typer.Option(help="For the moments of the kills.")] = 1,
    json_output: Annotated[bool, typer.Option("--json", help="The last line is one JSON object.")] = False,
    keep: Annotated[Path | None, typer.Option(help="Folder for data and logs (default: a temporary one, removed if all is well).")] = None,
) -> None:
    """Runs a group X, Y, Z and a remote queue manager R, kills the owner of the channel under load, and gives a verdict."""
    if kill not in KILLS:
        raise typer.BadParameter(f"one of {', '.join(KILLS)}", param_hint="--kill")
    if direction not in ("out", "in", "both"):
        raise typer.BadParameter("out, in or both", param_hint="--direction")
    if store not in ("embedded", "etcd") and not store.startswith("etcd://"):
        raise typer.BadParameter("embedded, etcd or etcd://host:port,…", param_hint="--store")
    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise typer.BadParameter(f"{keep} is not empty", param_hint="--keep")
    plan = Plan(messages, size, rate, direction, kill, kills, seed)  # type: ignore[arg-type]
    console = Console(stderr=True) if json_output else Console()
    directory = keep or Path(tempfile.mkdtemp(prefix="qsg-demo-"))
    result: Result | None = None
    try:
        if console.is_terminal and not json_output:
            with Live(console=console, refresh_per_second=5) as live:
                result = asyncio.run(run_demo(plan, store, directory, Screen(console, live)))
        else:
            result = asyncio.run(run_demo(plan, store, directory, Screen(console, None)))
    except asyncio.CancelledError:
        raise typer.Exit(130) from None
    finally:
        if keep is None and result is not None and result.clean:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            console.print(f"data and logs: {directory}", highlight=False)
    console.print(takeover_table(result))
    console.print(verdict(result), highlight=False)
    if json_output:
        sys.stdout.write(result.json() + "\n")
    raise typer.Exit(0 if result.clean else 1)
