"""The command that shows something again, as it is typed in the project's folder: by the targets of its Makefile."""

from __future__ import annotations

import shlex
from collections.abc import Sequence


def make(target: str, arguments: Sequence[str] = (), **variables: object) -> str:
    """`make target NAME=value … ARGS="…"`. No argument may hold what the shell would read inside double quotes."""
    parts = ["make", target, *(f"{name}={value}" for name, value in variables.items())]
    if arguments:
        joined = shlex.join(arguments)
        assert not set('"$`\\') & set(joined), joined
        parts.append(f'ARGS="{joined}"')
    return " ".join(parts)
