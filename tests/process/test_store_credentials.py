"""User and password of a structure come from files, so that they need not be in a configuration that many may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsg.process import security
from qsg.process.config import ConfigError, StructureConfig


def test_user_and_password_are_read_from_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "user").write_text("qsg\n")
    (tmp_path / "password").write_text("secret\n")
    given: dict[str, object] = {}
    monkeypatch.setattr(security, "EtcdStore", lambda endpoints, **options: given.update(options))
    security.store_of(StructureConfig(endpoints=("etcd:2379",), credentials=tmp_path, quota_bytes=8 << 30))
    assert (given["user"], given["password"]) == ("qsg", "secret")
    assert given["quota_bytes"] == 8 << 30, "etcd before 3.6 does not tell it, and puts must be refused before it is full"


def test_a_missing_file_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"credentials: .*user"):
        security.store_of(StructureConfig(endpoints=("etcd:2379",), credentials=tmp_path))
