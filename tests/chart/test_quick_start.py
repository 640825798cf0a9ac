"""What README and NOTES tell people to type is what the chart, the examples and the operator make."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from chart.test_chart import EVERYTHING, examples, helm, of_kind, with_helm
from qsg_operator import names
from qsg_operator.children import config
from qsg_operator.children.all import Spare, children
from qsg_operator.children.certificates import wanted
from qsg_operator.children.config import tls_secret
from qsg_operator.children.objects import container_security, pod_security
from qsg_operator.children.structures import structures
from qsg_operator.selftest import resources as selftest_resources
from support.crds import CHART, ROOT
from support.owners import group, manager

README = (ROOT / "README.md").read_text()
QUICK_START = README.partition("## On Kubernetes")[2].partition("## What is promised")[0]
COMMANDS = [line.strip().partition("  #")[0].rstrip() for line in QUICK_START.splitlines() if line.startswith("    ")]


SHOWN = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: notes}
data:
  notes: {{ tpl (.Files.Get "notes") . | quote }}
"""


def notes(folder: Path, *values: str) -> str:
    """Rendered by a template, as helm shows notes only when it has a cluster."""
    chart = folder / "qsg"
    shutil.copytree(CHART, chart)
    (chart / "templates" / "NOTES.txt").rename(chart / "notes")
    (chart / "templates" / "shown.yaml").write_text(SHOWN)
    sets = [part for value in values for part in ("--set", value)]
    done = helm("template", "qsg", str(chart), "--namespace", "qsg-system", "--kube-version", "1.34.0", "-s", "templates/shown.yaml", *sets)
    assert done.returncode == 0, done.stderr
    text: str = yaml.safe_load(done.stdout)["data"]["notes"]
    return text


def commands_of(text: str, namespace: str) -> list[str]:
    """Without the namespace that is the default one anyway."""
    found = [re.sub(r" +", " ", line.strip()) for line in text.splitlines() if line.startswith("  ")]
    return [line.replace(f" -n {namespace}", "") for line in found]


@with_helm
def test_notes_and_readme_tell_the_same(tmp_path: Path) -> None:
    told = commands_of(notes(tmp_path), "default")
    assert told == [line for line in COMMANDS if line in told] and len(told) == 6


@with_helm
def test_notes_name_the_namespace_that_is_watched(tmp_path: Path) -> None:
    told = notes(tmp_path, "watchNamespaces={shop,ops}", "test.enabled=false")
    assert "for shop, ops" in told and "-n shop" in told and "helm test" not in told


