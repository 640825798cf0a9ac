"""Marked places of the code at which tests make a process die, stall or fail.

Owns the list of the places (`POINTS`) and what is armed in this process. Invariant: a place at which nothing is armed costs one look-up in
a dictionary that is empty; nothing is armed but by a test, or by the environment of the process. Rules hold no places: they are marked in
the managers that drive them.

`QSG_FAILPOINTS` arms: either "point=action;point=action", each time the point is reached, or "@FOLDER", which is watched, so that a running
process can be armed: a file FOLDER/<point> holds an action, and of all processes that watch the folder the one that reaches the point
first carries it out, once. The file is then called <point>.hit. Actions: `kill`, `pause MILLISECONDS`, `raise`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

VARIABLE = "QSG_FAILPOINTS"
WATCH_S = 0.05

POINTS = {
    "sender.after_bind_before_delete": "the partner has answered a bind; what its record covers is still on the queue",
    "sender.after_batch_before_confirm": "a batch is on its way to the partner",
    "sender.after_confirm_before_delete": "the partner has confirmed; the messages are still on the queue",
    "receiver.after_bind_before_answer": "the fence of a bind is raised; the sender does not know it",
    "receiver.before_commit": "a batch was accepted; nothing of it is stored",
    "receiver.after_commit_before_confirm": "a batch is stored; the sender does not know it",
    "ownership.before_lock": "a channel is about to be taken",
    "ownership.after_lock": "a channel is taken; no sender runs",
    "ownership.before_entry": "an entry of the status table is about to change",
    "ownership.after_entry": "an entry of the status table has changed",
    "ownership.before_release": "a channel is about to be given up",
    "ownership.after_release": "a channel is given up; nobody is asked to take it",
    "recovery.before_entry": "an entry of a lost owner was found, not taken over",
    "recovery.after_entry": "an entry of a lost owner is ours; nobody is asked to start its channel",
    "committer.before_repeat": "a transaction has an unknown outcome",
    "committer.after_commit_before_answer": "a transaction is committed; whoever asked for it does not know",
    "membership.after_delete_before_create": "a member deleted its earlier key, and has none",
    "put.after_commit_before_answer": "messages were put; the application does not know",
    "get.after_commit_before_answer": "messages are taken or claimed; the application does not have them",
    "unit.after_commit_before_answer": "a unit of work is committed; the application does not know",
    "handover.before_channels": "a planned stop begins; the channels are still here",
    "handover.after_gift": "a channel belongs to another member, which has not been told",
    "handover.after_channels": "a planned stop has given its channels away; the member is still there",
    "relay.before_partner": "a frame is about to go to the partner",
    "relay.before_queue_manager": "a frame of the partner is about to go to the queue manager",
    "sqlite.before_commit": "a group of requests is carried out, not durable",
    "sqlite.after_commit_before_answer": "a group is durable; nobody knows it",
}


class FailpointError(Exception):
    """The action `raise`."""


class Action:
    """What happens at a point. `take` says whether it is this time this process's to carry out."""

    def __init__(self, kind: str, pause_s: float = 0.0, take: Callable[[], bool] = lambda: True) -> None:
        self.kind, self.pause_s, self.take = kind, pause_s, take

    @classmethod
    def parse(cls, text: str, take: Callable[[], bool] = lambda: True) -> Action:
        words = text.split()
        if words in (["kill"], ["raise"]):
            return cls(words[0], take=take)
        if len(words) == 2 and words[0] == "pause" and words[1].isdecimal():
            return cls("pause", int(words[1]) / 1000, take)
        raise ValueError(f"{text!r} is no action: kill, raise or pause MILLISECONDS")

    def begin(self, name: str) -> float:
        """Kills, raises, or answers for how long to pause."""
        if not self.take():
            return 0.0
        if self.kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "raise":
            raise FailpointError(name)
        return self.pause_s


_armed: dict[str, Action] = {}


def failpoint(name: str) -> None:
    """A place in a thread of its own: a pause holds the thread up."""
    action = _armed.get(name)
    if action is not None and (pause_s := action.begin(name)):
        time.sleep(pause_s)


async def task_failpoint(name: str) -> None:
    """A place in a task: a pause holds up this task only."""
    action = _armed.get(name)
    if action is not None and (pause_s := action.begin(name)):
        await asyncio.sleep(pause_s)


def arm(name: str, action: Action) -> None:
    if name not in POINTS:
        raise ValueError(f"there is no failpoint {name!r}")
    _armed[name] = action


def disarm(*names: str) -> None:
    """All, when none is named."""
    for name in names or list(_armed):
        _armed.pop(name, None)


def arm_from_environment() -> None:
    """For the start of a process. Raises `ValueError` when the variable says something else than points and actions."""
    told = os.environ.get(VARIABLE, "")
    if told.startswith("@"):
        folder = Folder(Path(told[1:]))
        folder.look()
        threading.Thread(target=folder.watch, name="failpoints", daemon=True).start()
        return
    for one in filter(None, told.split(";")):
        name, _, action = one.partition("=")
        arm(name.strip(), Action.parse(action))


class Folder:
    """Points armed by files, in every process that watches the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: set[str] = set()

    def watch(self) -> None:
        while True:
            time.sleep(WATCH_S)
            self.look()

    def look(self) -> None:
        try:
            found = {name for name in os.listdir(self.path) if name in POINTS}
        except FileNotFoundError:
            found = set()
        for name in self._seen - found:
            disarm(name)
        for name in found - self._seen:
            try:
                arm(name, Action.parse((self.path / name).read_text(), self._taker(name)))
            except FileNotFoundError:
                continue  # another process was faster
        self._seen = found

    def _taker(self, name: str) -> Callable[[], bool]:
        def take() -> bool:
            disarm(name)
            try:
                os.rename(self.path / name, self.path / f"{name}.hit")
            except FileNotFoundError:
                return False
            return True

        return take

    # For who arms

    def arm(self, name: str, action: str) -> None:
        """The file appears whole: half of it would not be an action."""
        Action.parse(action)
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / f"{name}.hit").unlink(missing_ok=True)
        new = self.path / f"{name}.new"
        new.write_text(action)
        new.rename(self.path / name)

    def hit(self, name: str) -> bool:
        return (self.path / f"{name}.hit").exists()

    def disarm(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)
