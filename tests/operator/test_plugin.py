"""`kubectl qsg`: the command line through a stand-in for kubectl, to a real queue manager over TLS; and what it does when it cannot."""

from __future__ import annotations

import base64
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from qsg.transport.tls import TlsFiles
from qsg_operator import authority, certificates, names, plugin
from qsg_operator.plugin import NotFound, certificate_files, choose, ready, secret_of
from support.served import served

STAND_IN = """
import json, os, signal, sys, time
at = os.environ["STAND_IN"]
state = json.load(open(at))
arguments = [a for a in sys.argv[1:] if not a.startswith("--")]
def note(text):
    with open(at + ".log", "a") as log:
        log.write(text + "\\n")
note(" ".join(sys.argv[1:]))
if arguments[0] == "port-forward":
    pod = arguments[1].partition("/")[2]
    if pod in state["broken"]:
        sys.exit(f"error: pod {pod} is gone")
    def end(*_):
        note(f"ended {pod}")
        os._exit(0)
    signal.signal(signal.SIGTERM, end)
    print(f"Forwarding from 127.0.0.1:{state['port']} -> 1416", flush=True)
    time.sleep(60)
what = arguments[1]
if what not in state:
    sys.exit(f'Error from server (Forbidden): {what} is forbidden')
print(json.dumps(state[what]))
"""
RESOURCES = "queuesharinggroups.qsg.dev,queuemanagers.qsg.dev"


def resource(kind: str, name: str, **tls: str) -> dict[str, Any]:
    return {"kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": {"tls": tls} if tls else {}}


def pod(name: str, *, is_ready: bool = True, **meta: str) -> dict[str, Any]:
    status = {"conditions": [{"type": "Ready", "status": str(is_ready)}]}
    return {"metadata": {"name": name, **meta}, "status": status}


ORDERS, BANK = resource(names.QUEUE_SHARING_GROUP, "orders"), resource(names.QUEUE_MANAGER, "bank", mode="Managed")


class Stage:
    """A folder with the stand-in, whose state a test may change."""

    def __init__(self, folder: Path, port: str, secret: dict[str, bytes]) -> None:
        self.folder = folder
        self.file = folder / "state.json"
        (folder / "kubectl.py").write_text(STAND_IN)
        (folder / "run").mkdir()
        data = {name: base64.b64encode(value).decode() for name, value in secret.items()}
        self.state: dict[str, Any] = {
            "port": port,
            "broken": [],
            RESOURCES: {"items": [ORDERS, BANK]},
            "pods": {"items": [pod("orders-0"), pod("orders-1"), pod("orders-2", is_ready=False)]},
            "secret": {"metadata": {"name": "orders-client-tls"}, "data": data},
        }

    def __call__(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command, environment = self.prepared(*arguments)
        return subprocess.run(command, env=environment, input=stdin, capture_output=True, text=True, timeout=50, check=False)

    def prepared(self, *arguments: str) -> tuple[list[str], dict[str, str]]:
        """Command and environment."""
        self.file.write_text(json.dumps(self.state))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("QSG_")} | {
            "KUBECTL": f"{sys.executable} {self.folder / 'kubectl.py'}",
            "STAND_IN": str(self.file),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
        }
        return [sys.executable, "-m", "qsg_operator.plugin", *arguments], environment

    @property
    def log(self) -> list[str]:
        return Path(f"{self.file}.log").read_text().splitlines()


