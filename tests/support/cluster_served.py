"""Which certificates the shop's ports serve: asked from inside a member, which has what the others ask for."""

from __future__ import annotations

import base64
import json

from cryptography import x509

from support.cluster_shop import Shop

MEMBERS = [f"orders-{n}.orders-pods" for n in range(3)]
BANK = "bank-qm-0.bank-qm-pods"
CERTIFIED = {
    "orders-tls": [f"{member}:{port}" for member in MEMBERS for port in (1414, 1415, 1416)],
    "bank-qm-tls": [f"{BANK}:{port}" for port in (1414, 1416)],
    "orders-store-tls": [f"orders-store-{n}:2379" for n in range(3)],
    "orders-store-client-tls": [],  # what clients show is not served
}
"""Secret -> where its certificate is served."""
PROGRAM = """
import base64, json, socket, ssl, sys
def served(address):
    host, _, port = address.partition(":")
    host += f".{namespace}.svc"
    folder = "/etc/qsg/stores/admin" if port == "2379" else "/etc/qsg/tls"
    context = ssl.create_default_context(cafile=f"{folder}/ca.crt")
    context.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain, server_hostname=host) as secure:
        return base64.b64encode(secure.getpeercert(binary_form=True)).decode()
namespace, *addresses = sys.argv[1:]
print(json.dumps({address: served(address) for address in addresses}))
"""


def serial(shop: Shop, secret: str) -> int:
    """Of the certificate in a Secret."""
    return x509.load_pem_x509_certificate(base64.b64decode(shop.namespace.get("secret", secret)["data"]["tls.crt"])).serial_number


def served(shop: Shop) -> dict[str, int]:
    """Address -> serial number of the certificate that is served there, which names it."""
    addresses = [address for found in CERTIFIED.values() for address in found]
    asking = ["exec", "orders-0", "-c", "queue-manager", "--", "python3", "-c", PROGRAM]
    told = shop.namespace.kubectl(*asking, shop.namespace.name, *addresses)
    return {address: x509.load_der_x509_certificate(base64.b64decode(der)).serial_number for address, der in json.loads(told).items()}
