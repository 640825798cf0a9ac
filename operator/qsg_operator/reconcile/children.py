"""Children as they should be, by server-side apply; certificates made and renewed.

Invariant: what belongs to somebody else is not touched. A child is applied again when it should be another, when somebody has changed it,
and every minute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import structlog

from qsg_operator import authority, certificates, names
from qsg_operator.api import ApiError
from qsg_operator.cache import Object
from qsg_operator.certificates import BadSecret
from qsg_operator.children.all import Spare, children
from qsg_operator.children.certificates import Wanted, authorities, decoded, secret, server_name, wanted
from qsg_operator.children.config import tls_secret
from qsg_operator.children.objects import Owner
from qsg_operator.conditions import timestamp
from qsg_operator.members import Way
from qsg_operator.reconcile.context import Context, is_ours, settled, together
from qsg_operator.reconcile.target import TargetState

log = structlog.get_logger()
STATEFUL_SET_MAX = 52
"""Characters of a name whose pods can be made: it is in a label with a hash behind it. Of a group and a structure they may be more."""


class Conflict(Exception):
    """A name cannot be had: something of the name is there and is not ours, or pods cannot have it."""


def digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


async def apply_children(
    context: Context, owner: Owner, state: TargetState, can_lose: Spare, *, all_anew: bool, budgets_only: bool = False
) -> None:
    """`budgets_only`: where pods must not be changed, as what they need is not known. Raises `ApiError`, `Conflict`, after all else is
    applied."""
    made = children(owner, can_lose, state.store_trust)
    if budgets_only:
        made = [c for c in made if c["kind"] == "PodDisruptionBudget"]
    for stage in ([c for c in made if c["kind"] != "StatefulSet"], [c for c in made if c["kind"] == "StatefulSet"]):
        await together([_apply(context, owner, state, child, all_anew=all_anew) for child in stage])
    for child in made:
        kind, name = child["kind"], child["metadata"]["name"]
        shown = (context.cache.get(kind, owner.namespace, name) or {}).get("status") or {}
        if kind == "StatefulSet" and len(name) > STATEFUL_SET_MAX and not shown.get("replicas"):
            raise Conflict(f"StatefulSet {name}: more than {STATEFUL_SET_MAX} characters: a label of its pods cannot be made of it")


async def _apply(context: Context, owner: Owner, state: TargetState, child: Object, *, all_anew: bool) -> None:
    kind, meta = child["kind"], child["metadata"]
    present = context.cache.get(kind, meta["namespace"], meta["name"])
    if present is not None and not is_ours(present, owner.uid):
        raise Conflict(f"{kind} {meta['name']} is there and belongs to somebody else")
    made = digest(child)
    known = state.applied.get((kind, meta["name"]))
    if present is not None and known == (made, settled(present)) and not all_anew:
        return
    if present is None:
        await _not_anothers(context, owner, kind, meta["namespace"], meta["name"])
    applied = await context.api.apply(child)
    state.applied[kind, meta["name"]] = made, settled(applied)


async def _not_anothers(context: Context, owner: Owner, kind: str, namespace: str, name: str) -> None:
    """What is not in the cache may be there all the same, without our labels."""
    there = await context.api.get(kind, namespace, name)
    if there is not None and not is_ours(there, owner.uid):
        raise Conflict(f"{kind} {name} is there and belongs to somebody else")


# Certificates


async def reconcile_certificates(context: Context, owner: Owner, state: TargetState) -> None:
    """Makes and renews Secrets, and finds out how members are reached. Raises `ApiError`, `BadSecret`."""
    signers = {name: await _authority(context, owner, name, owned=owned) for name, owned in authorities(owner).items()}
    store = signers.get(names.store_authority(owner.base), {})
    state.store_trust = digest(store[certificates.CA].decode())[:16] if authority.several(store) else ""
    data: dict[str, Mapping[str, bytes]] = {}
    for one in wanted(owner):
        data[one.secret] = await _certificate(context, owner, one, signers[one.authority])
    mode = owner.pods.tls.mode
    name = tls_secret(owner)
    if mode == "Secret":
        data[name] = await _given(context, owner, name)
    shown = data.get(names.client_tls(owner.base)) or data.get(name)
    addresses = state.way.addresses
    if shown is None:
        state.way, state.expires = Way(addresses, owner.mq_name), ""
        return
    state.way = Way(
        addresses,
        owner.mq_name,
        ca=shown[certificates.CA],
        certificate=shown[certificates.CERTIFICATE],
        key=shown[certificates.KEY],
        server_name=server_name(owner),
    )
    state.expires = timestamp(certificates.expiry(data[name]))


async def _given(context: Context, owner: Owner, name: str) -> Mapping[str, bytes]:
    found = await context.api.get("Secret", owner.namespace, name)
    if found is None:
        raise BadSecret(f"Secret {name} is not there")
    data = decoded(found)
    try:
        certificates.check(data)
    except BadSecret as error:
        raise BadSecret(f"Secret {name}: {error}") from error
    return data


async def _authority(context: Context, owner: Owner, name: str, *, owned: bool) -> Mapping[str, bytes]:
    """As it is kept up: two targets that share one, or two operators, do not overwrite each other's."""
    found = await context.api.get("Secret", owner.namespace, name)
    common_name, component = authority.name_for(owner.namespace, name), "store" if owned else "authority"
    if found is None:
        if owned:
            await _not_in_use(context, owner, name)
        data = authority.new_authority(common_name, context.now())
        try:
            await context.api.create(secret(owner, name, component, data, owned=owned))
        except ApiError as error:
            if error.status != 409:
                raise
            found = await context.api.get("Secret", owner.namespace, name)
            if found is None:
                raise
        else:
            return data
    present = decoded(found)
    try:
        asked = authority.asked_time((found["metadata"].get("annotations") or {}).get(names.RENEW, ""))
        data = authority.kept_up(present, common_name, context.now(), made_before=asked)
    except BadSecret as error:
        raise BadSecret(f"Secret {name}: {error}") from error
    if data != present:
        made = secret(owner, name, component, data, owned=owned)
        made["metadata"]["resourceVersion"] = found["metadata"]["resourceVersion"]
        await context.api.apply(made)
        log.info("authority", secret=name, namespace=owner.namespace, overlap=authority.NEXT_CERTIFICATE in data)
    return data


async def _not_in_use(context: Context, owner: Owner, name: str) -> None:
    """etcd reads whom to trust at its start only: another authority at once would cut its members off from each other for good."""
    leaf = names.store_tls(owner.base)
    found = await context.api.get("Secret", owner.namespace, leaf)
    if found is not None and is_ours(found, owner.uid):
        text = f"Secret {name} is gone, and running etcd members trust nobody else: put it back, or delete Secret {leaf} too and then all"
        raise BadSecret(f"{text} pods of etcd at once")


async def _certificate(context: Context, owner: Owner, one: Wanted, authority: Mapping[str, bytes]) -> Mapping[str, bytes]:
    found = await context.api.get("Secret", owner.namespace, one.secret)
    if found is not None and not is_ours(found, owner.uid):
        raise Conflict(f"Secret {one.secret} is there and belongs to somebody else")
    present = decoded(found) if found is not None else None
    try:
        data = certificates.issued(one.leaf, present, authority, context.now())
    except BadSecret as error:
        raise BadSecret(f"Secret {one.authority}: {error}") from error
    if data != present:
        await context.api.apply(secret(owner, one.secret, one.component, data))
    return data
