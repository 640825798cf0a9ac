"""New files: there whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsg.store.contract import StoreError
from qsg.store.files import new_file


def test_a_new_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    with new_file(target) as part:
        part.write_bytes(b"half")
        assert not target.exists()
        part.write_bytes(b"whole")
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(target, b"whole")]


def test_nothing_is_left_of_one_that_failed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no room"), new_file(tmp_path / "copy") as part:
        part.write_bytes(b"half")
        raise OSError("no room")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_left(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    target.write_bytes(b"before")
    with pytest.raises(StoreError, match="exists already"), new_file(target) as part:
        part.write_bytes(b"after")
    assert [(path, path.read_bytes()) for path in tmp_path.iterdir()] == [(target, b"before")]
