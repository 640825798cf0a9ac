"""Commands from every member, definitions that are refused, and processes that cannot start, or must end, for a reason that they tell."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml

import qsg
from qsg.process.config import ConfigError, load
from qsg.process.local import IN_CHANNEL, OUT_CHANNEL, REMOTE
from qsg.process.queue_manager import read_definitions
from qsg.rules.definitions import PRIVATE
from qsg.rules.reasons import Reason
from support.group import READY_S, ConfiguredGroup, Flow, connected, eventually, flowing, is_running, running, status, whole

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]

MEMBERS = ("X", "Y")
DISPLACED = 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def group(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ConfiguredGroup]:
    async with running(tmp_path_factory.mktemp("group"), members=MEMBERS) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def flow(group: ConfiguredGroup) -> AsyncIterator[Flow]:
    """Traffic that none of the commands may lose, repeat or overtake."""
    async with flowing(group) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def everybody_is_there(request: pytest.FixtureRequest) -> None:
    """Tests of the group begin when all its members are there and its channels run, whatever the one before has killed or stopped."""
    if "group" in request.fixturenames:
        group = request.getfixturevalue("group")
        await whole(group)
        if "flow" in request.fixturenames:
            request.getfixturevalue("flow")
            async with connected(group) as at:
                await eventually(lambda: is_running(at, OUT_CHANNEL, IN_CHANNEL), READY_S, "both channels run")


@pytest_asyncio.fixture(loop_scope="module")
async def any_member(group: ConfiguredGroup) -> AsyncIterator[qsg.QueueManager]:
    async with connected(group) as made:
        yield made


async def reason_of(work: Any) -> tuple[Reason, str]:
    with pytest.raises(qsg.QsgError) as error:
        await work
    return error.value.reason, error.value.detail


async def state(at: qsg.QueueManager, channel: str = OUT_CHANNEL) -> str:
    return str((await status(at, channel))["status"])


async def becomes(at: qsg.QueueManager, wanted: str, channel: str = OUT_CHANNEL, timeout_s: float = READY_S) -> None:
    async def reached() -> bool:
        return await state(at, channel) == wanted

    await eventually(reached, timeout_s, f"{channel} becomes {wanted}")


# Channels


async def test_channel_commands_from_every_member(group: ConfiguredGroup, flow: Flow) -> None:
    for name in MEMBERS:
        async with connected(group, name) as at:
            await becomes(at, "RUNNING")
            line = await status(at, OUT_CHANNEL)
            assert line["partner"] == REMOTE
            assert line["owner"] in MEMBERS
            reason, detail = await reason_of(at.command("start", channel=OUT_CHANNEL))
            assert reason == Reason.CHANNEL_ALREADY_RUNNING
            assert line["owner"] in detail, "on whom"
            assert (await reason_of(at.command("ping", channel=OUT_CHANNEL)))[0] == Reason.CHANNEL_IN_USE
            stopped = await at.command("stop", channel=OUT_CHANNEL)
            assert stopped["status"] == "STOPPED", stopped
            answer = await at.command("ping", channel=OUT_CHANNEL, bytes=32_768)
            assert answer["bytes"] == 32_768 and answer["ms"] >= 0
            started = await at.command("start", channel=OUT_CHANNEL)
            assert started["status"] in ("RUNNING", "BINDING", "STARTING"), started
            await becomes(at, "RUNNING")
            before = await status(at, OUT_CHANNEL)
            moved = await at.command("move", channel=OUT_CHANNEL)
            assert moved["moved"] and moved["owner"] not in ("", before["owner"]), moved
            assert moved["takeover"]["cause"] == "moved by command"
            assert (await at.command("move", channel=OUT_CHANNEL, to=before["owner"]))["owner"] == before["owner"]
            inactive = await at.command("stop", channel=OUT_CHANNEL, status="inactive")
            assert inactive["status"] in ("INACTIVE", "RUNNING", "STARTING", "BINDING"), "traffic triggers it again"
            await becomes(at, "RUNNING")
            assert (await at.command("stop", channel=OUT_CHANNEL, mode="force"))["status"] == "STOPPED"
            await at.command("reset", channel=OUT_CHANNEL, sequence=1)
            assert (await reason_of(at.command("resolve", channel=OUT_CHANNEL, action="backout")))[0] in (
                Reason.NOT_IN_DOUBT,
                Reason.IN_DOUBT,
            )
            await at.command("start", channel=OUT_CHANNEL)
            await flow.moves()


@pytest.mark.parametrize(
    ("name", "arguments", "reason"),
    [
        ("start", {}, Reason.OPTIONS_ERROR),
        ("start", {"channel": "NO.SUCH"}, Reason.CHANNEL_NOT_FOUND),
        ("stop", {"channel": "NO.SUCH"}, Reason.CHANNEL_NOT_FOUND),
        ("start", {"channel": IN_CHANNEL}, Reason.CHANNEL_TYPE_ERROR),
        ("stop", {"channel": OUT_CHANNEL, "mode": "gently"}, Reason.OPTIONS_ERROR),
        ("stop", {"channel": OUT_CHANNEL, "status": "asleep"}, Reason.OPTIONS_ERROR),
        ("stop", {"channel": OUT_CHANNEL, "wait_s": "long"}, Reason.OPTIONS_ERROR),
        ("stop", {"channel": OUT_CHANNEL, "wait_s": -5}, Reason.OPTIONS_ERROR),
        ("move", {"channel": OUT_CHANNEL, "to": "W"}, Reason.UNKNOWN_OBJECT_Q_MGR),
        ("move", {"channel": IN_CHANNEL}, Reason.CHANNEL_TYPE_ERROR),
        ("resolve", {"channel": OUT_CHANNEL}, Reason.OPTIONS_ERROR),
        ("resolve", {"channel": OUT_CHANNEL, "action": "commit", "record": "!!"}, Reason.OPTIONS_ERROR),
        ("reset", {"channel": OUT_CHANNEL, "sequence": "one"}, Reason.OPTIONS_ERROR),
        ("reset", {"channel": OUT_CHANNEL, "sequence": 0}, Reason.OPTIONS_ERROR),
        ("reset", {"channel": OUT_CHANNEL, "sequence": 10**12}, Reason.OPTIONS_ERROR),
        ("reset", {"channel": OUT_CHANNEL, "sequence": -1}, Reason.OPTIONS_ERROR),
        ("ping", {"channel": OUT_CHANNEL, "bytes": 1}, Reason.OPTIONS_ERROR),
        ("status", {"channel": "NO.SUCH"}, Reason.CHANNEL_NOT_FOUND),
        ("status", {"channel": ["a"]}, Reason.OPTIONS_ERROR),
        ("purge", {"name": "NO.SUCH"}, Reason.UNKNOWN_OBJECT_NAME),
        ("delete", {"kind": "queue", "name": "NO.SUCH"}, Reason.UNKNOWN_OBJECT_NAME),
        ("delete", {"kind": "channel", "name": "NO.SUCH"}, Reason.CHANNEL_NOT_FOUND),
        ("delete", {"kind": "thing", "name": "A"}, Reason.COMMAND_FAILED),
    ],
)
async def test_commands_that_make_no_sense(
    group: ConfiguredGroup, flow: Flow, any_member: qsg.QueueManager, name: str, arguments: dict[str, Any], reason: Reason
) -> None:
    told, detail = await reason_of(any_member.command(name, **arguments))
    assert told == reason, detail
    assert detail
    await becomes(any_member, "RUNNING")


async def test_a_stop_right_after_its_owner_was_killed(group: ConfiguredGroup, flow: Flow) -> None:
    async with connected(group, "X") as x:
        owner = (await status(x, OUT_CHANNEL))["owner"]
        other = next(m for m in MEMBERS if m != owner)
        async with connected(group, other) as at:
            group.kill(owner, "member")
            stopped = await at.command("stop", channel=OUT_CHANNEL)
            assert stopped["status"] in ("STOPPED", "STOPPING")
            await becomes(at, "STOPPED")
            await at.command("start", channel=OUT_CHANNEL)
            await flow.moves()


async def test_stopped_stays_stopped_until_started_by_command(group: ConfiguredGroup, flow: Flow) -> None:
    async with connected(group) as at, connected(group, REMOTE) as r:
        assert (await at.command("stop", channel=OUT_CHANNEL))["status"] == "STOPPED"

        async def taken() -> bool:
            return int((await r.inquire_queue("FROM.QSG"))["depth"]) == 0

        await eventually(taken, READY_S, "what had come before the stop is got")
        await asyncio.sleep(0.5)
        arrived = flow.ways[0].ledger.received
        for member in MEMBERS:
            group.kill(member, "queue-manager")
            await becomes(at, "STOPPED")
        for member in MEMBERS:
            group.kill(member, "member")
        await becomes(at, "STOPPED")

        async def all_back() -> bool:
            members = (await at.inquire("group"))["members"]
            return len(members) == len(MEMBERS) and all(m["initiator"] for m in members)

        await eventually(all_back, READY_S, "all members are back")
        await asyncio.sleep(1.5)
        assert await state(at) == "STOPPED"
        assert flow.ways[0].ledger.received == arrived, "nothing moves"
        assert await r.inquire_queue("FROM.QSG")
        await at.command("start", channel=OUT_CHANNEL)
        await flow.moves()


# Definitions

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("queue", {"name": ""}, "name"),
    ("queue", {"name": "A" * 49}, "name"),
    ("queue", {"name": "A B"}, "name"),
    ("queue", {"name": "A\n"}, "name"),
    ("queue", {}, "name"),
    ("queue", {"name": "A", "max_depth": -1}, "max_depth"),
    ("queue", {"name": "A", "max_depth": "many"}, "max_depth"),
    ("queue", {"name": "A", "max_message_bytes": 1 << 40}, "max_message_bytes"),
    ("queue", {"name": "A", "default_priority": 10}, "default_priority"),
    ("queue", {"name": "A", "type": "odd"}, "type"),
    ("queue", {"name": "A", "type": "alias"}, "target"),
    ("queue", {"name": "A", "type": "remote"}, "remote_queue_manager"),
    ("queue", {"name": "A", "type": "remote", "remote_queue_manager": "R", "usage": "transmission"}, "usage"),
    ("queue", {"name": "A", "usage": "sometimes"}, "usage"),
    ("queue", {"name": "A", "backout_queue": "B"}, "backout_threshold"),
    ("queue", {"name": "A", "colour": "red"}, "colour"),
    ("queue", {"name": "A", "structure": "nowhere"}, "nowhere"),
    ("channel", {"name": "C"}, "type"),
    ("channel", {"name": "C", "type": "sender", "connection_names": ["r:1414"]}, "transmission_queue"),
    ("channel", {"name": "C", "type": "sender", "transmission_queue": "R"}, "connection name"),
    ("channel", {"name": "C", "type": "sender", "transmission_queue": "R", "connection_names": ["r"]}, "host:port"),
    ("channel", {"name": "C", "type": "sender", "transmission_queue": "R", "connection_names": ["r:99999"]}, "port"),
    ("channel", {"name": "C", "type": "receiver", "batch_messages": 0}, "batch_messages"),
    ("channel", {"name": "C", "type": "receiver", "retry": {"short_ms": 1}}, "retry.short_ms"),
    ("channel", {"name": "C", "type": "receiver", "heartbeat_ms": "soon"}, "heartbeat_ms"),
    ("channel", {"name": "C", "type": "receiver", "structure": "nowhere"}, "nowhere"),
    ("settings", {"hop_limit": 0}, "hop_limit"),
    ("settings", {"dead_letter_queue": "not a name"}, "dead_letter_queue"),
]


@pytest.mark.parametrize(("kind", "definition", "field"), WRONG)
async def test_a_wrong_definition_is_refused_with_what_and_where(
    group: ConfiguredGroup, any_member: qsg.QueueManager, kind: str, definition: dict[str, Any], field: str
) -> None:
    reason, detail = await reason_of(any_member.command("define", kind=kind, definition=definition))
    assert reason == Reason.DEFINITION_ERROR, detail
    assert field in detail, detail
    if kind == "settings":
        wrong: dict[str, Any] = {"settings": definition}
    else:
        good = {"name": "GOOD"} | ({} if kind == "queue" else {"type": "receiver"})
        wrong = {f"{kind}s": [good, definition]}
    reason, detail = await reason_of(any_member.command("apply", definitions=wrong))
    assert reason == Reason.DEFINITION_ERROR, detail
    assert field in detail, detail
    assert (await reason_of(any_member.inquire("queue", "GOOD")))[0] == Reason.UNKNOWN_OBJECT_NAME, (
        "all or nothing of what is wrong in itself"
    )
    if kind != "settings":
        assert f"{kind}s.1" in detail, "where"


async def test_deleting_what_is_not_empty_or_in_use(group: ConfiguredGroup, flow: Flow, any_member: qsg.QueueManager) -> None:
    at = any_member
    for structure in ("private", "admin"):
        await at.command("define", kind="queue", definition={"name": "HELD", "structure": structure})
        await at.put("HELD", "a")
        assert (await reason_of(at.command("delete", kind="queue", name="HELD")))[0] == Reason.Q_NOT_EMPTY
        assert (await at.inquire_queue("HELD"))["depth"] == 1
        await at.command("delete", kind="queue", name="HELD", purge=True)
        assert (await reason_of(at.inquire_queue("HELD")))[0] == Reason.UNKNOWN_OBJECT_NAME
    for arguments in ({"name": REMOTE}, {"name": REMOTE, "purge": True}):
        reason, detail = await reason_of(at.command("delete", kind="queue", **arguments))
        assert reason in (Reason.OBJECT_IN_USE, Reason.Q_NOT_EMPTY), detail
    reason, _ = await reason_of(at.command("purge", name=REMOTE))
    assert reason == Reason.OBJECT_IN_USE
    reason, _ = await reason_of(at.get(REMOTE))
    assert reason in (Reason.OBJECT_IN_USE, Reason.GET_INHIBITED)
    assert (await reason_of(at.command("delete", kind="channel", name=OUT_CHANNEL)))[0] in (Reason.CHANNEL_IN_USE, Reason.OBJECT_IN_USE)
    await flow.moves()


# Processes that cannot start, or must end


async def run(*arguments: str, timeout_s: float = READY_S) -> tuple[int, str]:
    """Exit status and everything said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        async with asyncio.timeout(timeout_s):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, said.decode()


