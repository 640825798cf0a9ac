"""A member's own address may come from its environment, as a pod's does."""

from __future__ import annotations

from pathlib import Path

import pytest

from qsg.process.config import ConfigError, load


def written(folder: Path, advertise: str) -> Path:
    path = folder / "x.yaml"
    path.write_text(f"member: X\ndata: {folder}\nsocket: {folder}/socket\nadvertise: {advertise}\n")
    return path


@pytest.mark.parametrize(("address", "told"), [("10.1.2.3", "10.1.2.3:1416"), ("fd00::7", "[fd00::7]:1416")])
def test_an_address_from_the_environment(tmp_path: Path, address: str, told: str) -> None:
    assert load(written(tmp_path, "$(POD_IP):1416"), {"POD_IP": address}).advertise == told


def test_an_address_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs the environment variable POD_IP"):
        load(written(tmp_path, "$(POD_IP):1416"), {})


def test_an_address_as_it_stands(tmp_path: Path) -> None:
    assert load(written(tmp_path, "x.example:1416"), {}).advertise == "x.example:1416"
