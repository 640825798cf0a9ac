"""The command line against a queue manager over gRPC."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from qsg.cli import common
from qsg.cli.common import channel_names, queue_names
from qsg.cli.main import build
from qsg.rules.definitions import MESSAGE_BYTES_MAX
from support.served import Served, served

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as running:
        yield running


@pytest.fixture
def qsg(server: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Runs a command; (exit code, standard output, standard error)."""
    monkeypatch.setenv("QSG_CONNECT", server.address)
    monkeypatch.setenv("COLUMNS", "200")
    runner = CliRunner()

    def run(*arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
        result = runner.invoke(build(list(arguments)), arguments, input=stdin)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.stdout, result.stderr

    yield run
    server.commands.clear()
    for queue in "AB":
        server.run(server.member.queues.purge(queue))


def test_put_browse_get(qsg: Run) -> None:
    assert qsg("put", "A", "hello", "--priority", "3", "--property", "kind=test", "--reply-to", "B")[0] == 0
    code, out, _ = qsg("browse", "A", "-o", "json")
    (shown,) = json.loads(out)

    assert code == 0
    assert (shown["payload"], shown["priority"], shown["properties"]) == ("hello", 3, {"kind": "test"})
    assert shown["reply_to"] == "B@G"
    assert "hello" in qsg("browse", "A")[1]
    assert qsg("get", "A") == (0, "hello\n", "")
    code, _, err = qsg("get", "A")
    assert code == 3
    assert "NO_MSG_AVAILABLE (2033)" in err


def test_put_nonpersistent_is_shown(qsg: Run) -> None:
    assert qsg("put", "A", "usual")[0] == 0
    assert "persistent" not in qsg("browse", "A")[1]
    assert qsg("put", "A", "marked", "--nonpersistent")[0] == 0

    assert [row["persistent"] for row in json.loads(qsg("browse", "A", "-o", "json")[1])] == [True, False]
    assert "persistent" in qsg("browse", "A")[1]
    messages = [json.loads(line) for line in qsg("get", "A", "--all", "-o", "json")[1].splitlines()]
    assert [message["persistent"] for message in messages] == [True, False]


def test_put_prints_ids_by_which_messages_are_got(qsg: Run) -> None:
    first, second = (qsg("put", "A", text)[1].strip() for text in ("1", "2"))

    assert len(first) == 48
    assert qsg("get", "A", "--message-id", second)[1] == "2\n"
    assert qsg("get", "A", "--message-id", second)[0] == 3


def test_lines_files_and_counts(qsg: Run, tmp_path: Path) -> None:
    file = tmp_path / "message"
    file.write_bytes(b"\xff\x00")
    assert qsg("put", "A", "--lines", stdin="1\n2\n3\n")[0] == 0
    assert json.loads(qsg("put", "A", "again", "--count", "1500", "-o", "json")[1])["messages"] == 1500
    assert qsg("put", "A", "--file", str(file))[0] == 0
    code, out, _ = qsg("get", "A", "--all", "-o", "json")
    messages = [json.loads(line) for line in out.splitlines()]

    assert code == 0
    assert [message.get("payload") for message in messages[:4]] == ["1", "2", "3", "again"]
    assert len(messages) == 1504
    assert messages[-1]["payload_base64"] == "/wA="
    assert qsg("get", "A", "--all") == (0, "", "")


def test_wrong_use(qsg: Run) -> None:
    assert qsg("put", "A", "x", "--property", "nonsense")[0] == 2
    assert qsg("get", "A", "--message-id", "xyz")[0] == 2
    assert qsg("put", "A", "x", "--priority", "10")[0] == 2
    assert qsg("channel", "stop", "C", "--mode", "terminate")[0] == 2


def test_unknown_queue(qsg: Run) -> None:
    code, out, err = qsg("put", "NO.SUCH", "x")
    assert (code, out) == (1, "")
    assert "UNKNOWN_OBJECT_NAME (2085)" in err
    assert "qsg queue list" in err
    code, out, err = qsg("put", "NO.SUCH", "x", "-o", "json")
    assert (code, json.loads(err)["reason"]) == (1, 2085)


def test_nobody_there(qsg: Run) -> None:
    code, _, err = qsg("put", "A", "x", "--connect", "not an address")

    assert code == 1
    assert "OPTIONS_ERROR (2046)" in err


def test_queue_life(qsg: Run) -> None:
    assert qsg("queue", "define", "NEW", "--structure", "app1", "--max-depth", "2")[0] == 0
    code, _, err = qsg("queue", "define", "NEW", "--structure", "app1", "--max-depth", "5")
    assert code == 1
    assert "OBJECT_ALREADY_EXISTS" in err
    assert qsg("queue", "alter", "NEW", "max_depth=3", "put_enabled=false")[0] == 0
    shown = json.loads(qsg("queue", "show", "NEW", "-o", "json")[1])
    assert (shown["max_depth"], shown["put_enabled"], shown["depth"]) == (3, False, 0)
    assert "PUT_INHIBITED (2051)" in qsg("put", "NEW", "x")[2]
    assert qsg("queue", "alter", "NEW", "put_enabled=true")[0] == 0
    assert qsg("put", "NEW", "x")[0] == 0
    code, _, err = qsg("queue", "delete", "NEW")
    assert code == 1
    assert "--purge" in err
    assert qsg("queue", "delete", "NEW", "--purge")[0] == 2
    assert qsg("queue", "delete", "NEW", "--purge", "--yes")[0] == 0
    assert qsg("queue", "show", "NEW")[0] == 1


def test_queue_list(qsg: Run) -> None:
    qsg("put", "A", "12345")
    rows = {row["name"]: row for row in json.loads(qsg("queue", "list", "-o", "json")[1])}
    table = qsg("queue", "list")[1]

    assert rows["A"]["depth"] == 1
    assert "app1" in table
    assert [row["name"] for row in yaml.safe_load(qsg("queue", "list", "B", "-o", "yaml")[1])] == ["B"]


def test_queue_purge(qsg: Run) -> None:
    qsg("put", "A", "x", "--count", "5")

    assert qsg("queue", "purge", "A")[0] == 2
    assert qsg("queue", "purge", "A", "--yes")[0] == 0
    assert json.loads(qsg("queue", "show", "A", "-o", "json")[1])["depth"] == 0


def test_definitions_that_are_wrong(qsg: Run) -> None:
    code, _, err = qsg("queue", "define", "X", "--type", "remote")
    assert code == 2
    assert "remote_queue_manager or transmission_queue" in err
    code, _, err = qsg("queue", "define", "X", "--set", "max_dept=5")
    assert code == 2
    assert "max_dept" in err
    assert qsg("channel", "define", "C", "--type", "sender", "-x", "R", "-n", "no-port")[0] == 2


def test_channel_definitions(qsg: Run) -> None:
    arguments = ("--type", "sender", "-x", "R", "-n", "r1:1414", "-n", "r2:1414", "--set", "retry.short_ms=500")
    assert qsg("channel", "define", "G.TO.R", *arguments)[0] == 0
    shown = json.loads(qsg("channel", "show", "G.TO.R", "-o", "json")[1])
    assert shown["connection_names"] == ["r1:1414", "r2:1414"]
    assert shown["retry"]["short_ms"] == 500
    assert "r1:1414, r2:1414" in qsg("channel", "list")[1]
    assert qsg("channel", "delete", "G.TO.R")[0] == 0
    assert qsg("channel", "show", "G.TO.R")[0] == 1


def test_channel_commands(qsg: Run, server: Served) -> None:
    assert "G.TO.R is RUNNING on X (bind refused)" in qsg("channel", "start", "G.TO.R")[1]
    assert qsg("channel", "stop", "G.TO.R", "--mode", "force", "--status", "inactive")[0] == 0
    assert qsg("channel", "resolve", "G.TO.R", "backout")[0] == 2
    assert "5 messages" in qsg("channel", "resolve", "G.TO.R", "commit", "--record", "ab.cd", "--yes")[1]
    assert "sequence number 9" in qsg("channel", "reset", "G.TO.R", "--sequence", "9")[1]
    assert "r:1414 answered in 1.5 ms" in qsg("channel", "ping", "G.TO.R")[1]
    assert server.commands[-1] == ("ping", {"channel": "G.TO.R", "bytes": 16})
    assert "r:1414 answered 2000 bytes in 1.5 ms" in qsg("channel", "ping", "G.TO.R", "--bytes", "2000")[1]
    code, told, _ = qsg("channel", "move", "G.TO.R", "--to", "X")
    assert (code, told.startswith("G.TO.R is RUNNING on X")) == (0, True)
    code, _, err = qsg("channel", "move", "G.TO.R", "--to", "Z")
    assert (code, "not seen to run on Z yet" in err) == (1, True)
    code, _, err = qsg("channel", "start", "NONE")

    assert code == 1
    assert "CHANNEL_NOT_FOUND (4032)" in err
    assert server.commands[:4] == [
        ("start", {"channel": "G.TO.R", "wait_s": 5.0}),
        ("stop", {"channel": "G.TO.R", "mode": "force", "status": "inactive", "wait_s": 10.0}),
        ("resolve", {"channel": "G.TO.R", "action": "commit", "record": "ab.cd", "force": False}),
        ("reset", {"channel": "G.TO.R", "sequence": 9}),
    ]


def test_status(qsg: Run) -> None:
    table = qsg("channel", "status")[1]
    assert "RUNNING" in table
    assert "17" in table
    assert json.loads(qsg("channel", "status", "G.TO.R", "-o", "json")[1])[0]["owner"] == "X"
    assert "as X sees it" in qsg("group", "status")[1]


def test_apply(qsg: Run, tmp_path: Path) -> None:
    file = tmp_path / "definitions.yaml"
    file.write_text("queues:\n- {name: APPLIED, structure: app1, max_depth: 5}\n- {name: ALIAS, type: alias, target: APPLIED}\n")
    dry = json.loads(qsg("apply", "-f", str(file), "--dry-run", "-o", "json")[1])
    assert qsg("queue", "show", "APPLIED")[0] == 1
    first = json.loads(qsg("apply", "-f", str(file), "-o", "json")[1])
    again = json.loads(qsg("apply", "-f", str(file), "-o", "json")[1])
    code, out, _ = qsg("apply", "-f", "-", stdin="queues: [{name: APPLIED, structure: app1, max_depth: 6}]")

    assert [row["result"] for row in dry] == [row["result"] for row in first] == ["defined", "defined"]
    assert [row["result"] for row in again] == ["unchanged", "unchanged"]
    assert code == 0
    assert "max_depth: 5 -> 6" in out


def test_apply_says_what_the_queue_manager_refused(qsg: Run) -> None:
    code, out, _ = qsg("apply", "-f", "-", "-o", "json", stdin="queues: [{name: LOST, structure: nowhere}, {name: FOUND, structure: app1}]")

    assert code == 1
    assert [row["result"] for row in json.loads(out)] == ["failed", "defined"]
    assert "nowhere" in json.loads(out)[0]["changes"]


def test_apply_says_what_is_wrong_and_where(qsg: Run, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("queues:\n- name: A\n  max_depth: -1\n- name: B B\nchannels:\n- name: C\n  type: sender\n")
    code, out, err = qsg("apply", "-f", str(file))
    told = " ".join(err.split())

    assert (code, out) == (2, "")
    assert "bad.yaml:3: queues[0] (A).max_depth" in told
    assert "bad.yaml:4: queues[1] (B B).name" in told
    assert "bad.yaml:6: channels[0] (C): a sender needs transmission_queue" in told
    assert qsg("apply", "-f", str(tmp_path / "none"))[0] == 2


@pytest.mark.parametrize("which", ["put", "get", "latency"])
def test_bench(qsg: Run, which: str) -> None:
    code, out, _ = qsg("bench", which, "--messages", "300", "--json", *(["--rate", "3000"] if which == "latency" else []))
    result = json.loads(out.splitlines()[-1])

    assert code == 0
    assert result["messages"] == 300
    assert result["rate_per_s"] > 0
    assert 0 < result["p50_ms"] <= result["p99_ms"]
    assert result["cpu_us_per_message"] > 0
    assert result["rss_mib"] > 0


@pytest.mark.parametrize(("which", "least"), [("put", 0), ("get", 0), ("latency", 8), ("drain", 22), ("flow", 22)])
def test_sizes_of_a_benchmark_are_those_that_the_product_allows(qsg: Run, which: str, least: int) -> None:
    """What a message must carry is its least size: it does not quietly become larger."""
    needed = ["--put-queue", "A", "--get-queue", "B"] if which == "flow" else []
    for size, told in (
        (least - 1, f"greater than or equal to {least}"),
        (MESSAGE_BYTES_MAX + 1, f"less than or equal to {MESSAGE_BYTES_MAX}"),
    ):
        code, _, err = qsg("bench", which, "--size", str(size), *needed)
        assert (code, told in err) == (2, True), err


def test_help_and_version(qsg: Run) -> None:
    code, out, _ = qsg("--help")
    assert code == 0
    for command in ("put", "get", "browse", "queue", "channel", "group", "apply", "bench", "store", "version"):
        assert command in out
    assert qsg("version")[1].strip()
    assert "--install-completion" in out


def test_names_are_completed(qsg: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "COMPLETION_S", 60.0)  # a machine that stands still completes nothing
    assert "A" in queue_names("A")
    assert "B" not in queue_names("A")
    assert channel_names("") == []
    monkeypatch.setattr(common, "COMPLETION_S", 0.2)
    monkeypatch.setenv("QSG_CONNECT", "127.0.0.1:1")
    assert queue_names("A") == []
