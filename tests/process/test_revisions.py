"""The revisions that a member has seen: on disk soon and whole, and never in the member's way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from qsg.process import revisions as module
from qsg.process.revisions import CONFIRMED, FILE, REVISION_STEP, Revisions


def on_disk(data: Path) -> object:
    return json.loads((data / FILE).read_text())


async def noted(revisions: Revisions, revision: int) -> None:
    """Returns once what it sets off is done."""
    revisions.note("admin", revision)
    while revisions._wanted:  # noqa: ASYNC110 - a thread's doing
        await asyncio.sleep(0.001)


async def test_the_first_and_each_thousandth_are_written(tmp_path: Path) -> None:
    revisions = Revisions(tmp_path)
    for seen, written in ((5, 5), (4 + REVISION_STEP, 5), (5 + REVISION_STEP, 5 + REVISION_STEP)):
        await noted(revisions, seen)
        assert on_disk(tmp_path) == {"admin": written}


async def test_a_full_disk_hurts_nobody_and_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AGAIN_S", 0.0)
    revisions = Revisions(tmp_path)
    await noted(revisions, 5)
    full = (tmp_path / FILE).with_suffix(".new")
    full.symlink_to("/dev/full")
    with capture_logs() as lines:
        for seen in (2 * REVISION_STEP, 3 * REVISION_STEP):
            await noted(revisions, seen)
        assert not revisions.write(), "nor does the next incarnation, which begins with this, care"
    assert [line["log_level"] for line in lines] == ["error"]
    assert (on_disk(tmp_path), revisions.seen) == ({"admin": 5}, {"admin": 3 * REVISION_STEP})
    full.unlink()
    await noted(revisions, 3 * REVISION_STEP + 1)
    assert on_disk(tmp_path) == {"admin": 3 * REVISION_STEP + 1}


def test_a_confirmation_is_used_up_only_once_it_is_written(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"admin": 7}')
    (tmp_path / CONFIRMED).write_text('{"admin": 3}')
    full = (tmp_path / FILE).with_suffix(".new")
    full.symlink_to("/dev/full")
    assert Revisions(tmp_path).seen == {"admin": 3}
    assert (tmp_path / CONFIRMED).exists()
    full.unlink()
    assert Revisions(tmp_path).seen == {"admin": 3}
    assert (on_disk(tmp_path), (tmp_path / CONFIRMED).exists()) == ({"admin": 3}, False)


def test_a_power_cut_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The content is on disk before it gets the name, and the name is when this returns."""
    done: list[tuple[str, bool]] = []
    monkeypatch.setattr(module, "sync", lambda path: done.append((path.name, (tmp_path / FILE).exists())), raising=False)
    revisions = Revisions(tmp_path)
    revisions.seen["admin"] = 5
    revisions.write()
    assert done == [("revisions.new", False), (tmp_path.name, True)]