@with_helm
def test_the_image_that_is_built_is_the_one_that_runs() -> None:
    (build,) = [line.split()[3] for line in COMMANDS if line.startswith("docker build")]
    (deployment,) = of_kind("Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == build and f"kind load docker-image {build}" in COMMANDS
    assert container["imagePullPolicy"] == "IfNotPresent"
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None and build == f"qsg:{version[1]}"
    assert f"image: {build}" in (ROOT / "docs" / "restore.yaml").read_text()


def test_pods_and_queues_that_are_named_are_made() -> None:
    made = {(one["kind"], one["metadata"]["name"]) for one in examples()}
    assert {(names.QUEUE_SHARING_GROUP, "orders"), (names.QUEUE_MANAGER, "bank"), (names.SHARED_QUEUE, "payments")} <= made
    pods = {group().pod(0), manager().pod(0)}
    named = {line.split()[2] for line in COMMANDS if line.startswith("kubectl exec")}
    assert named == pods
    queues = {
        one["spec"].get("queueName") or names.mq_name(one["metadata"]["name"]) for one in examples() if one["kind"] == names.SHARED_QUEUE
    }
    assert {line.split()[8] for line in COMMANDS if line.startswith("kubectl exec")} <= queues


def requested(pods: list[dict[str, Any]]) -> float:
    """CPUs; all are told in thousandths."""
    return sum(int(c["resources"]["requests"]["cpu"].removesuffix("m")) for pod in pods for c in pod["containers"]) / 1000


def pods_of(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    makers = {names.QUEUE_SHARING_GROUP: group, names.QUEUE_MANAGER: manager}
    owners = [makers[one["kind"]](one["metadata"]["name"], **one["spec"]) for one in resources if one["kind"] in makers]
    sets = [child for owner in owners for child in children(owner, Spare()) if child["kind"] == "StatefulSet"]
    return [one["spec"]["template"]["spec"] for one in sets for _ in range(one["spec"]["replicas"])]


KIND_REQUESTS = 0.95
"""Of what a cluster of kind runs by itself: API server 0.25, controllers 0.2, DNS 0.2, scheduler, etcd and network 0.1 each."""


@with_helm
def test_the_readme_says_how_many_cpus_are_requested() -> None:
    (deployment,) = of_kind("Deployment")
    (test_pod,) = of_kind("Pod")
    stays = KIND_REQUESTS + requested([deployment["spec"]["template"]["spec"], *pods_of(examples())])
    tested = stays + requested([test_pod["spec"], *pods_of(selftest_resources("ops"))])
    assert f"request {stays:.1f} of them, and {tested:.1f} during `helm test`" in QUICK_START
    (cpus,) = re.findall(r"with (\d) CPUs", QUICK_START)
    assert tested < int(cpus)


@with_helm
def test_a_release_under_another_name_has_no_name_of_the_first() -> None:
    done = helm(
        "template", "second", str(CHART), "--kube-version", "1.34.0", *(p for v in (EVERYTHING, "crds.enabled=false") for p in ("--set", v))
    )
    named = [one["metadata"]["name"] for one in yaml.safe_load_all(done.stdout) if one]
    assert named and all("second" in name for name in named)


def example(kind: str, name: str) -> dict[str, Any]:
    (found,) = [one for one in examples("examples/more") if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def test_the_example_of_several_structures_has_a_queue_in_the_second() -> None:
    owner = group("returns", **example(names.QUEUE_SHARING_GROUP, "returns")["spec"])
    assert [one.name for one in structures(owner)] == ["admin", "busy"]
    queue = example(names.SHARED_QUEUE, "parcels")["spec"]
    assert (queue["group"], queue["structure"]) == ("returns", "busy")


def test_the_example_of_an_external_store_brings_the_secrets_that_it_names() -> None:
    owner = group("shipping", **example(names.QUEUE_SHARING_GROUP, "shipping")["spec"])
    (structure,) = structures(owner)
    assert structure.external is not None
    assert set(example("Secret", structure.external.tls_secret)["stringData"]) == {"ca.crt", "tls.crt", "tls.key"}
    assert set(example("Secret", structure.external.auth_secret)["stringData"]) == {"user", "password"}


def test_the_example_of_cert_manager_has_the_names_that_members_are_reached_by() -> None:
    owner = group("invoices", **example(names.QUEUE_SHARING_GROUP, "invoices")["spec"])
    certificate = example("Certificate", "invoices")["spec"]
    assert certificate["secretName"] == tls_secret(owner)
    made_here = next(one for one in wanted(group("invoices")) if one.secret == "invoices-tls")
    assert certificate["commonName"] == made_here.leaf.common_name
    own = {name.replace(".shop.", ".default.") for name in made_here.leaf.names}
    assert set(certificate["dnsNames"]) <= own and {"*.invoices-pods.default.svc", "invoices-portal.default.svc"} <= set(
        certificate["dnsNames"]
    )


def test_the_example_of_snapshots_has_what_the_members_configuration_names() -> None:
    owner = group()
    pod = example("CronJob", "orders-snapshots")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounted = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    (member,) = [one for one in children(owner, Spare()) if one["metadata"]["name"] == owner.base and one["kind"] == "StatefulSet"]
    of_member = {one["name"]: one for one in member["spec"]["template"]["spec"]["volumes"]}
    for volume in pod["volumes"]:
        if volume["name"] != "backup":
            (source,) = set(volume) - {"name"}
            assert volume[source].items() <= of_member[volume["name"]][source].items(), volume
    (queue_manager, _) = member["spec"]["template"]["spec"]["containers"]
    in_member = {one["name"]: one["mountPath"] for one in queue_manager["volumeMounts"]}
    assert {name: path for name, path in mounted.items() if name != "backup"} == {
        name: in_member[name] for name in mounted if name != "backup"
    }
    environment = {one["name"]: one for one in container["env"]}
    assert environment["QSG_CONFIG"]["value"] == f"{config.FOLDER}/{owner.pod(0)}.yaml"
    assert pod["securityContext"].items() <= pod_security().items() and container["securityContext"] == container_security()


def selects(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    expressions = selector.get("matchExpressions", ())
    return selector.get("matchLabels", {}).items() <= labels.items() and all(labels.get(e["key"]) in e["values"] for e in expressions)


def test_the_example_of_network_policies_selects_the_pods_that_are_made_and_opens_their_ports() -> None:
    owner = group()
    ports: dict[str, set[int]] = {}
    for child in children(owner, Spare()):
        if child["kind"] == "StatefulSet":
            labels = child["spec"]["template"]["metadata"]["labels"]
            (policy,) = [one for one in examples("examples/more") if one["kind"] == "NetworkPolicy" and selects(one, labels)]
            open_ports = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
            served = {port["containerPort"] for one in child["spec"]["template"]["spec"]["containers"] for port in one["ports"]}
            assert open_ports == served
            ports[policy["metadata"]["name"]] = open_ports
    assert set(ports) == {"orders-store", "orders-members"}


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_is_of_a_program_that_is_named(line: str) -> None:
    assert line.split()[0] in ("kind", "docker", "helm", "kubectl")
