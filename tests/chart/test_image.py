"""What the image is made of, as far as files tell: everything that runs is locked, and nothing that only builds is in it."""

from __future__ import annotations

import re
import tomllib

from support.crds import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def locked(lock: str) -> dict[str, str]:
    """Package -> version."""
    return dict(re.findall(r"^([a-z0-9][a-z0-9.-]*)==(\S+)", (ROOT / "requirements" / f"{lock}.lock").read_text(), re.MULTILINE))


def named(requirements: list[str]) -> set[str]:
    return {found[0].lower() for one in requirements if (found := re.match(r"[A-Za-z0-9_.-]+", one)) is not None}


def test_what_runs_has_nothing_that_only_builds() -> None:
    (runs,) = re.findall(r"/opt/qsg/bin/pip install .*--require-hashes -r requirements/(\w+)\.lock", DOCKERFILE)
    (builds,) = re.findall(r"/opt/build/bin/pip install .*--require-hashes -r requirements/(\w+)\.lock", DOCKERFILE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert named(project["build-system"]["requires"]) <= set(locked(builds))
    assert named(project["project"]["dependencies"] + project["project"]["optional-dependencies"]["operator"]) <= set(locked(runs))
    assert not set(locked(builds)) & set(locked(runs))
    assert set(locked("run")) - set(locked(builds)) <= set(locked(runs))


def test_locks_agree() -> None:
    dev = locked("dev")
    for lock in ("run", "build", "operator"):
        assert locked(lock).items() <= dev.items(), lock


def test_what_is_copied_may_be_copied() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for path in line.split()}
    assert copied == let_in
