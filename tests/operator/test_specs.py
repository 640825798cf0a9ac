"""The pydantic specs and the schemas of the chart say the same: fields, types, defaults, bounds, enums."""

from __future__ import annotations

from typing import Any

import pytest

from qsg_operator import names
from qsg_operator.specs.channel import SharedChannel
from qsg_operator.specs.common import Spec
from qsg_operator.specs.group import QueueSharingGroup
from qsg_operator.specs.manager import QueueManager
from qsg_operator.specs.queue import SharedQueue
from support.crds import Schema, crds, defaulted, schema

MODELS: dict[str, type[Spec]] = {
    names.QUEUE_SHARING_GROUP: QueueSharingGroup,
    names.SHARED_CHANNEL: SharedChannel,
    names.SHARED_QUEUE: SharedQueue,
    names.QUEUE_MANAGER: QueueManager,
}
LEAST: dict[str, dict[str, Any]] = {
    names.QUEUE_SHARING_GROUP: {},
    names.SHARED_CHANNEL: {"type": "Receiver", "group": "orders"},
    names.SHARED_QUEUE: {"group": "orders"},
    names.QUEUE_MANAGER: {},
}
BOUNDS = ("minimum", "maximum", "pattern")


def resolved(part: Schema, root: Schema) -> Schema:
    """Without references, and without the null of optional fields."""
    if "$ref" in part:
        part = {**root["$defs"][part["$ref"].rpartition("/")[2]], **{k: v for k, v in part.items() if k != "$ref"}}
    if "anyOf" in part:
        (one,) = [o for o in part["anyOf"] if o.get("type") != "null"]
        return resolved(one, root)
    return part


def compare(model: Schema, crd: Schema, root: Schema, path: str) -> list[str]:
    model = resolved(model, root)
    found: list[str] = []
    if crd.get("x-kubernetes-preserve-unknown-fields"):
        return found
    if model.get("type") != crd.get("type"):
        found.append(f"{path}: type {model.get('type')} and {crd.get('type')}")
    if sorted(map(str, model.get("enum", []))) != sorted(map(str, crd.get("enum", []))):
        found.append(f"{path}: enum {model.get('enum')} and {crd.get('enum')}")
    found += [
        f"{path}: {bound} {model.get(bound)} and {crd.get(bound)}"
        for bound in BOUNDS
        if model.get("type") != "array" and model.get(bound) != crd.get(bound)
    ]
    if model.get("type") == "array":
        if "maxItems" in model and model["maxItems"] != crd.get("maxItems"):
            found.append(f"{path}: maxItems {model['maxItems']} and {crd.get('maxItems')}")
        inner = resolved(model["items"], root)
        if inner.get("type") == "object":
            found += compare(inner, crd["items"], root, f"{path}[]")
    ours, theirs = model.get("properties", {}), crd.get("properties", {})
    if set(ours) != set(theirs):
        found.append(f"{path}: only one has {sorted(set(ours) ^ set(theirs))}")
    for name in set(ours) & set(theirs):
        found += compare(ours[name], theirs[name], root, f"{path}.{name}")
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_model_and_schema_have_the_same_fields_bounds_and_enums(kind: str) -> None:
    model = MODELS[kind].model_json_schema(by_alias=True)
    assert compare(model, schema(kind, "spec"), model, "spec") == []


@pytest.mark.parametrize("kind", MODELS)
def test_model_and_schema_have_the_same_defaults(kind: str) -> None:
    by_server = MODELS[kind].model_validate(defaulted(LEAST[kind], schema(kind, "spec")))
    assert by_server == MODELS[kind].model_validate(LEAST[kind])


@pytest.mark.parametrize("kind", MODELS)
def test_every_default_is_whole(kind: str) -> None:
    """A default with holes makes the API server refuse the whole definition when a rule looks into it."""

    def holes(part: Schema, path: str) -> list[str]:
        found = []
        if part.get("x-kubernetes-validations") and isinstance(part.get("default"), dict):
            whole = defaulted(part["default"], part)
            found += [f"{path}.{name}" for name in whole if name not in part["default"] and name not in ("structures", "managed")]
        for name, inner in part.get("properties", {}).items():
            found += holes(inner, f"{path}.{name}")
        return found

    assert holes(schema(kind, "spec"), "spec") == []


