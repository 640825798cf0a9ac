"""A real etcd cluster of one or three members on this machine, for tests, demonstrations and development.

Its members can be killed, frozen, woken and started again one by one. They die with the process that started them (with its main
thread, so start them there). It belongs to no event loop: what one loop started can be used and stopped in another.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import shutil
import signal
import ssl
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qsg.process.children import free_ports, start
from qsg.process.etcd_binary import ensure

_START_S = 60.0
_STOP_S = 10.0
"""etcd itself waits some 6 s for streams to end before it hands over."""
_ASK_S = 0.5
_WORK_S = 10.0
_POLL_S = 0.02
_STARTS = 3


class EtcdFailed(Exception):
    """A member did not start, or the cluster did not become ready; the text has the end of a log."""


@dataclass(frozen=True, slots=True)
class ServerTls:
    """PEM files. Clients need a certificate of `client_ca`; the server's own must be one, too."""

    cert: Path
    key: Path
    client_ca: Path

    def arguments(self) -> list[str]:
        return [f"--cert-file={self.cert}", f"--key-file={self.key}", "--client-cert-auth", f"--trusted-ca-file={self.client_ca}"]

    def context(self) -> ssl.SSLContext:
        """To ask a member whether it is ready."""
        context = ssl.create_default_context(cafile=self.client_ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # Python 3.13's default asks more of an authority than etcd and gRPC do
        context.load_cert_chain(self.cert, self.key)
        return context


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """etcd's own settings; the defaults suit 64 to 256 KiB values and one site."""

    heartbeat_ms: int = 50
    election_ms: int = 500
    quota_bytes: int = 8 << 30
    snapshot_count: int = 500
    max_request_bytes: int = 1_572_864
    max_txn_operations: int = 128
    fsync: bool = True
    tls: ServerTls | None = None
    extra: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        return [
            f"--heartbeat-interval={self.heartbeat_ms}",
            f"--election-timeout={self.election_ms}",
            f"--quota-backend-bytes={self.quota_bytes}",
            f"--snapshot-count={self.snapshot_count}",
            f"--max-request-bytes={self.max_request_bytes}",
            f"--max-txn-ops={self.max_txn_operations}",
            "--auto-compaction-mode=periodic",
            "--auto-compaction-retention=1m",
            "--experimental-compaction-batch-limit=100",  # of this name from 3.5 on; see docs/decisions/0025
            "--logger=zap",
            "--log-level=warn",
            "--log-outputs=stderr",
            *(self.tls.arguments() if self.tls else []),
            *([] if self.fsync else ["--unsafe-no-fsync"]),
            *self.extra,
        ]


@dataclass(slots=True)
class Member:
    name: str
    directory: Path
    client_port: int
    peer_port: int
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    """Started, and not ended by us since."""

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self.client_port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class EtcdCluster:
    """`members` (1 or 3) etcd servers with their data under `directory`. `binary`: see `qsg.process.etcd.ensure`."""

    def __init__(self, directory: Path, *, members: int = 1, options: EtcdOptions | None = None, binary: Path | None = None) -> None:
        assert members in (1, 3, 5)
        self.options = options or EtcdOptions()
        self._binary = binary
        self._directory = directory
        self._count = members
        self.members: list[Member] = []

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    async def start(self) -> None:
        """Starts all members, on empty directories, and waits until they serve. With other ports if somebody took one meanwhile."""
        if self._binary is None:
            self._binary = await asyncio.to_thread(ensure)
        for attempt in range(_STARTS):
            self._lay_out()
            for index in range(self._count):
                self._launch(index)
            try:
                await asyncio.to_thread(self.wait_ready)
            except EtcdFailed:
                self.kill_all()
                if attempt == _STARTS - 1:
                    raise
            else:
                return

    async def restart(self, index: int) -> None:
        """Starts a member that has ended, on its data, and waits until it serves."""
        self._launch(index)
        await asyncio.to_thread(self.wait_ready)

    async def restart_dead(self) -> None:
        """Starts all that have ended."""
        dead = [index for index, member in enumerate(self.members) if not member.running]
        for index in dead:
            self._launch(index)
        if dead:
            await asyncio.to_thread(self.wait_ready)

    async def leader(self) -> int:
        """Index of the leader; waits for an election. Raises `EtcdFailed` if there is none for long."""
        return await asyncio.to_thread(self.wait_leader)

    async def stop(self) -> None:
        """Ends all at once. Their data stay."""
        await asyncio.to_thread(self.kill_all)

    def _lay_out(self) -> None:
        ports = free_ports(2 * self._count)
        self.members = [
            Member(f"etcd{i}", self._directory / f"etcd{i}", client_port=ports[2 * i], peer_port=ports[2 * i + 1])
            for i in range(self._count)
        ]
        for member in self.members:
            shutil.rmtree(member.directory, ignore_errors=True)
            member.directory.mkdir(parents=True)

    def _launch(self, index: int) -> None:
        member = self.members[index]
        assert not member.running, f"{member.name} runs already"
        assert self._binary is not None, "not started"
        client, peer = f"{self._scheme}://{member.endpoint}", f"http://127.0.0.1:{member.peer_port}"
        arguments = [
            str(self._binary),
            f"--name={member.name}",
            f"--data-dir={member.directory / 'data'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            "--initial-cluster=" + ",".join(f"{m.name}=http://127.0.0.1:{m.peer_port}" for m in self.members),
            f"--initial-cluster-token={self._directory.name}",
            *self.options.arguments(),
        ]
        member.wanted = True
        member.process = start(arguments, self.log(index))

    @property
    def _scheme(self) -> str:
        return "https" if self.options.tls else "http"

    def log(self, index: int) -> Path:
        return self.members[index].directory / "log"

    def wait_ready(self, timeout_s: float = _START_S) -> None:
        """Until every member serves reads and so knows a leader; those that we ended are left out."""
        until = time.monotonic() + timeout_s
        for index, member in enumerate(self.members):
            while member.wanted and not self.ready(index):
                gone = not member.running
                if gone or time.monotonic() > until:
                    lines = self.log(index).read_text(errors="replace").splitlines()[-5:]
                    raise EtcdFailed(f"{member.name} {'ended' if gone else 'is not ready'}:\n" + "\n".join(lines))
                time.sleep(_POLL_S)

    def ready(self, index: int) -> bool:
        answer = self._ask(index, "GET", "/health")
        return answer is not None and answer.get("health") == "true"

    def wait_leader(self, timeout_s: float = _START_S) -> int:
        until = time.monotonic() + timeout_s
        while (index := self.find_leader()) is None:
            if time.monotonic() > until:
                raise EtcdFailed("no leader")
            time.sleep(_POLL_S)
        return index

    def find_leader(self) -> int | None:
        """Index of the member that says so itself in the highest term; None while there is none."""
        best: tuple[int, int] | None = None
        for index, member in enumerate(self.members):
            answer = self._ask(index, "POST", "/v3/maintenance/status") if member.running else None
            if answer is not None and answer.get("leader") == answer["header"]["member_id"]:
                best = max(best or (0, 0), (int(answer["raftTerm"]), index))
        return best[1] if best else None

    # What an operator does, or forgets

    # Each answers whether it is known to be done: a member that is slow, frozen or dead does not say.

    async def compact(self, index: int = 0) -> bool:
        """Forgets all history, at once: every watch that lags behind is cut off."""
        newest = await self._work(index, "/v3/kv/range", {"key": "AA==", "count_only": True})  # not what this member has heard of
        if newest is None:
            return False
        body = {"revision": newest["header"]["revision"], "physical": True}
        told = await asyncio.to_thread(self._ask, index, "POST", "/v3/kv/compaction", body, _WORK_S)
        return told is not None and ("code" not in told or "has been compacted" in told["message"])  # there was nothing newer

    async def defragment(self, index: int) -> bool:
        """The member answers nobody meanwhile."""
        return await self._work(index, "/v3/maintenance/defragment", {}) is not None

    async def has_room(self, index: int) -> bool:
        """Its file, which the quota counts, is small."""
        status = await self._work(index, "/v3/maintenance/status", {})
        return status is not None and int(status["dbSize"]) < self.options.quota_bytes // 2

    async def disarm(self, index: int = 0) -> bool:
        """Ends the alarms that a full quota has raised; they would stay, also when there is room again. Done when there is none left."""
        path = "/v3/maintenance/alarm"
        told = await self._work(index, path, {"action": "GET"})
        alarms = [] if told is None else told.get("alarms", [])
        for alarm in alarms:
            await self._work(index, path, {"action": "DEACTIVATE", **alarm})
        return told is not None and not alarms

    async def _work(self, index: int, path: str, body: dict[str, Any]) -> dict[str, Any] | None:
        """What the member answers when it has done it."""
        told = await asyncio.to_thread(self._ask, index, "POST", path, body, _WORK_S)
        return None if told is None or "code" in told else told

    def _ask(
        self, index: int, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = _ASK_S
    ) -> dict[str, Any] | None:
        port = self.members[index].client_port
        connection = (
            http.client.HTTPSConnection("127.0.0.1", port, timeout=timeout_s, context=self.options.tls.context())
            if self.options.tls
            else http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        )
        with contextlib.closing(connection):
            try:
                connection.request(method, path, body=json.dumps(body or {}) if method == "POST" else None)
                answer = json.loads(connection.getresponse().read())
            except (OSError, http.client.HTTPException, json.JSONDecodeError):
                return None
        return answer if isinstance(answer, dict) else None

    def send(self, index: int, number: signal.Signals) -> None:
        process = self.members[index].process
        assert process is not None, "never started"
        process.send_signal(number)

    def kill(self, index: int) -> None:
        """Kills it and waits until it is gone."""
        self.send(index, signal.SIGKILL)
        member = self.members[index]
        assert member.process is not None
        member.process.wait()
        member.wanted = False

    def freeze(self, index: int) -> None:
        self.send(index, signal.SIGSTOP)

    def wake(self, index: int) -> None:
        self.send(index, signal.SIGCONT)

    def terminate(self, index: int) -> None:
        """Asks it to end (a leader hands over first) and waits; kills it when that takes too long."""
        self.members[index].wanted = False
        process = self.members[index].process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def kill_all(self) -> None:
        for member in self.members:
            if member.process is not None and member.process.poll() is None:
                member.process.kill()
        for member in self.members:
            if member.process is not None:
                member.process.wait()
            member.wanted = False

    def destroy(self) -> None:
        """Ends all and removes their data."""
        self.kill_all()
        shutil.rmtree(self._directory, ignore_errors=True)
