"""`kubectl qsg …`: the command line `qsg`, run here, through the API server to a member of a group or a queue manager outside one.

Owns the way there: finds the target with kubectl's own configuration, takes the certificate for applications from its Secret, and forwards
ports of this machine to members while the command runs. Invariant: what is read from the Secret lies in a folder that this user alone can
read, and is gone when the command ends; kubectl ends with it. Not guaranteed: any of that after a SIGKILL. Of the cluster it needs: get
groups and queue managers, list pods, create pods/portforward, get one Secret.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

from qsg_operator import names
from qsg_operator.forwarding import Kubectl, KubectlFailed

COMMANDS = ("put", "get", "browse", "apply", "queue", "channel", "group", "bench", "version")
"""Those that speak to a queue manager; the others run processes here."""
FORWARDS = 2
"""Members at once, so that a command can go on when one of them dies."""
FILES = {"QSG_CA": "ca.crt", "QSG_CERTIFICATE": "tls.crt", "QSG_KEY": "tls.key"}
EPILOG = f"""COMMAND is one of {", ".join(COMMANDS)}; `kubectl qsg COMMAND --help` says more. Without --group and --queue-manager it is
for the only group of the namespace, or its only queue manager when it has no group."""


class NotFound(Exception):
    """There is no such target, or it cannot be told which is meant."""


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "kubectl qsg", description="The command line qsg, for a group or queue manager on Kubernetes.", epilog=EPILOG
    )
    made.add_argument("-n", "--namespace", default="", help="of the group; default is kubectl's")
    made.add_argument("-g", "--group", default="", help="a QueueSharingGroup")
    made.add_argument("-q", "--queue-manager", default="", help="a QueueManager")
    made.add_argument("--context", default="", help="of the KUBECONFIG")
    made.add_argument("--kubeconfig", default="")
    made.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    made.add_argument("arguments", nargs=argparse.REMAINDER, metavar="…")
    return made


def choose(found: Sequence[dict[str, Any]], group: str, queue_manager: str) -> dict[str, Any]:
    """Which resource is meant. Raises `NotFound`, with what there is."""
    kind, name = (names.QUEUE_MANAGER, queue_manager) if queue_manager else (names.QUEUE_SHARING_GROUP, group)
    if name:
        fitting = [one for one in found if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    else:
        groups = [one for one in found if one["kind"] == names.QUEUE_SHARING_GROUP]
        fitting = groups or list(found)
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(f"{_OPTIONS[one['kind']]} {one['metadata']['name']}" for one in found)
    problem = f"there is no {kind} {name} here" if name else "which one?" if fitting else "there is no group and no queue manager here"
    raise NotFound(f"{problem}; there is: {there}" if there else problem)


_OPTIONS = {names.QUEUE_SHARING_GROUP: "--group", names.QUEUE_MANAGER: "--queue-manager"}


def secret_of(target: dict[str, Any]) -> str:
    """Name of the Secret with a certificate that members take; "" = no TLS."""
    tls = target["spec"].get("tls") or {}
    match tls.get("mode", "Managed"):
        case "Off":
            return ""
        case "Secret":
            return str(tls["secretName"])
    return names.client_tls(names.base(target["kind"], target["metadata"]["name"]))


def ready(pods: Sequence[dict[str, Any]]) -> list[str]:
    """Names of pods that serve."""

    def serves(pod: dict[str, Any]) -> bool:
        conditions = (pod.get("status") or {}).get("conditions") or ()
        return "deletionTimestamp" not in pod["metadata"] and any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)

    return [pod["metadata"]["name"] for pod in pods if serves(pod)]


def certificate_files(folder: Path, secret: dict[str, Any]) -> dict[str, str]:
    """Writes them; the environment that names them. Raises `NotFound`."""
    found = {}
    for variable, name in FILES.items():
        data = (secret.get("data") or {}).get(name)
        if not data:
            raise NotFound(f"Secret {secret['metadata']['name']} has no {name}")
        path = folder / name
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(base64.b64decode(data))
        found[variable] = str(path)
    return found


def way(kubectl: Kubectl, options: argparse.Namespace, stack: ExitStack) -> dict[str, str]:
    """The environment with which `qsg` reaches the target, as long as `stack` is open. Raises `NotFound`, `KubectlFailed`."""
    kinds = ",".join(f"{names.PLURALS[kind]}.{names.GROUP}" for kind in _OPTIONS)
    target = choose(kubectl.json("get", kinds)["items"], options.group, options.queue_manager)
    kind, name, namespace = target["kind"], target["metadata"]["name"], target["metadata"]["namespace"]
    kubectl = kubectl.within(namespace)
    selector = ",".join(f"{key}={value}" for key, value in names.labels(kind, name, "member").items())
    pods = ready(kubectl.json("get", "pods", "-l", selector)["items"])
    if not pods:
        raise NotFound(f"no pod of {name} is ready: `kubectl describe {names.PLURALS[kind]} {name} -n {namespace}` says why")
    environment = {}
    if secret := secret_of(target):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kubectl-qsg-", dir=_memory())))
        environment = certificate_files(folder, kubectl.json("get", "secret", secret))
        environment["QSG_SERVER_NAME"] = names.server_name(names.base(kind, name), namespace)
    addresses = kubectl.forwarded(pods[:FORWARDS], names.CLIENT_PORT, stack)
    return environment | {"QSG_CONNECT": ",".join(addresses)}


def _memory() -> str | None:
    """A place for secrets that is no disk, where there is one."""
    folder = os.environ.get("XDG_RUNTIME_DIR", "")
    return folder if folder and os.access(folder, os.W_OK) else None


_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


def _end(number: int, _: object) -> None:
    for other in _ENDINGS:
        signal.signal(other, signal.SIG_IGN)  # what is left to do is to clean up
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = parser().parse_args(given)
    command = [options.command, *options.arguments]
    for number in _ENDINGS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    with ExitStack() as stack:
        if "--help" not in options.arguments and options.command != "version":
            kubectl = Kubectl.of(options.namespace, options.context, options.kubeconfig)
            try:
                found = way(kubectl, options, stack)
            except (NotFound, KubectlFailed) as error:
                sys.stderr.write(f"error: {error}\n")
                sys.exit(4)
            for variable in (*FILES, "QSG_SERVER_NAME"):
                os.environ.pop(variable, None)  # somebody else's: this target may have none
            os.environ.update(found)
        from qsg.cli.main import build  # late: it looks at the environment

        build(command)(args=command, prog_name="kubectl qsg")
    sys.exit(0)


if __name__ == "__main__":
    main()