@pytest.mark.parametrize("kind", MODELS)
def test_conventions_of_the_definitions(kind: str) -> None:
    crd = crds()[kind]
    assert crd["metadata"]["name"] == f"{names.PLURALS[kind]}.{names.GROUP}"
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert crd["spec"]["scope"] == "Namespaced"
    assert crd["spec"]["names"]["categories"] == ["qsg"]
    # `kubectl get qsg NAME` would mean the category, and fail.
    assert crd["spec"]["names"]["shortNames"] != crd["spec"]["names"]["categories"]
    (version,) = crd["spec"]["versions"]
    assert version["subresources"]["status"] == {}
    assert schema(kind, "status")["default"] == {"observedGeneration": -1}
    columns = {column["name"]: column["jsonPath"] for column in version["additionalPrinterColumns"]}
    assert {"Ready", "Age"} <= set(columns)
    for path in columns.values():
        part: Any = schema(kind)
        for step in path.split("[")[0].strip(".").split("."):
            if path.startswith(".metadata"):
                break
            part = part["properties"][step]


@pytest.mark.parametrize("kind", MODELS)
def test_every_string_and_list_is_bounded(kind: str) -> None:
    """What has no bound costs a rule its budget, and the store its room."""

    def unbounded(part: Schema, path: str) -> list[str]:
        found = []
        if part.get("type") == "string" and not ({"enum", "maxLength"} & set(part)):
            found.append(path)
        for name, inner in part.get("properties", {}).items():
            found += unbounded(inner, f"{path}.{name}")
        return found

    assert unbounded(schema(kind, "spec"), "spec") == []


def test_the_shared_part_of_groups_and_queue_managers_is_the_same() -> None:
    group, manager = (schema(kind, "spec")["properties"] for kind in (names.QUEUE_SHARING_GROUP, names.QUEUE_MANAGER))
    shared = (set(group) & set(manager)) - {"settings"}
    assert {"image", "storage", "tls", "resources", "scheduling", "channelDefaults"} <= shared
    assert {name: group[name] for name in shared} == {name: manager[name] for name in shared}
    assert group["portal"] == manager["listener"]


def unexplained(of: Schema, path: str = "") -> list[str]:
    found = []
    for name, part in of.get("properties", {}).items():
        found += [] if part.get("description") else [f"{path}.{name}"]
        if not part.get("x-kubernetes-preserve-unknown-fields"):
            found += unexplained(part, f"{path}.{name}") + unexplained(part.get("items", {}), f"{path}.{name}[]")
    return found


@pytest.mark.parametrize("kind", MODELS)
def test_kubectl_explain_says_something_of_every_field(kind: str) -> None:
    assert unexplained(schema(kind, "spec")) == []


def stores(of: Schema, path: str) -> dict[str, Schema]:
    """Every place where a store is managed or external."""
    found = {path: of} if {"managed", "external"} <= set(of.get("properties", {})) else {}
    for name, part in of.get("properties", {}).items():
        found |= stores(part, f"{path}.{name}") | stores(part.get("items", {}), f"{path}.{name}[]")
    return found


def test_no_store_can_be_exchanged_for_one_of_the_other_kind() -> None:
    found = stores(schema(names.QUEUE_SHARING_GROUP, "spec"), "spec")
    assert set(found) == {"spec.store", "spec.store.structures[]"}
    for path, of in found.items():
        rules = {one["rule"]: one["message"] for one in of["x-kubernetes-validations"]}
        assert "exactly one of managed and external" in rules["has(self.managed) != has(self.external)"], path
        assert "cannot be exchanged for each other" in rules["has(self.managed) == has(oldSelf.managed)"], path
    # Items of a list have an `oldSelf` only when the list is a map by their names.
    items = schema(names.QUEUE_SHARING_GROUP, "spec")["properties"]["store"]["properties"]["structures"]
    assert (items["x-kubernetes-list-type"], items["x-kubernetes-list-map-keys"]) == ("map", ["name"])
