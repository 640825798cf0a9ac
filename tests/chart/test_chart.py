"""The chart: what it renders, and what it refuses, with helm (see `support.helm`); the rest of the tests read files only."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from qsg_operator import leader, names
from qsg_operator.children.all import Spare, children
from qsg_operator.handlers import _where
from qsg_operator.metrics import VALUES, Metrics
from qsg_operator.runtime import CHILDREN, RESOURCES
from qsg_operator.selftest import resources as selftest_resources
from qsg_operator.settings import Settings
from support.crds import CHART, defaulted, schema, unknown
from support.helm import ensure
from support.owners import group

with_helm = pytest.mark.timeout(1800)
"""The first may have to build it."""
EVERYTHING = (
    "replicas=2,networkPolicy.enabled=true,metrics.serviceMonitor.enabled=true,metrics.rules.enabled=true,metrics.dashboard.enabled=true"
)


HELM = cache(ensure)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([HELM(), *arguments], capture_output=True, text=True, timeout=60, check=False)


@cache
def rendered(*values: str) -> list[dict[str, Any]]:
    sets = [part for value in values for part in ("--set", value)]
    done = helm("template", "r", str(CHART), "--namespace", "ops", "--kube-version", "1.34.0", *sets)
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one]


def of_kind(kind: str, *values: str) -> list[dict[str, Any]]:
    return [one for one in rendered(*values) if one["kind"] == kind]


def environment(*values: str) -> dict[str, str]:
    (deployment,) = of_kind("Deployment", *values)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    return {e["name"]: e.get("value", "from the pod") for e in container["env"]}


@with_helm
def test_lint() -> None:
    done = helm("lint", "--strict", str(CHART))
    assert done.returncode == 0, done.stdout + done.stderr


@with_helm
def test_by_default_there_is_the_operator_its_rights_and_the_definitions() -> None:
    kinds = [one["kind"] for one in rendered()]
    assert kinds.count("CustomResourceDefinition") == 4 and kinds.count("Deployment") == 1
    assert not {"PodMonitor", "PrometheusRule", "NetworkPolicy", "ConfigMap", "PodDisruptionBudget"} & set(kinds)


@with_helm
def test_everything_can_be_had() -> None:
    kinds = {one["kind"] for one in rendered(EVERYTHING)}
    assert {"PodMonitor", "PrometheusRule", "NetworkPolicy", "ConfigMap", "PodDisruptionBudget"} <= kinds


@with_helm
def test_definitions_can_be_left_out_and_are_kept() -> None:
    assert not of_kind("CustomResourceDefinition", "crds.enabled=false")
    for crd in of_kind("CustomResourceDefinition"):
        assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@with_helm
def test_the_operator_understands_what_the_chart_tells_it() -> None:
    given = environment("watchNamespaces={a,b}", "image.repository=reg/qsg", "image.tag=2", "etcd.image=reg/etcd:3")
    settings = Settings.from_environment(given)
    assert settings.watch == ("a", "b") and settings.images.qsg == "reg/qsg:2" and settings.images.etcd == "reg/etcd:3"
    assert settings.images.pull_policy == "IfNotPresent" and settings.images.pull_secrets == ()
    told = ("IMAGE", "IMAGE_PULL_POLICY", "IMAGE_PULL_SECRETS", "ETCD_IMAGE", "NAMESPACE", "POD", "WATCH_NAMESPACES", "WORKERS")
    assert set(given) == {f"QSG_OPERATOR_{name}" for name in told}
    assert settings.liveness.endswith(":8080/healthz") and settings.metrics_port == 8081


@with_helm
def test_how_the_image_is_pulled_is_told_for_pods_of_groups_too() -> None:
    values = ("image.pullPolicy=Always", "imagePullSecrets[0].name=one", "imagePullSecrets[1].name=two")
    images = Settings.from_environment(environment(*values)).images
    assert (images.pull_policy, images.pull_secrets) == ("Always", ("one", "two"))
    (deployment,) = of_kind("Deployment", *values)
    assert deployment["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "one"}, {"name": "two"}]


@with_helm
def test_an_image_by_digest() -> None:
    digest = "sha256:" + "0" * 64
    assert environment(f"image.digest={digest}")["QSG_OPERATOR_IMAGE"] == f"qsg@{digest}"


def allowed(rules: list[dict[str, Any]], group: str, resource: str) -> set[str]:
    return {v for r in rules if group in r["apiGroups"] and resource in r["resources"] and "resourceNames" not in r for v in r["verbs"]}


@with_helm
@pytest.mark.parametrize("values", [(), ("watchNamespaces={a,b}",)])
def test_the_operator_may_do_what_it_does_and_no_more(values: tuple[str, ...]) -> None:
    (role, *more) = of_kind("Role" if values else "ClusterRole", *values)
    roles = [one for one in (role, *more) if one["metadata"]["name"].endswith("-operator")]
    assert [one["metadata"].get("namespace") for one in roles] == (["a", "b"] if values else [None])
    for one in roles:
        rules = one["rules"]
        for kind in (*RESOURCES, *CHILDREN, "Lease"):
            api_group, _, plural = _where(kind)
            assert {"list", "watch"} <= allowed(rules, api_group, plural), kind
        for kind in set(CHILDREN) - {"Pod"}:
            api_group, _, plural = _where(kind)
            assert {"get", "create", "patch"} <= allowed(rules, api_group, plural), kind
        for plural in names.PLURALS.values():
            assert allowed(rules, names.GROUP, f"{plural}/status") == {"patch"}
            assert not {"create", "patch", "delete"} & allowed(rules, names.GROUP, plural)
        assert allowed(rules, "", "secrets") == {"get", "create", "patch"}
        assert allowed(rules, "", "pods") == {"get", "list", "watch"}
        assert not any("*" in part or "delete" in r["verbs"] for r in rules for part in (r["apiGroups"], r["resources"], r["verbs"]))


@with_helm
@pytest.mark.parametrize(
    ("values", "namespace"),
    [((), "ops"), (("watchNamespaces={a,b}",), "a"), (("watchNamespaces={a,ops}",), "ops")],
)
def test_the_lease_is_where_the_operator_looks_for_it(values: tuple[str, ...], namespace: str) -> None:
    (role,) = [one for one in of_kind("Role", *values) if one["metadata"]["name"].endswith("-lease")]
    assert role["metadata"]["namespace"] == namespace
    assert role["rules"][1]["resourceNames"] == [leader.NAME]
    settings = Settings.from_environment(environment(*values) | {"QSG_OPERATOR_NAMESPACE": "ops"})
    assert settings.lease_namespace == namespace


@with_helm
def test_namespaced_mode_needs_nothing_of_the_cluster() -> None:
    kinds = {one["kind"] for one in rendered("watchNamespaces={a}", "crds.enabled=false")}
    assert not {"ClusterRole", "ClusterRoleBinding"} & kinds


@with_helm
def test_the_pod_of_helm_test_is_none_of_the_operators() -> None:
    """It has no controller, so that a budget that selects it could not be calculated any more."""
    (deployment,), (pod,), (budget,) = of_kind("Deployment"), of_kind("Pod"), of_kind("PodDisruptionBudget", "replicas=2")
    selector = budget["spec"]["selector"]["matchLabels"]
    assert selector == deployment["spec"]["selector"]["matchLabels"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert not selector.items() <= pod["metadata"]["labels"].items()
    assert pod["metadata"]["labels"]["app.kubernetes.io/instance"] == "r"


@with_helm
def test_pods_meet_the_restricted_standard() -> None:
    (deployment,) = of_kind("Deployment")
    test_pod = of_kind("Pod")
    for pod in (deployment["spec"]["template"]["spec"], *(one["spec"] for one in test_pod)):
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False and context["readOnlyRootFilesystem"] is True
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["requests"] and container["resources"]["limits"]


@with_helm
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("replica=2", "replica"),
        ("replicas=9", "replicas"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
        ("watchNamespaces={Bad_Name}", "watchNamespaces"),
        ("metrics.serviceMonitor.interval=often", "interval"),
    ],
)
def test_a_typing_mistake_is_refused(value: str, told: str) -> None:
    done = helm("template", "r", str(CHART), "--kube-version", "1.34.0", "--set", value)
    assert done.returncode != 0 and told in done.stderr


def test_notes_name_what_the_examples_make() -> None:
    notes = (CHART / "templates" / "NOTES.txt").read_text()
    made = {(one["kind"], one["metadata"]["name"]) for one in examples()}
    kinds = {"qsgroup": names.QUEUE_SHARING_GROUP, "qm": names.QUEUE_MANAGER, "schan": names.SHARED_CHANNEL}
    named = {(kinds[short], name) for short, name in re.findall(r"\b(qsgroup|qm|schan)/([a-z-]+)\b", notes)}
    assert len(named) == 4 and named <= made


def examples(folder: str = "examples") -> list[dict[str, Any]]:
    paths = sorted((CHART / folder).glob("*.yaml"))
    return [one for path in paths for one in yaml.safe_load_all(path.read_text())]


MORE = [one for one in examples("examples/more") if one["apiVersion"] == names.API_VERSION]


@pytest.mark.parametrize(
    "one", [*examples(), *MORE, *selftest_resources("ops")], ids=lambda one: f"{one['kind']}-{one['metadata']['name']}"
)
def test_examples_are_what_the_schemas_take(one: dict[str, Any]) -> None:
    of = schema(one["kind"], "spec")
    spec = defaulted(one["spec"], of)
    assert unknown(spec, of) == []
    jsonschema.validate(spec, of)


def test_examples_fit_together() -> None:
    made = {(one["kind"], one["metadata"]["name"]): one for one in examples()}
    for (kind, name), one in made.items():
        if kind in (names.SHARED_CHANNEL, names.SHARED_QUEUE):
            target = one["spec"].get("group"), one["spec"].get("queueManager")
            assert (names.QUEUE_SHARING_GROUP, target[0]) in made or (names.QUEUE_MANAGER, target[1]) in made, name
    channels = [one for (kind, _), one in made.items() if kind == names.SHARED_CHANNEL]
    ends = {(c["spec"].get("channelName") or names.mq_name(c["metadata"]["name"]), c["spec"]["type"]) for c in channels}
    assert ends == {(name, type_) for name in ("ORDERS.TO.BANK", "BANK.TO.ORDERS") for type_ in ("Sender", "Receiver")}


def test_default_values_are_what_the_schema_takes() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    jsonschema.validate(values, json.loads((CHART / "values.schema.json").read_text()))


def metric_names() -> set[str]:
    """Of the operator, and of queue managers as their module names them."""
    from prometheus_client import CollectorRegistry

    import qsg.process.metrics

    registry = CollectorRegistry()
    Metrics(registry)
    found = set(registry._names_to_collectors)
    source = Path(str(qsg.process.metrics.__file__)).read_text()
    for kind, name in re.findall(r'(Gauge|Counter|Histogram)MetricFamily\(\s*"(qsg_\w+)"', source):
        found.add(f"{name}_total" if kind == "Counter" else name)
    return found


@pytest.mark.parametrize("path", ["files/rules.yaml", "files/dashboard.json"])
def test_alerts_and_dashboard_ask_for_metrics_that_are_there(path: str) -> None:
    text = (CHART / path).read_text()
    asked = set(re.findall(r"\bqsg_[a-z_]+", text))
    assert len(asked) > 5
    assert asked - metric_names() == set()


def test_alerts_ask_for_what_conditions_are_told_as() -> None:
    """Once, however many replicas tell it, and also when nothing is known."""
    groups = yaml.safe_load((CHART / "files" / "rules.yaml").read_text())
    asked = [rule["expr"] for group in groups for rule in group["rules"] if "qsg_operator_condition" in rule["expr"]]
    told = [re.fullmatch(r"max by \(kind, namespace, name\) \(qsg_operator_condition\{.*\}\) == (-?\d)", expr) for expr in asked]
    assert {int(one[1]) for one in told if one is not None} == set(VALUES.values()) and None not in told


@with_helm
def test_every_port_with_metrics_is_scraped() -> None:
    values = ("metrics.serviceMonitor.enabled=true", "watchNamespaces={a,b}")
    monitors = of_kind("PodMonitor", *values)
    (deployment,) = of_kind("Deployment", *values)
    owner = group()
    pods = [deployment["spec"]["template"]]
    pods += [one["spec"]["template"] for one in children(owner, Spare()) if one["kind"] == "StatefulSet"]
    scraped = set()
    for pod in pods:
        ports = {port["name"]: port["containerPort"] for c in pod["spec"]["containers"] for port in c.get("ports", ())}
        (monitor,) = [one["spec"] for one in monitors if selects(one["spec"]["selector"], pod["metadata"]["labels"])]
        scraped |= {ports[endpoint["port"]] for endpoint in monitor["podMetricsEndpoints"]}
        assert monitor.get("namespaceSelector", {}).get("matchNames", ["a", "b"]) == ["a", "b"]
    assert scraped == {8081, names.HEALTH_PORT, names.INITIATOR_HEALTH_PORT, names.ETCD_HEALTH_PORT}
    (operators,) = [one["spec"] for one in monitors if one["metadata"]["name"] == "r-operator"]
    assert all(endpoint["honorLabels"] for endpoint in operators["podMetricsEndpoints"]), "namespaces are those of the resources"


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    out = [one for one in selector.get("matchExpressions", ()) if labels.get(one["key"]) in one["values"]]
    return selector["matchLabels"].items() <= labels.items() and not out


def test_the_dashboard_is_json_and_panels_do_not_overlap() -> None:
    panels = json.loads((CHART / "files" / "dashboard.json").read_text())["panels"]
    places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
    assert len(places) == len(panels) and all(p["targets"] for p in panels)
