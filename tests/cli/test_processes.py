"""The commands that run processes, and the way back from a snapshot, with real processes."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import yaml

import qsg
from qsg.process.children import bound_to_parent, free_ports
from qsg.process.local import there
from support.etcd import restored_from
from support.group import READY_S, ConfiguredGroup, connected, eventually, running

pytestmark = pytest.mark.processes

QSG = [sys.executable, "-m", "qsg.cli.main"]


async def run(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command."""
    process = await asyncio.create_subprocess_exec(
        *QSG, *map(str, arguments), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, " ".join(out.decode().split())


def member_file(folder: Path) -> tuple[Path, str]:
    """A queue manager outside a group; its client address."""
    address, listener = (f"127.0.0.1:{port}" for port in free_ports(2))
    config = {"member": "R", "data": str(folder / "data"), "socket": str(folder / "socket"), "address": address, "local_listener": listener}
    path = folder / "member.yaml"
    path.write_text(yaml.safe_dump(config))
    return path, address


async def start(*arguments: object) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(*bound_to_parent([*QSG, *map(str, arguments)]), stderr=asyncio.subprocess.DEVNULL)


async def seen_on_disk(path: Path) -> None:
    """Written soon after a member has joined, beside its work: before, a restore would not be noticed."""
    await eventually((path.parent / "data" / "revisions.json").exists, what="the revision that the member has seen is on disk")


async def has_initiator(at: qsg.QueueManager) -> bool:
    return "R" in there(await at.inquire("group"))


async def test_a_member_by_two_commands(tmp_path: Path) -> None:
    path, address = member_file(tmp_path)
    processes = [await start("serve", "--config", path), await start("initiator", "--config", path)]
    async with qsg.connect(address, connect_s=READY_S) as qmgr:
        await eventually(partial(has_initiator, qmgr), what="the initiator has joined")
        await qmgr.command("define", kind="queue", definition={"name": "A"})
        await qmgr.put("A", "kept")
        channel = {"name": "TO.ME", "type": "sender", "transmission_queue": "A", "connection_names": [address]}
        with pytest.raises(qsg.QsgError):
            await qmgr.command("define", kind="channel", definition=channel)  # A is no transmission queue
        assert (await qmgr.get("A")).payload == b"kept"
    for process in processes:
        process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(READY_S):
        assert [await process.wait() for process in processes] == [0, 0]


async def test_a_wrong_configuration(tmp_path: Path) -> None:
    path = tmp_path / "member.yaml"
    path.write_text("member: X\ngroup: G\n")
    for command in ("serve", "initiator"):
        code, told = await run(command, "--config", path)
        assert code == 2
        assert "data: Field required" in told
    assert (await run("serve"))[0] == 2
    assert (await run("store", "confirm", "--config", path))[0] == 2


async def test_snapshot_and_restore_refuse_what_would_destroy(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("something else")
    for arguments, told in (
        (("snapshot", tmp_path / "none", tmp_path / "new"), "none does not exist"),
        (("snapshot", tmp_path / "there", tmp_path / "new"), "not a database"),
        (("restore", tmp_path / "none", tmp_path / "new"), "none does not exist"),
        (("restore", tmp_path / "there", tmp_path / "new"), "there"),
    ):
        code, out = await run("store", *arguments)
        assert (code, told in out) == (1, True), out
    assert not (tmp_path / "new").exists()


@pytest.mark.timeout(400)
async def test_back_from_a_snapshot(tmp_path: Path) -> None:
    """The group's store is restored: members refuse it, say what to do, and start once it is confirmed to each."""
    members = ("X", "Y")
    copy, file = tmp_path / "copy.db", tmp_path / "group" / "store.db"
    async with running(tmp_path / "group", members=members) as group:
        configs = [part for m in members for part in ("--config", group.configs[m])]
        async with connected(group) as qmgr:
            await qmgr.put("SHARED", "before")
            assert (await run("store", "snapshot", file, copy))[0] == 0
            await qmgr.put("SHARED", "after")
        code, told = await run("store", "confirm", *configs)
        assert (code, told) == (0, "X: nothing was restored Y: nothing was restored")

        await group.supervisor.stop_child("store")
        assert "exists already" in (await run("store", "restore", copy, file))[1]
        file.unlink()
        assert (await run("store", "restore", copy, file))[0] == 0
        serve = [sys.executable, "-m", "qsg.store.serve", str(file), group.store_address]
        await group.supervisor.start("store", serve)
        await eventually(lambda: refused(group) == set(members), what="both members refuse")

        code, told = await run("store", "confirm", *configs)
        assert code == 0
        assert "X: admin confirmed at revision" in told
        assert "Y: admin confirmed at revision" in told
        await as_before(group, members)
        assert "nothing was restored" in (await run("store", "confirm", *configs))[1]


async def as_before(group: ConfiguredGroup, members: Sequence[str]) -> None:
    """All members are back, with what was put before the snapshot and nothing else."""
    for m in members:
        async with qsg.connect(group.addresses[m], connect_s=READY_S):
            pass
    async with connected(group) as qmgr:
        assert (await qmgr.get("SHARED", wait_ms=60_000)).payload == b"before"
        with pytest.raises(qsg.NoMessageAvailable):
            await qmgr.get("SHARED")


def refused(group: ConfiguredGroup) -> set[str]:
    """Members that said why they do not start, and what is to be done."""
    lines = group.logged(event="cannot start", error=lambda error: "STRUCTURE_RESTORED (9013)" in str(error))
    assert all("qsg store confirm --config" in line["what_to_do"] for line in lines)
    return {line["at"] for line in lines}


@pytest.mark.etcd
@pytest.mark.timeout(400)
async def test_an_etcd_back_from_a_snapshot(tmp_path: Path) -> None:
    """Saved by a member's way to it, restored by etcd's own tool, accepted by a word in the configuration."""
    members, copy = ("X", "Y"), tmp_path / "admin.db"
    async with running(tmp_path / "group", members=members, store="etcd", etcd_members=1) as group:
        async with connected(group) as qmgr:
            await qmgr.put("SHARED", "before")
            save = "store", "save", "admin", copy, "--config", group.configs["X"]
            code, told = await run(*save)
            assert (code, "bytes saved" in told) == (0, True), told
            assert (await run(*save))[0] == 1, "what is there is left"
            await qmgr.put("SHARED", "after")
        assert group.etcd is not None
        restored_from(copy, group.etcd)
        await group.etcd.restart(0)
        await eventually(lambda: refused(group) == set(members), what="both members refuse")
        for m in members:
            group.configs[m].write_text(yaml.safe_dump(group.config(m) | {"accept_restored": "2026-11-26"}))
        await as_before(group, members)


@pytest.mark.timeout(400)
async def test_a_private_store_back_from_a_snapshot(tmp_path: Path) -> None:
    path, address = member_file(tmp_path)
    store, copy = tmp_path / "data" / "private.db", tmp_path / "copy.db"
    server = await start("serve", "--config", path)
    async with qsg.connect(address, connect_s=READY_S) as qmgr:
        await qmgr.command("define", kind="queue", definition={"name": "A"})
        await qmgr.put("A", "before")
        assert (await run("store", "snapshot", store, copy))[0] == 0
    await seen_on_disk(path)
    server.kill()
    await server.wait()
    store.unlink()
    assert (await run("store", "restore", copy, store))[0] == 0
    refusing = await start("serve", "--config", path)
    assert await refusing.wait() == 1

    code, told = await run("store", "confirm", "--config", path)
    assert (code, "R: private confirmed at revision" in told) == (0, True), told
    server = await start("serve", "--config", path)
    async with qsg.connect(address, connect_s=READY_S) as qmgr:
        assert (await qmgr.get("A")).payload == b"before"
    server.kill()
    await server.wait()


@pytest.mark.timeout(400)
async def test_a_word_accepts_what_was_restored_once(tmp_path: Path) -> None:
    path, address = member_file(tmp_path)
    store, copy = tmp_path / "data" / "private.db", tmp_path / "copy.db"

    async def served() -> None:
        server = await start("serve", "--config", path)
        async with qsg.connect(address, connect_s=READY_S) as qmgr:
            await qmgr.command("define", kind="queue", definition={"name": "A"}, replace=True)
        await seen_on_disk(path)
        server.kill()
        await server.wait()

    async def restore() -> None:
        store.unlink()
        assert (await run("store", "restore", copy, store))[0] == 0

    await served()
    assert (await run("store", "snapshot", store, copy))[0] == 0
    await served()
    await restore()
    path.write_text(path.read_text() + "accept_restored: first\n")
    await served()
    await restore()
    assert await (await start("serve", "--config", path)).wait() == 1, "the word is used up"
    path.write_text(path.read_text().replace("first", "second"))
    await served()
