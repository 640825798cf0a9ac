"""The group under torture: real processes on a real etcd of three members with a small quota, every path through a proxy that can be cut.

Adds to `LocalGroup`: clocks that can be stepped, failpoints that can be armed, and a disk of R that can be filled.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

import qsg
from qsg.failpoint import VARIABLE, Folder
from qsg.process.etcd_cluster import EtcdOptions
from qsg.process.local import REMOTE, LocalGroup
from torture.process import CLOCK, PLANTED

QUOTA_BYTES = 96 << 20
"""Of etcd."""
DISK_BYTES = 160 << 20
DISK_QUOTA_BYTES = 24 << 20
JUNK = "JUNK"
CONNECT_S = 120.0
TESTS = Path(__file__).parents[1]


class Disk:
    """A small file system of its own for R's data; where none can be mounted, R's store has a small quota instead."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mounted = False

    def mount(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        mount = shutil.which("mount")
        if mount is not None and os.geteuid() == 0:
            command = [mount, "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(self.folder)]
            self.mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0

    def unmount(self, keep: Path) -> None:
        """What lies there is kept."""
        if self.mounted:
            shutil.copytree(self.folder, keep, dirs_exist_ok=True, ignore=shutil.ignore_patterns("hog"))
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)
            self.mounted = False

    def fill(self) -> bool:
        """To the last byte; whether it is full."""
        full = False
        with (self.folder / "hog").open("wb", buffering=0) as hog:
            for size in (1 << 20, 512):
                try:
                    while True:
                        hog.write(bytes(size))
                except OSError as error:
                    full = error.errno == errno.ENOSPC
        return full

    def free(self) -> None:
        (self.folder / "hog").unlink(missing_ok=True)


class TortureGroup(LocalGroup):
    def __init__(self, directory: Path, planted: str = "") -> None:
        """`planted`: a bug that every process has."""
        super().__init__(directory, store="etcd", etcd_options=EtcdOptions(quota_bytes=QUOTA_BYTES), isolable=True)
        self.failpoints = Folder(directory / "failpoints")
        self.disk = Disk(directory / REMOTE / "data")
        self._planted = planted

    async def start(self) -> None:
        self.disk.mount()
        await super().start()

    async def stop(self) -> None:
        await super().stop()
        self.disk.unmount(self.directory / REMOTE / "kept")

    @property
    def remote_store(self) -> Path:
        """R's file, once all has been stopped."""
        kept = self.directory / REMOTE / "kept" / "private.db"
        return kept if kept.exists() else self.directory / REMOTE / "data" / "private.db"

    def _entry(self) -> list[str]:
        return [sys.executable, "-m", "torture.process"]

    def _environment(self, process: str) -> Mapping[str, str]:
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        ours = {VARIABLE: f"@{self.failpoints.path}", CLOCK: str(self._clock(process.split(".")[0])), PLANTED: self._planted}
        return {**os.environ, "PYTHONPATH": path, **ours}

    def _config(self, name: str, place: dict[str, str], endpoints: list[str], aliases: dict[str, str]) -> Path:
        path = super()._config(name, place, endpoints, aliases)
        if name == REMOTE and not self.disk.mounted:
            config = yaml.safe_load(path.read_text()) | {"private_quota_bytes": DISK_QUOTA_BYTES}
            path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    # Clocks

    def _clock(self, member: str) -> Path:
        return self.directory / f"{member}.clock"

    def step_clock(self, member: str, seconds: float) -> None:
        """Both processes of a member are off by so much from now on."""
        self._clock(member).write_text(str(seconds))

    # R's disk

    async def fill_disk(self) -> str:
        """What is full now; "": nothing, as far as was seen."""
        if self.disk.mounted:
            return "its file system, to the last byte" if self.disk.fill() else ""
        async with qsg.connect(self.remote_address, connect_s=CONNECT_S) as remote:
            await remote.command("define", kind="queue", definition={"name": JUNK})
            for _ in range(2 * DISK_QUOTA_BYTES // 200_000):
                try:
                    await remote.put(JUNK, bytes(200_000))
                except qsg.StorageNotAvailable:
                    return "a quota of its store (no file system of its own could be mounted)"
        return ""

    async def free_disk(self) -> None:
        if self.disk.mounted:
            self.disk.free()
            return
        async with qsg.connect(self.remote_address, connect_s=CONNECT_S) as remote:
            while True:
                try:
                    await remote.get_many(JUNK, 20)
                except qsg.NoMessageAvailable:
                    return
