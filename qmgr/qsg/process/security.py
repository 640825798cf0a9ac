"""Stores and transports as the configuration says, with TLS where it names certificates."""

from __future__ import annotations

import ssl

from qsg.process.config import ConfigError, MemberConfig, StructureConfig
from qsg.store.etcd.store import EtcdStore
from qsg.transport.grpc_ import GrpcTransport
from qsg.transport.tls import TlsFiles


def transport_of(config: MemberConfig, *, to_members: bool = False) -> GrpcTransport:
    """With mutual TLS where the configuration names certificates. `to_members`: it connects to other members only. Raises `ConfigError`."""
    if config.tls is None:
        return GrpcTransport()
    try:
        files = TlsFiles(config.tls.ca, config.tls.certificate, config.tls.key)
        return GrpcTransport(files, server_name=config.tls.server_name if to_members else "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"tls: {error}") from error


def store_of(config: StructureConfig) -> EtcdStore:
    user, password = config.user, config.password
    if config.credentials is not None:
        try:
            user, password = ((config.credentials / name).read_text().strip() for name in ("user", "password"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"credentials: {error}") from error
    return EtcdStore(
        config.endpoints,
        ca=config.ca,
        cert=config.certificate,
        key=config.key,
        user=user or None,
        password=password or None,
        quota_bytes=config.quota_bytes,
    )
