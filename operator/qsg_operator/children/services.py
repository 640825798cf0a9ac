"""Services of the members: the portal (or the listener of a queue manager outside a group), the client API, and names for single pods."""

from __future__ import annotations

from qsg_operator import names
from qsg_operator.children.objects import Object, Owner, child, headless
from qsg_operator.specs.common import Service
from qsg_operator.specs.group import QueueSharingGroup

COMPONENT = "member"
PORTS = {"listener": names.LOCAL_PORT, "portal": names.PORTAL_PORT, "client": names.CLIENT_PORT, "health": names.HEALTH_PORT}


def pods_service(owner: Owner) -> Object:
    ports = dict(PORTS)
    if owner.group is None:
        del ports["portal"]
    return headless(owner, names.pods(owner.base), COMPONENT, ports)


def client_service(owner: Owner) -> Object:
    service = child(owner, "v1", "Service", names.client(owner.base), COMPONENT)
    service["spec"] = {"type": "ClusterIP", "selector": owner.labels(COMPONENT), "ports": [_port("client", names.CLIENT_PORT, 0)]}
    return service


def partner_service(owner: Owner) -> Object:
    """Where partners connect to: any member of a group, by the group listener; the one listener of a queue manager outside."""
    if isinstance(owner.spec, QueueSharingGroup):
        return _exposed(owner, names.portal(owner.base), "portal", names.PORTAL_PORT, owner.spec.portal)
    return _exposed(owner, names.listener(owner.base), "listener", names.LOCAL_PORT, owner.spec.listener)


def partner_address(owner: Owner) -> str:
    service = partner_service(owner)
    return f"{service['metadata']['name']}.{owner.namespace}.svc:{service['spec']['ports'][0]['port']}"


def client_address(owner: Owner) -> str:
    return f"{names.server_name(owner.base, owner.namespace)}:{names.CLIENT_PORT}"


def _exposed(owner: Owner, name: str, port: str, number: int, given: Service) -> Object:
    service = child(owner, "v1", "Service", name, COMPONENT, given.annotations)
    spec: Object = {"type": given.type, "selector": owner.labels(COMPONENT), "ports": [_port(port, number, given.node_port)]}
    if given.type != "ClusterIP":
        spec["externalTrafficPolicy"] = given.external_traffic_policy
    if given.load_balancer_class:
        spec["loadBalancerClass"] = given.load_balancer_class
    service["spec"] = spec
    return service


def _port(name: str, number: int, node_port: int) -> Object:
    port: Object = {"name": name, "port": number, "targetPort": number, "protocol": "TCP"}
    return port | {"nodePort": node_port} if node_port else port
