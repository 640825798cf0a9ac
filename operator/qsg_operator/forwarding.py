"""kubectl as the plugin uses it: questions answered in JSON, and ports forwarded to pods while a command runs.

Owns the processes of kubectl. Invariant: a forward listens on the loopback address only, at a port that the kernel chose, and is ended with
the stack that it was opened on. Not guaranteed: that it lives as long as its pod does not; whoever uses it must bear its end.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import IO, Any

LISTENS = re.compile(rb"Forwarding from 127\.0\.0\.1:(\d+) ->")
ANSWER_S = 30.0


class KubectlFailed(Exception):
    """What kubectl said."""


@dataclass(frozen=True)
class Kubectl:
    command: tuple[str, ...] = ("kubectl",)

    @classmethod
    def of(cls, namespace: str, context: str, kubeconfig: str) -> Kubectl:
        options = {"--namespace": namespace, "--context": context, "--kubeconfig": kubeconfig}
        base = tuple(shlex.split(os.environ.get("KUBECTL", ""))) or ("kubectl",)
        return cls((*base, *(f"{name}={value}" for name, value in options.items() if value)))

    def within(self, namespace: str) -> Kubectl:
        others = tuple(part for part in self.command if not part.startswith("--namespace="))
        return replace(self, command=(*others, f"--namespace={namespace}"))

    def json(self, *arguments: str) -> Any:
        """Raises `KubectlFailed`."""
        try:
            done = subprocess.run([*self.command, *arguments, "-o", "json"], capture_output=True, timeout=ANSWER_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise KubectlFailed(f"kubectl: {error}") from error
        if done.returncode:
            raise KubectlFailed(done.stderr.decode(errors="replace").strip() or f"kubectl ended with {done.returncode}")
        return json.loads(done.stdout)

    def forwarded(self, pods: Sequence[str], port: int, stack: ExitStack) -> list[str]:
        """Addresses of this machine that lead to `port` of the pods; those that can be had. Raises `KubectlFailed` when none can."""
        forwards = [
            stack.enter_context(_Forward([*self.command, "port-forward", f"pod/{pod}", f":{port}", "--address=127.0.0.1"])) for pod in pods
        ]
        addresses = [address for one in forwards if (address := one.address())]
        if not addresses:
            raise KubectlFailed("; ".join(one.problem() for one in forwards))
        return addresses


class _Forward:
    def __init__(self, command: list[str]) -> None:
        self._errors: IO[bytes] = tempfile.TemporaryFile()
        self._port = b""
        self._told = threading.Event()
        try:
            # A session of its own: Ctrl-C is for the command, which may need the way to end well.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._errors, start_new_session=True
            )
        except OSError as error:
            raise KubectlFailed(f"kubectl: {error}") from error
        self._reader = threading.Thread(target=self._read, name="kubectl port-forward", daemon=True)

    def __enter__(self) -> _Forward:
        self._reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join(5)
        self._errors.close()

    def _read(self) -> None:
        """To its end: kubectl says a line for each connection, and must not be held up by a full pipe."""
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                if (match := LISTENS.search(line)) is not None:
                    self._port = match[1]
                    self._told.set()
        self._told.set()

    def address(self) -> str:
        """ "" = it does not come about."""
        self._told.wait(ANSWER_S)
        return f"127.0.0.1:{self._port.decode()}" if self._port else ""

    def problem(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip() or "kubectl port-forward does not answer"
