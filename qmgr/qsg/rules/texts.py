"""YAML (and so JSON) that people write, read so that whatever is wrong with it is told and nothing else happens.

PyYAML answers some texts with other errors than its own (a date that is none, a number of thousands of digits, very deep nesting), and
takes merge keys that grow without bound. Invariant: `read_yaml` answers plain values, or raises `NotYaml`.
"""

from __future__ import annotations

from typing import Any

import yaml

NODES_MAX = 200_000
"""Of a text with its aliases followed; far beyond any file of definitions."""
DEPTH_MAX = 50


class NotYaml(ValueError):
    """`line` is the first wrong one (from 1), 0 = unknown."""

    def __init__(self, problem: str, line: int = 0) -> None:
        super().__init__(f"line {line}: {problem}" if line else problem)
        self.problem, self.line = problem, line


def read_yaml(text: str) -> tuple[Any, yaml.Node | None]:
    """(plain values, their nodes; None for an empty text). Raises `NotYaml`."""
    try:
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        if tree is not None:
            _measure(tree)
        return yaml.safe_load(text), tree
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise NotYaml(f"not YAML: {error.problem}", mark.line + 1 if mark else 0) from error
    except NotYaml:
        raise
    except RecursionError as error:
        raise NotYaml("not YAML: nested too deeply") from error
    except Exception as error:  # of the constructors of values: ValueError, KeyError, AttributeError, OverflowError ...
        raise NotYaml(f"not YAML: {error}") from error


def _measure(tree: yaml.Node) -> None:
    """Raises `NotYaml` for what would be out of proportion, or has itself inside."""
    left = NODES_MAX
    todo: list[tuple[yaml.Node, int]] = [(tree, 0)]
    while todo:
        node, depth = todo.pop()
        left -= 1
        if left < 0 or depth > DEPTH_MAX:
            raise NotYaml("not YAML: too large, nested too deeply, or with itself inside", node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            todo += [(child, depth + 1) for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            todo += [(child, depth + 1) for child in node.value]
