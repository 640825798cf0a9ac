"""A group and its partner with TLS everywhere, and names in certificates that say who may what; then everything is issued anew."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

import qsg
from qsg.process.local import GROUP, OUT_CHANNEL, REMOTE
from qsg_operator.authority import new_authority
from qsg_operator.certificates import CA, CERTIFICATE, KEY, Leaf, issued
from support.group import READY_S, connected, eventually, flowing, running, status, whole

pytestmark = pytest.mark.processes

HERE = ("127.0.0.1", "localhost")
LEAVES = {GROUP: Leaf(GROUP, HERE), REMOTE: Leaf(REMOTE, HERE), "app": Leaf("app"), "stranger": Leaf("stranger")}
MEMBERS = ("X", "Y")


def issue(folder: Path) -> dict[str, dict[str, str]]:
    """Name -> its files."""
    now = datetime.now(UTC)
    authority, found = new_authority("authority", now), {}
    for name, leaf in LEAVES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for part, data in issued(leaf, None, authority, now).items():
            (folder / name / part).write_bytes(data)
        found[name] = {"ca": str(folder / name / CA), "certificate": str(folder / name / CERTIFICATE), "key": str(folder / name / KEY)}
    return found


@pytest.fixture
def files(tmp_path: Path) -> Iterator[dict[str, dict[str, str]]]:
    """What connects here without saying more is the application."""
    made = issue(tmp_path / "certificates")
    with pytest.MonkeyPatch.context() as environment:
        for field, path in made["app"].items():
            environment.setenv(f"QSG_{field.upper()}", path)
        yield made


@pytest.mark.timeout(300)
async def test_names_in_certificates_say_who_may_what(tmp_path: Path, files: dict[str, dict[str, str]]) -> None:
    own = {"tls": files[GROUP] | {"peers": [GROUP], "clients": [GROUP, "app"]}}
    configure = {**{m: own for m in MEMBERS}, REMOTE: {"tls": files[REMOTE]}}
    async with running(tmp_path / "group", members=MEMBERS, configure=configure) as group, flowing(group) as flow:
        async with connected(group) as at:

            async def moves() -> bool:  # refused while the other one or R stands still
                return bool((await at.command("move", channel=OUT_CHANNEL, wait_s=READY_S))["moved"])

            await eventually(moves, what="members ask each other")
        for name in ("stranger", REMOTE):
            with pytest.raises(qsg.NotAuthorized, match=f"certificate name '{name}' is not allowed"):
                await connected(group, "X", **files[name]).open()
        await flow.moves()
        await whole(group)

        # Everything is issued anew by another authority; who connects from now on has the new ones.
        issue(tmp_path / "certificates")
        async with connected(group, "X") as at:
            before = await status(at, OUT_CHANNEL)
        owner = before["owner"]
        group.kill(owner, "member")
        other = next(m for m in MEMBERS if m != owner)

        async def runs() -> bool:
            async with connected(group, other) as at:
                line = await status(at, OUT_CHANNEL)
                return bool(line["status"] == "RUNNING" and line["epoch"] > before["epoch"])

        await eventually(runs, what="it was taken over")
        await flow.moves()
