"""The commands that a queue manager takes, and what the documentation of the client library says they are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qsg.rules.reasons import Reason, Refusal
from support.simulated import simulated
from support.whole import queue, universe

DOCS = Path(__file__).parents[2] / "docs/client.md"


@simulated
async def test_the_documentation_names_every_command_and_no_other() -> None:
    async with universe("admin") as u:
        await u.host("R", "", queue("IN"))
        with pytest.raises(Refusal) as caught:
            await u["R"].manager.clients.backend.command("dance", {})
    assert caught.value.reason is Reason.COMMAND_FAILED
    taken = set(caught.value.detail.partition("one of ")[2].split(", "))
    (row,) = [line for line in DOCS.read_text().splitlines() if line.startswith("| `command(name, **arguments)` |")]
    assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == taken
