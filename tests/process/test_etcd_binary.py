"""Which etcd is used. (Building one takes minutes and is tried when the cache is empty.)"""

from __future__ import annotations

from pathlib import Path

import pytest

from qsg.process import etcd, etcd_binary, go_build


def fake_etcd(folder: Path, version: str) -> Path:
    folder.mkdir(parents=True)
    path = folder / "etcd"
    path.write_text(f"#!/bin/sh\necho 'etcd Version: {version}'\necho 'Go Version: go1.99.1'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return fake_etcd(etcd_binary.cache_directory(), etcd_binary.VERSION)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("etcd Version: 3.6.16\nGit SHA: 1a2b", (3, 6, 16)), ("go1.26", (1, 26, 0)), ("devel", (0, 0, 0)), ("v3.5.21-rc.0", (3, 5, 21))],
)
def test_versions(text: str, expected: tuple[int, int, int]) -> None:
    assert go_build.version_of(text) == expected


@pytest.mark.parametrize("version", ["3.5.18", "3.6.0", "4.0.0"])
def test_one_on_the_path_is_used_if_it_is_new_enough(version: str, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = fake_etcd(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", f"{own.parent}:/bin")
    assert etcd.ensure() == own


@pytest.mark.parametrize("version", ["3.4.23", "3.5.17", "nonsense"])
def test_an_old_one_on_the_path_is_passed_over_and_that_is_said(
    version: str, cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = fake_etcd(tmp_path / "bin", version)
    monkeypatch.setenv("PATH", f"{own.parent}:/bin")
    assert etcd.ensure() == cached
    said = capsys.readouterr().err
    assert f"{own} is" in said and str(cached) in said


def test_the_command_prints_the_path_alone(cached: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert etcd.main(["ensure"]) == 0
    assert capsys.readouterr().out == f"{cached}\n"
    assert etcd.main(["remove"]) == 2


def test_where_none_can_be_had_the_reason_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "bin" / "go"
    broken.parent.mkdir()
    broken.write_text('#!/bin/sh\n[ "$1" = env ] && echo go1.26.8 && exit\necho no network >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{broken.parent}:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert etcd.main(["ensure"]) == 1
    assert "no network" in capsys.readouterr().err
    assert not (etcd_binary.cache_directory() / "etcd").exists()
