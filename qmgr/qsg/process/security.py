"""Stores and transports as the configuration says, with TLS where it names certificates."""

from __future__ import annotations

import grpc

from qsg.process.config import MemberConfig, StructureConfig, TlsConfig
from qsg.store.etcd.store import EtcdStore
from qsg.transport.grpc_ import GrpcTransport


def transport_of(config: MemberConfig) -> GrpcTransport:
    return GrpcTransport() if config.tls is None else _tls(config.tls)


def _tls(tls: TlsConfig) -> GrpcTransport:
    """Mutual TLS: both sides show a certificate of the same authority."""
    ca, certificate, key = (path.read_bytes() for path in (tls.ca, tls.certificate, tls.key))
    return GrpcTransport(
        client_credentials=grpc.ssl_channel_credentials(ca, key, certificate),
        server_credentials=grpc.ssl_server_credentials([(key, certificate)], ca, require_client_auth=True),
    )


def store_of(config: StructureConfig) -> EtcdStore:
    return EtcdStore(
        config.endpoints,
        ca=config.ca,
        cert=config.certificate,
        key=config.key,
        user=config.user or None,
        password=config.password or None,
    )
