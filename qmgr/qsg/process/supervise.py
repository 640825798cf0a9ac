"""A supervisor of child processes: starts them, starts them again when they end, hurts them on request, and stops them in order.

Children die with this process, whatever ends it (Linux), so start them from the main thread. Each child's output is appended to
`<log directory>/<name>.log`.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from qsg.process.children import exit_of, start

log = structlog.get_logger()

_RESTART_S = 0.3
_RESTART_MAX_S = 5.0
_STEADY_S = 10.0
"""A child that ran so long starts again without a longer delay."""


class Child:
    """One named child, through all its starts."""

    def __init__(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None, log_path: Path, *, restart: bool) -> None:
        self.name = name
        self.starts = 0
        self.exit_code: int | None = None
        """Of the last run that ended; negative: the signal that killed it."""
        self.restart = restart
        self.process: subprocess.Popen[bytes] | None = None
        self._argv = list(argv)
        self._env = dict(env) if env is not None else None
        self._log_path = log_path
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    async def start(self) -> None:
        self._spawn()
        self._task = asyncio.get_running_loop().create_task(self._keep())

    def _spawn(self) -> None:
        self.process = start(self._argv, self._log_path, self._env)
        self.starts += 1

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        delay_s = _RESTART_S
        while self.process is not None:
            started = clock()
            self.exit_code = await exit_of(self.process)
            if self._stopping or not self.restart:
                return
            if clock() - started >= _STEADY_S:
                delay_s = _RESTART_S
            log.info("child ended, will be started again", child=self.name, exit_code=self.exit_code, delay_s=delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, _RESTART_MAX_S)
            try:
                self._spawn()
            except OSError as error:  # as when there are too many processes: tried again like a child that ended at once
                log.error("child cannot be started", child=self.name, error=str(error))

    async def wait(self) -> int:
        """Until it has ended for good; its exit code."""
        assert self._task is not None, "not started"
        await asyncio.wait([self._task])
        if not self._task.cancelled():
            self._task.result()
        assert self.exit_code is not None
        return self.exit_code

    async def stop(self, timeout_s: float) -> None:
        """SIGTERM, and SIGKILL when that is not enough in time. It stays stopped."""
        self._stopping = True
        if self._task is None or self.process is None:
            return
        if not self.running:  # between two starts
            self.exit_code = self.process.returncode
            self._task.cancel()
        else:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            try:
                async with asyncio.timeout(timeout_s):
                    await exit_of(self.process)
            except TimeoutError:
                log.warning("child does not stop, killed", child=self.name)
                self.signal(signal.SIGKILL)
            except asyncio.CancelledError:
                self.signal(signal.SIGKILL)
                raise
        await asyncio.gather(self._task, return_exceptions=True)

    def signal(self, number: signal.Signals) -> bool:
        """False if it is not running now."""
        if not self.running:
            return False
        assert self.process is not None
        self.process.send_signal(number)
        return True


class Supervisor:
    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._children: dict[str, Child] = {}

    @property
    def names(self) -> list[str]:
        """In the order of their first start."""
        return list(self._children)

    def child(self, name: str) -> Child:
        return self._children[name]

    async def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None, restart: bool = True) -> Child:
        """Starts a child under a name that is new, or whose last child was stopped or ended for good."""
        before = self._children.get(name)
        assert before is None or not before.running, f"{name} runs already"
        self._log_directory.mkdir(parents=True, exist_ok=True)
        child = Child(name, argv, env, self._log_directory / f"{name}.log", restart=restart)
        self._children[name] = child
        await child.start()
        return child

    def signal(self, name: str, number: signal.Signals) -> bool:
        """Sends SIGKILL, SIGSTOP, SIGCONT, ...; a child that it ends is started again. False if it is not running now."""
        return self._children[name].signal(number)

    def kill(self, name: str) -> bool:
        return self.signal(name, signal.SIGKILL)

    def pause(self, name: str) -> bool:
        return self.signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> bool:
        return self.signal(name, signal.SIGCONT)

    async def stop_child(self, name: str, timeout_s: float = 5.0) -> None:
        """Ends one for good."""
        await self._children[name].stop(timeout_s)

    async def stop(self, timeout_s: float = 10.0) -> None:
        """Ends all, the last started first, each given what is left of `timeout_s`; then they are killed."""
        clock = asyncio.get_running_loop().time
        until = clock() + timeout_s
        for child in reversed(list(self._children.values())):
            await child.stop(max(until - clock(), 0.05))
