"""The chart's custom resource definitions, read as they stand, and their defaulting as the API server does it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "qsg"

Schema = dict[str, Any]


@cache
def crds() -> dict[str, dict[str, Any]]:
    """By kind. The template lines around them are left out."""
    found = {}
    for path in sorted((CHART / "templates" / "crds").glob("*.yaml")):
        text = "\n".join(line for line in path.read_text().splitlines() if not line.startswith("{{"))
        crd = yaml.safe_load(text)
        found[crd["spec"]["names"]["kind"]] = crd
    return found


def schema(kind: str, part: str = "") -> Schema:
    """The whole schema of a kind, or that of its `spec` or `status`."""
    (version,) = crds()[kind]["spec"]["versions"]
    whole: Schema = version["schema"]["openAPIV3Schema"]
    return whole["properties"][part] if part else whole


def defaulted(value: Any, of: Schema) -> Any:
    """With the schema's defaults, as the API server stores it."""
    if isinstance(value, dict):
        value = dict(value)
        for name, inner in of.get("properties", {}).items():
            if name not in value and "default" in inner:
                value[name] = inner["default"]
            if name in value:
                value[name] = defaulted(value[name], inner)
    elif isinstance(value, list):
        value = [defaulted(one, of.get("items", {})) for one in value]
    return value


def unknown(value: Any, of: Schema, path: str = "") -> list[str]:
    """Fields that the API server would prune."""
    found: list[str] = []
    if isinstance(value, dict) and not of.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in of:
        for name, inner in value.items():
            if name not in of.get("properties", {}):
                found.append(f"{path}.{name}")
            else:
                found += unknown(inner, of["properties"][name], f"{path}.{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            found += unknown(one, of.get("items", {}), f"{path}[{number}]")
    return found