def written(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return str(path)


def config(directory: Path, **values: Any) -> dict[str, Any]:
    return {
        "member": "S",
        "data": str(directory / "data"),
        "socket": str(directory / "socket"),
        "address": "127.0.0.1:0",
        "local_listener": "127.0.0.1:0",
    } | values


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"member": "no name"}, "member"),
        ({"colour": 1}, "colour"),
        ({"slots": 0}, "slots"),
        ({"group": "G"}, "structures"),
        ({"group": "S", "structures": {"admin": {"endpoints": ["a:1"]}}}, "different names"),
        ({"group": "G", "structures": {"app": {"endpoints": ["a:1"]}}}, "admin"),
        ({"group": "G", "structures": {"admin": {"endpoints": []}}}, "structures.admin.endpoints"),
        ({"tls": {"ca": "x"}}, "tls.certificate"),
        ({"address": "nonsense"}, "address"),
        ({"address": "localhost:99999"}, "address"),
        ({"local_listener": "1414"}, "local_listener"),
        ({"aliases": {"r:1414": "nowhere"}}, "aliases"),
        ({"private_quota_bytes": -1}, "private_quota_bytes"),
    ],
)
async def test_a_wrong_configuration_names_file_and_field(tmp_path: Path, values: dict[str, Any], field: str) -> None:
    path = tmp_path / "member.yaml"
    written(path, config(tmp_path, **values))
    with pytest.raises(ConfigError) as error:
        load(path)
    assert str(path) in str(error.value)
    assert field in str(error.value)


