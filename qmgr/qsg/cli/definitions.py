"""Definitions as people write them: KEY=VALUE options and YAML files, with errors that say what is wrong and where."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import typer
import yaml
from pydantic import ValidationError

from qsg.cli.common import USAGE, Format, emit_error, err
from qsg.rules.definitions import Definitions
from qsg.rules.reasons import Reason
from qsg.rules.texts import NotYaml, read_yaml


def from_options(given: dict[str, Any], settings: Iterable[str] | None) -> dict[str, Any]:
    """Options that were given, with KEY=VALUE pairs (values as in YAML; KEY may be `retry.short_ms`)."""
    definition = {key: value for key, value in given.items() if value is not None}
    for text in settings or ():
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"{text!r} is not KEY=VALUE")
        place = definition
        *path, last = key.strip().split(".")
        for part in path:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise typer.BadParameter(f"{key}: {part} is a value already")
        try:
            place[last] = read_yaml(value)[0]
        except NotYaml as problem:
            raise typer.BadParameter(f"{key}: {problem}") from problem
    return definition


def refuse_invalid(error: ValidationError, form: Format = Format.TABLE) -> typer.Exit:
    """Says what is wrong with a definition; raise what it returns."""
    return refuse_faults(
        [Fault(0, ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")) for problem in error.errors()], form
    )


def refuse_faults(faults: Sequence[Fault], form: Format, file: str = "") -> typer.Exit:
    """Says what is wrong, each fault with its place; raise what it returns."""
    if form is not Format.TABLE:
        told = [{"file": file, "line": fault.line, "where": fault.where, "problem": fault.problem} for fault in faults]
        emit_error(Reason.DEFINITION_ERROR, "; ".join(fault.text for fault in faults), form, faults=told)
        return typer.Exit(USAGE)
    for fault in faults:
        place = f"{file}:{fault.line}: " if file and fault.line else f"{file}: " if file else ""
        err.print(f"[bold red]error[/bold red] {place}", end="", highlight=False)
        err.print(fault.text, markup=False, highlight=False)
    return typer.Exit(USAGE)


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong in a file of definitions, and where (line 1 is the first; 0 = unknown)."""

    line: int
    where: str
    problem: str

    @property
    def text(self) -> str:
        return f"{self.where}: {self.problem}" if self.where else self.problem


def read(text: str) -> Definitions | list[Fault]:
    """The definitions in a YAML text, or everything that is wrong with it."""
    try:
        data, tree = read_yaml(text)
    except NotYaml as error:
        return [Fault(error.line, "", error.problem)]
    if tree is None:
        return Definitions()
    if not isinstance(data, dict):
        return [Fault(1, "", "expected a mapping with queues, channels, settings")]
    faults = [Fault(line, key, "is there twice") for key, line in _twice(tree)]
    try:
        definitions = Definitions.model_validate(data)
    except ValidationError as error:
        for problem in error.errors():
            where = _words(data, problem["loc"])
            faults.append(Fault(_line(tree, problem["loc"]), where, problem["msg"].removeprefix("Value error, ")))
        return faults
    for kind, named in (("queue", definitions.queues), ("channel", definitions.channels)):
        names = [one.name for one in named]
        for index, name in enumerate(names):
            if name in names[:index]:
                faults.append(Fault(_line(tree, (f"{kind}s", index)), f"{kind} {name}", "is defined twice"))
    return faults or definitions


def _words(data: Any, loc: tuple[int | str, ...]) -> str:
    """`queues[2] (ORDERS).max_depth` of ("queues", 2, "max_depth")."""
    text = ""
    for part in loc:
        if isinstance(part, int):
            data = data[part] if isinstance(data, list) and part < len(data) else None
            name = data.get("name") if isinstance(data, dict) else None
            text += f"[{part}]" + (f" ({name})" if name else "")
        else:
            data = data.get(part) if isinstance(data, dict) else None
            text += f".{part}" if text else part
    return text


def _line(node: yaml.Node, loc: tuple[int | str, ...]) -> int:
    """The line of what `loc` leads to, or of as much of it as there is."""
    line = node.start_mark.line + 1
    for part in loc:
        following: yaml.Node | None = None
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == part:
                    following, line = value, key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            following = node.value[part]
            line = following.start_mark.line + 1
        if following is None:
            break
        node = following
    return line


def _twice(node: yaml.Node) -> list[tuple[str, int]]:
    """Keys that a mapping has twice: YAML would silently take the last."""
    found: list[tuple[str, int]] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                found.append((str(key.value), key.start_mark.line + 1))
            seen.add(key.value)
            found += _twice(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            found += _twice(value)
    return found