@pytest.fixture(scope="module")
def pems() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The members' certificate, which does not say localhost, and the applications'."""
    now = datetime.now(UTC)
    signer = authority.new_authority("shop/qsg-ca", now)
    server = certificates.Leaf("ORDERS", ("orders-client.shop.svc",))
    return certificates.issued(server, None, signer, now), certificates.issued(certificates.Leaf("orders-client"), None, signer, now)


@pytest.fixture
def stage(tmp_path: Path, pems: tuple[dict[str, bytes], dict[str, bytes]]) -> Iterator[Stage]:
    members, applications = pems
    paths = [tmp_path / name for name in (certificates.CA, certificates.CERTIFICATE, certificates.KEY)]
    for path in paths:
        path.write_bytes(members[path.name])
    with served(TlsFiles(*paths)) as server:
        yield Stage(tmp_path, server.address.rpartition(":")[2], applications)


def test_commands_go_to_the_group_with_the_applications_certificate(stage: Stage, tmp_path: Path) -> None:
    stage.state["broken"] = ["orders-0"]
    (tmp_path / "text").write_text("from a file of mine")
    done = stage("-n", "shop", "put", "A", "--file", str(tmp_path / "text"))
    assert done.returncode == 0, done.stderr
    got = stage("get", "A")
    assert (got.returncode, got.stdout) == (0, "from a file of mine\n"), got.stderr
    assert stage("get", "A").returncode == 3, "the exit code is the command's"

    asked = stage.log
    assert asked[0] == f"--namespace=shop get {RESOURCES} -o json"
    assert "app.kubernetes.io/instance=orders" in asked[1] and "qsg.dev/kind=QueueSharingGroup" in asked[1]
    assert asked[2] == "--namespace=shop get secret orders-client-tls -o json"
    assert "--namespace=shop port-forward pod/orders-1 :1416 --address=127.0.0.1" in asked
    assert asked.count("ended orders-1") == 3, "no kubectl is left behind"
    assert list((tmp_path / "run").iterdir()) == [], "nor the key"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_command_that_is_ended_leaves_nothing_behind(stage: Stage, tmp_path: Path, number: signal.Signals) -> None:
    command, environment = stage.prepared("get", "A", "--wait-ms", "60000")
    # Under nohup it would be ignored, and rightly so.
    heed = f"import os, signal, sys; signal.signal({int(number)}, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-S", "-c", heed, *command]
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as process:
        keys = tmp_path / "run"
        until = time.monotonic() + 30
        while not list(keys.glob("*/tls.key")) or sum("port-forward" in line for line in stage.log) < 2:
            assert time.monotonic() < until and process.poll() is None
            time.sleep(0.02)
        time.sleep(0.5)  # on its way to the member, or waiting there
        process.send_signal(number)
        assert process.wait(20) == 128 + number
    assert {"ended orders-0", "ended orders-1"} <= set(stage.log), "no kubectl is left behind"
    assert list(keys.iterdir()) == [], "nor the key"


def test_what_is_missing_is_said(stage: Stage) -> None:
    def told(*arguments: str) -> str:
        done = stage(*arguments, "channel", "status")
        assert done.returncode == 4
        return done.stderr

    assert "there is no QueueSharingGroup order here; there is: --group orders, --queue-manager bank" in told("--group", "order")
    stage.state["broken"] = ["orders-0", "orders-1"]
    assert "pod orders-1 is gone" in told()
    del stage.state["secret"]
    assert "secret is forbidden" in told()
    stage.state["pods"] = {"items": [pod("orders-0", is_ready=False), pod("orders-1", deletionTimestamp="now")]}
    assert "no pod of orders is ready: `kubectl describe queuesharinggroups orders -n shop`" in told()
    assert stage("serve").returncode == 2, "that is no command for a cluster"


def test_which_is_meant() -> None:
    second = resource(names.QUEUE_SHARING_GROUP, "returns")
    assert choose([ORDERS, BANK], "", "") is ORDERS
    assert choose([BANK], "", "") is BANK
    assert choose([ORDERS, second, BANK], "returns", "") is second
    assert choose([ORDERS, second, BANK], "", "bank") is BANK
    for found, problem in (([ORDERS, second], "which one"), ([], "no group and no queue manager")):
        with pytest.raises(NotFound, match=problem):
            choose(found, "", "")


def test_which_secret_and_which_pods() -> None:
    assert secret_of(ORDERS) == "orders-client-tls" and secret_of(BANK) == "bank-qm-client-tls"
    assert secret_of(resource(names.QUEUE_MANAGER, "q", mode="Off")) == ""
    assert secret_of(resource(names.QUEUE_MANAGER, "q", mode="Secret", secretName="mine")) == "mine"
    assert ready([pod("a"), pod("b", is_ready=False), pod("c", deletionTimestamp="now"), {"metadata": {"name": "d"}}]) == ["a"]


def test_keys_are_for_this_user_only(tmp_path: Path) -> None:
    data = {name: base64.b64encode(b"x").decode() for name in ("ca.crt", "tls.crt", "tls.key")}
    found = certificate_files(tmp_path, {"metadata": {"name": "s"}, "data": data})
    assert set(found) == {"QSG_CA", "QSG_CERTIFICATE", "QSG_KEY"}
    assert all(stat.S_IMODE(Path(path).stat().st_mode) == 0o600 for path in found.values())
    with pytest.raises(NotFound, match=r"Secret s has no ca\.crt"):
        certificate_files(tmp_path, {"metadata": {"name": "s"}})


def test_certificates_of_another_target_are_not_used_for_one_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QSG_CA", "/of/another")
    monkeypatch.setenv("QSG_CONNECT", "another:1416")
    monkeypatch.setattr(plugin, "_ENDINGS", ())
    monkeypatch.setattr(plugin, "way", lambda *_: {"QSG_CONNECT": "127.0.0.1:1"})
    monkeypatch.setattr("qsg.cli.main.build", lambda _: lambda **_: None)
    with pytest.raises(SystemExit):
        plugin.main(["queue"])
    assert "QSG_CA" not in os.environ and os.environ["QSG_CONNECT"] == "127.0.0.1:1"
