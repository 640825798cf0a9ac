"""Faults that did no harm are not counted, and are tried again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import qsg
from qsg.process.ledger import Ledger
from qsg.process.local import REMOTE
from qsg.store.contract import NoSpace, StoreError
from torture import faults, run
from torture.faults import KINDS, NotReached
from torture.group import Disk, TortureGroup
from torture.report import Report
from torture.run import Torture


class Etcd:
    """Does what it is asked for `done` times, and then no more."""

    def __init__(self, done: int) -> None:
        self.left = done
        self.members = [0, 1, 2]

    async def compact(self, index: int = 0) -> bool:
        self.left -= 1
        return self.left >= 0

    async def defragment(self, index: int) -> bool:
        return await self.compact()


class Scene:
    """A group that refuses everything."""

    def __init__(self, **of_group: Any) -> None:
        self.group: Any = SimpleNamespace(members=("X", "Y", "Z"), addresses=dict.fromkeys("XYZ", "127.0.0.1:1"), **of_group)
        self.random = random.Random(1)
        self.history: Any = SimpleNamespace(entry=lambda channel: None)
        self.missed: Counter[str] = Counter()
        self.effects: dict[str, str] = {}
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


async def refused(kind: str, scene: Scene) -> None:
    with pytest.raises(NotReached):
        await KINDS[kind](scene)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "MOVE_S", 0.1)
    monkeypatch.setattr(faults, "SHORT_S", (0.0, 0.0))
    monkeypatch.setattr(faults, "REPLACED_S", (0.0, 0.0))


async def test_etcd_that_does_not_do_as_it_is_told() -> None:
    await refused("compact etcd", Scene(etcd=Etcd(0)))
    await refused("defragment etcd", Scene(etcd=Etcd(2)))
    await KINDS["compact etcd"](Scene(etcd=Etcd(1)))
    await KINDS["defragment etcd"](Scene(etcd=Etcd(3)))


async def test_a_quota_that_is_never_reached() -> None:
    class Store:
        async def txn(self, *arguments: Any, timeout_s: float) -> None:
            self.told = getattr(self, "told", 0) + 1
            if self.told == 3 and full:
                raise NoSpace("full")
            if self.told == 2:
                raise StoreError("no leader")

    for full in (True, False):
        store: Any = Store()
        if full:
            await faults._fill(store, 2 << 20)
        else:
            with pytest.raises(NotReached):
                await faults._fill(store, 2 << 20)
        assert store.told == (3 if full else 4)


async def test_a_channel_that_is_not_moved() -> None:
    scene = Scene()
    await refused("planned move", scene)
    assert any(text.startswith("not moved: ") for text in scene.said)


@pytest.mark.parametrize("kind", ["kill initiator", "freeze member", "kill R's queue manager", "planned stop"])
async def test_a_process_that_is_not_there(kind: str) -> None:
    """Of the other processes all run."""
    missing = {"kill initiator": "initiator", "kill R's queue manager": "queue manager"}.get(kind, "")
    ends = (".initiator",) if missing == "queue manager" else ("",) if missing == "initiator" else ()
    there = {f"{member}{end}": 1 for member in ("X", "Y", "Z", REMOTE) for end in ends}
    await refused(kind, Scene(named_pids=lambda: there))


class FullDisk(Scene):
    def __init__(self, told: str) -> None:
        self.freed = 0

        async def fill() -> str:
            return told

        async def free() -> None:
            self.freed += 1

        super().__init__(fill_disk=fill, free_disk=free)


async def test_the_report_says_what_was_full() -> None:
    scene = FullDisk("")
    await refused("fill R's disk", scene)
    assert scene.freed == 1 and not scene.effects
    scene = FullDisk("a quota")
    await KINDS["fill R's disk"](scene)
    assert scene.effects == {"fill R's disk": "a quota"} and scene.freed == 1
    assert '"effects": {"fill R\'s disk": "a quota"}' in Report(1, 3.0, effects=scene.effects).json()


def test_a_disk_is_full_when_a_write_finds_no_room(tmp_path: Path) -> None:
    (tmp_path / "hog").symlink_to("/dev/full")
    assert Disk(tmp_path).fill()


@pytest.mark.parametrize("room", [3, 1000])
async def test_where_nothing_can_be_mounted_a_quota_is_filled(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Remote:
        left = room

        async def command(self, name: str, **arguments: Any) -> None: ...

        async def put(self, name: str, payload: bytes) -> None:
            self.left -= 1
            if self.left < 0:
                raise qsg.StorageNotAvailable

    @asynccontextmanager
    async def connect(address: str, **options: Any) -> AsyncIterator[Remote]:
        yield Remote()

    monkeypatch.setattr(qsg, "connect", connect)
    monkeypatch.setattr(TortureGroup, "remote_address", "R")
    told = await TortureGroup(tmp_path).fill_disk()
    assert told == ("a quota of its store (no file system of its own could be mounted)" if room == 3 else "")


async def test_what_did_no_harm_is_not_counted_and_has_its_turn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds; one of them does no harm at first."""
    tried: Counter[str] = Counter()

    async def act(scene: faults.Scene) -> None:
        tried["compact etcd"] += 1
        if tried["compact etcd"] < 3:
            raise NotReached("not compacted")

    async def harm(scene: faults.Scene) -> None:
        tried["defragment etcd"] += 1

    async def whole(observer: Any, members: int) -> None: ...

    monkeypatch.setitem(KINDS, "compact etcd", act)
    monkeypatch.setitem(KINDS, "defragment etcd", harm)
    monkeypatch.setattr(run, "QUIET_S", (0.0, 0.0))
    made = Torture(tmp_path, minutes=0.0, seed=1, only=("compact etcd", "defragment etcd"))
    made.history = SimpleNamespace(takeovers=[])  # type: ignore[assignment]
    made._ways = [SimpleNamespace(name="out", ledger=Ledger(1))]  # type: ignore[list-item]
    monkeypatch.setattr(made, "_until_whole", whole)
    await made._phases(None, [])  # type: ignore[arg-type]
    assert tried == {"compact etcd": 3, "defragment etcd": 1}
    assert made._faults == {"compact etcd": 1, "defragment etcd": 1}
    assert [m.kind for m in made.report.measured if m.kind == "compact etcd"] == ["compact etcd"]