async def test_processes_with_a_wrong_configuration_end_and_say_why(tmp_path: Path) -> None:
    path = written(tmp_path / "member.yaml", config(tmp_path, slots=0))
    for program in ("serve", "initiator"):
        status_, said = await run("qsg.process.run", program, path)
        assert (status_, "Traceback" in said) == (2, False), said
        assert path in said
        assert "slots" in said


@pytest.mark.parametrize("content", ["{", "- 1\n- 2\n", "", "member: [", "\x00\x01", "member: \xff"])
async def test_a_configuration_that_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "member.yaml"
    path.write_bytes(content.encode("latin-1"))
    for one in (path, tmp_path / "missing.yaml"):
        with pytest.raises(ConfigError) as error:
            load(one)
        assert str(one) in str(error.value)


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ({"queues": [{"name": "A"}, {"name": "B", "max_depth": -3}]}, "queues.1.max_depth"),
        ({"channels": [{"name": "C", "type": "sender"}]}, "channels.0"),
        ({"queue": []}, "queue"),
        ({"settings": {"hop_limit": "x"}}, "settings.hop_limit"),
        ({"queues": [{"name": "A", "structure": "nowhere"}]}, "nowhere"),
        ("[", "line"),
        ("- 1", "file"),
    ],
)
async def test_wrong_definitions_name_file_and_field(tmp_path: Path, content: object, field: str) -> None:
    path = tmp_path / "definitions.yaml"
    written(path, content)
    with pytest.raises(ConfigError) as error:
        read_definitions(path, {PRIVATE})
    assert str(path) in str(error.value)
    assert field in str(error.value)


