"""Forms of output and of errors, and what the shell completes, without a queue manager."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

import qsg
from qsg.cli import channels, common
from qsg.cli.common import Format
from qsg.cli.main import build

NOBODY = ("--connect", "127.0.0.1:1")
PARSE: dict[str, Callable[[str], Any]] = {"json": json.loads, "yaml": yaml.safe_load}


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(build(list(arguments)), arguments, env={"COLUMNS": "200", **environment}, prog_name="qsg")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


class Answering:
    async def __aenter__(self) -> Answering:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


def watched(monkeypatch: pytest.MonkeyPatch, form: Format, capsys: pytest.CaptureFixture[str]) -> str:
    """What `--watch` writes in two rounds, before Ctrl-C."""
    rounds = 0

    async def ask(_: Any) -> list[dict[str, int]]:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            raise KeyboardInterrupt
        return [{"round": rounds}, {"round": rounds}]

    monkeypatch.setattr(qsg, "connect", lambda *_, **__: Answering())
    with pytest.raises(typer.Exit):
        common.show("", form, ask, lambda data: data, watch=True, interval_s=0.0)
    return capsys.readouterr().out


def test_watched_yaml_is_a_document_each_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    documents = list(yaml.safe_load_all(watched(monkeypatch, Format.YAML, capsys)))
    assert documents == [[{"round": 1}, {"round": 1}], [{"round": 2}, {"round": 2}]]


def test_watched_json_is_a_line_each_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [json.loads(line) for line in watched(monkeypatch, Format.JSON, capsys).splitlines()]
    assert lines == [[{"round": 1}, {"round": 1}], [{"round": 2}, {"round": 2}]]


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_errors_have_the_form_that_was_asked_for(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    left = common.fail(qsg.NoMessageAvailable("nothing: here"), Format(form))
    told = capsys.readouterr()
    assert (left.exit_code, told.out) == (common.NO_MESSAGE, "")
    assert PARSE[form](told.err) == {"error": "NO_MSG_AVAILABLE", "reason": 2033, "detail": "nothing: here"}


@pytest.mark.parametrize("form", ["json", "yaml"])
def test_what_is_wrong_with_definitions_has_it_too(form: str, tmp_path: Path) -> None:
    file = tmp_path / "group.yaml"
    file.write_text("channels:\n- {name: C, type: sender, transmission_queue: R}\n")
    code, _, told = run("apply", "-f", str(file), "-o", form, *NOBODY)
    error = PARSE[form](told)
    assert (code, error["error"], error["reason"]) == (2, "DEFINITION_ERROR", 9018)
    (fault,) = error["faults"]
    assert (fault["file"], fault["line"]) == (str(file), 2) and fault["where"].startswith("channels[0]") and fault["problem"]
    code, _, told = run("queue", "define", "no spaces", "-o", form, *NOBODY)
    assert code == 2 and PARSE[form](told)["faults"][0]["where"] == "name"
    code, _, told = run("apply", "-f", str(tmp_path / "absent"), "-o", form, *NOBODY)
    assert code == 2 and "absent" in PARSE[form](told)["detail"]


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("channel stop C --mode ", ["quiesce", "force"]),
        ("channel stop C --status ", ["stopped", "inactive"]),
        ("channel resolve C ", ["commit", "backout"]),
        ("channel define C --type ", ["sender", "receiver"]),
        ("channel define C --disposition ", ["shared", "fixed-shared", "private"]),
        ("queue define Q --type ", ["local", "remote", "alias"]),
        ("queue define Q --usage t", ["transmission"]),
        ("channel status -o ", ["table", "json", "yaml"]),
        ("up --store e", ["embedded", "etcd", "etcd://"]),
        ("demo --store et", ["etcd", "etcd://"]),
        ("bench put --store em", ["embedded"]),
        ("bench drain --store em", ["embedded"]),
    ],
)
def test_the_shell_completes_fixed_values(words: str, offered: list[str]) -> None:
    line = f"qsg {words}"
    code, out, _ = run(_QSG_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(len(line.split(" ")) - 1))
    assert (code, out.split()) == (0, offered)


@pytest.mark.parametrize(
    "arguments",
    [
        ("channel", "stop", "C", "--mode", "gently"),
        ("channel", "stop", "C", "--status", "gone"),
        ("channel", "resolve", "C", "both", "--yes"),
        ("channel", "define", "C", "--type", "server"),
        ("queue", "define", "Q", "--type", "model"),
    ],
)
def test_other_values_are_wrong_usage(arguments: tuple[str, ...]) -> None:
    code, _, told = run(*arguments, *NOBODY)
    assert code == 2 and f"'{arguments[-1] if arguments[-1] != '--yes' else 'both'}' is not one of" in told


@pytest.mark.parametrize("command", [("up",), ("demo",), *(("bench", which) for which in ("put", "get", "latency", "drain"))], ids=" ".join)
def test_a_store_that_there_is_not_is_refused_and_not_taken_for_an_embedded_one(command: tuple[str, ...]) -> None:
    code, _, told = run(*command, "--store", "etdc", *(NOBODY if command[0] == "bench" and command[1] != "drain" else ()))
    assert (code, "embedded, etcd or etcd://" in told) == (2, True), told


def test_help_of_stop_says_what_a_receiver_needs() -> None:
    assert "allowed_identities" in (channels.stop.__doc__ or "") and "allowed_identities" in run("channel", "stop", "--help")[1]
