"""What people write: definitions for `qsg apply`, KEY=VALUE settings, and configuration files."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import typer

from fuzz.target import Target, Violation
from fuzz.wire import mutate_bytes
from qsg.cli.definitions import from_options, read
from qsg.manager.catalog import parse_definition
from qsg.process.config import ConfigError, load
from qsg.process.queue_manager import read_definitions
from qsg.rules.definitions import Definitions, Queue
from qsg.rules.reasons import Refusal

_WORDS = (
    *("null", "~", "true", "[]", "{}", "-1", "0", "1e309", ".nan", "0x7f", "999999999999", "9" * 5000, "''", "'a/../b'", "2001-13-45"),
    *("&a [*a]", "*a", "&a {<<: *a}", "!!int x", "!!timestamp x", "!!bool x", "!!binary x", "!!python/object:os.system x", "[" * 200),
    *(
        '"\\x00"',
        "? [a]",
        "- ",
        "ä" * 60,
        "{a: 1, a: 2}",
        "<<: [1]",
        "!!float ''",
        "!!int ''",
        "0b",
        "\ufeff",
        "%YAML 9.9\n---",
        "--- \n---\n",
    ),
)
_DEFINITIONS = b"""\
settings: {dead_letter_queue: DLQ, hop_limit: 3}
queues:
  - {name: A, structure: app1, max_depth: 10, backout_threshold: 3, backout_queue: B}
  - name: TO.R
    type: remote
    remote_queue: IN
    remote_queue_manager: R
  - {name: ALSO.A, type: alias, target: A}
  - {name: R, structure: app1, usage: transmission}
channels:
  - name: G.TO.R
    type: sender
    transmission_queue: R
    connection_names: ["r:1414", "[::1]:1414"]
    retry: {short_ms: 100, short_count: 5}
  - {name: R.TO.G, type: receiver, partner: R, allowed_identities: [r]}
"""
_JSON = b'{"queues": [{"name": "A", "max_depth": 5}], "channels": [{"name": "C", "type": "receiver"}]}'
_CONFIG = b"""\
member: X
group: G
data: /tmp/x
socket: /tmp/x/socket
address: 127.0.0.1:1416
structures:
  admin: {endpoints: ["127.0.0.1:2379"]}
  app1: {endpoints: ["127.0.0.1:2380"], user: a, password: b}
aliases: {r: "127.0.0.1:1414"}
tls: {ca: a, certificate: b, key: c}
slots: 2
"""


def _mutate(data: bytes, seeds: list[bytes], random: Random) -> bytes:
    text = data.decode(errors="replace")
    lines = text.splitlines(keepends=True)
    if not lines or random.random() < 0.15:
        return mutate_bytes(data, random)
    i = random.randrange(len(lines))
    match random.randrange(6):
        case 0:
            del lines[i]
        case 1:
            lines.insert(i, lines[random.randrange(len(lines))])
        case 2:
            lines[i] = " " * random.randrange(4) + lines[i]
        case 3:
            lines[i] = lines[i].partition(":")[0] + ": " + random.choice(_WORDS) + "\n"
        case 4:
            at = random.randrange(len(lines[i]) + 1)
            lines[i] = lines[i][:at] + random.choice(_WORDS) + lines[i][at:]
        case _:
            lines[i] = random.choice(random.choice(seeds).decode(errors="replace").splitlines(keepends=True))
    return "".join(lines).encode(errors="replace")


def _check_definitions(data: bytes) -> None:
    text = data.decode(errors="replace")
    found = read(text)
    if isinstance(found, Definitions):
        if Definitions.model_validate(found.model_dump(mode="json")) != found:
            raise Violation("definitions change on their way to the queue manager")
    elif not found or not all(fault.problem for fault in found):
        raise Violation("refused without a reason")
    try:
        given = from_options({"name": "A"}, text.splitlines()[:4])
        parse_definition(given, Queue)
    except (typer.BadParameter, Refusal) as error:
        if not str(error):
            raise Violation("refused without a reason") from error


def definitions() -> Target:
    return Target("texts", [_DEFINITIONS, _JSON, b"max_depth=5\nretry.short_ms=1\nretry=2\nretry.x=3\n"], _check_definitions, _mutate)


def configuration() -> Target:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "config.yaml"

    def check(data: bytes) -> None:
        path.write_bytes(data)
        for parser in (load, lambda path: read_definitions(path, {"private", "admin", "app1"})):
            try:
                parser(path)
            except ConfigError as error:
                if str(path) not in str(error):
                    raise Violation("the error does not name the file") from error

    return Target("config", [_CONFIG, _DEFINITIONS, b"\xff\xfe"], check, _mutate, folder.cleanup)
