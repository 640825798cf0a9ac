"""The way through the house must lead to rooms that exist."""

from __future__ import annotations

import re
from pathlib import Path

import qsg

ROOT = Path(__file__).parents[2]
PACKAGE = Path(str(qsg.__file__)).parent


def test_every_module_that_the_architecture_names_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`((?:rules|store|transport|manager|initiator|client|process)/\w+\.py)`", text))

    assert len(named) > 15
    assert [] == sorted(name for name in named if not (PACKAGE / name).is_file())


def test_every_link_leads_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"