async def test_a_process_with_wrong_definitions_ends_and_says_why(tmp_path: Path) -> None:
    definitions = written(tmp_path / "definitions.yaml", {"queues": [{"name": "A"}, {"name": "B", "max_depth": -3}]})
    path = written(tmp_path / "member.yaml", config(tmp_path, definitions=definitions))
    status_, said = await run("qsg.process.run", "serve", path)
    assert (status_, "Traceback" in said) == (1, False), said
    assert definitions in said
    assert "queues.1.max_depth" in said


async def test_an_address_that_is_taken(group: ConfiguredGroup, tmp_path: Path) -> None:
    taken = group.addresses["X"]
    path = written(tmp_path / "member.yaml", config(tmp_path, address=taken, local_listener=taken))
    for program in ("serve", "initiator"):
        status_, said = await run("qsg.process.run", program, path)
        assert status_ == 1, said
        assert taken in said
        assert "Traceback" not in said
    status_, said = await run("qsg.store.serve", str(tmp_path / "store.db"), group.store_address)
    assert status_ == 1, said
    assert group.store_address in said


async def test_a_newer_process_of_the_same_name_displaces_the_older(group: ConfiguredGroup, flow: Flow, tmp_path: Path) -> None:
    own = group.config("Y") | {
        "data": str(tmp_path / "data"),
        "socket": str(tmp_path / "socket"),
        "address": "127.0.0.1:0",
        "group_listener": "127.0.0.1:0",
        "local_listener": "127.0.0.1:0",
    }
    path = written(tmp_path / "member.yaml", own)
    old = group.supervisor.child("Y")
    old.restart = False
    newer = await group.supervisor.start("newer Y", [sys.executable, "-m", "qsg.process.run", "serve", path], restart=False)
    async with asyncio.timeout(READY_S):
        assert await old.wait() == DISPLACED
    assert newer.running
    assert group.logged(at="Y", event="another process has taken this member's name")
    await flow.moves()
    newer.signal(signal.SIGTERM)
    async with asyncio.timeout(READY_S):
        assert await newer.wait() == 0
    await group.supervisor.start("Y", [sys.executable, "-m", "qsg.process.run", "serve", str(group.configs["Y"])])
    await flow.moves()
