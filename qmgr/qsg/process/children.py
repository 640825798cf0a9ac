"""Child processes that never outlive their parent, and ports for them.

Children are started by `subprocess` and not by an event loop: uvloop forks, and runs Python in the child before its program. There gRPC
waits now and then for threads that a fork does not copy, and the parent for the child, for ever (docs/decisions/0032).
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

# Runs before the child's own program: Linux kills it when the parent dies. (Not `preexec_fn`: forking with threads is unsafe.)
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    os._exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def bound_to_parent(argv: Sequence[str]) -> list[str]:
    """`argv` as a command that is killed when the thread that started it (so: the main thread) dies. The pid stays the program's."""
    return [sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *argv]


def start(argv: Sequence[str], log: Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """`argv` bound to us, its output appended to `log`; `env` None: ours. In a process group of its own, and no session: a terminal's
    Ctrl-C is for us, who stop it in order."""
    with log.open("ab") as out:
        return subprocess.Popen(bound_to_parent(argv), stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, process_group=0)


async def exit_of(process: subprocess.Popen[bytes]) -> int:
    """Its exit code once it has ended; negative: the signal that killed it. May be waited for by several at once."""
    if process.poll() is None:
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        handle = os.pidfd_open(process.pid)
        loop.add_reader(handle, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(handle)
            os.close(handle)
    return process.wait()


def free_ports(count: int) -> list[int]:
    """TCP ports on 127.0.0.1 that nobody listens at, outside the range from which the kernel takes ports of outgoing connections.

    Nothing keeps another process from taking one before it is used; whoever starts a server tries again with others then.
    """
    first_ephemeral = int(_PORT_RANGE.read_text().split()[0]) if _PORT_RANGE.exists() else 32_768
    candidates = range(10_000, max(first_ephemeral, 20_000))
    chooser = random.SystemRandom()
    ports: list[int] = []
    while len(ports) < count:
        port = chooser.choice(candidates)
        if port not in ports and _is_free(port):
            ports.append(port)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
