"""Stores and transports as the configuration says, with TLS where it names certificates."""

from __future__ import annotations

import ssl
from functools import partial
from pathlib import Path

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
    user, password, folder = config.user, config.password, config.credentials
    if folder is not None:
        try:
            user, password = _credentials(folder)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"credentials: {error}") from error
    return EtcdStore(
        config.endpoints,
        ca=config.ca,
        cert=config.certificate,
        key=config.key,
        user=user or None,
        password=password or None,
        credentials=partial(_credentials, folder) if folder is not None else None,
        quota_bytes=config.quota_bytes,
    )


def _credentials(folder: Path) -> tuple[str, str]:
    user, password = ((folder / name).read_text().strip() for name in ("user", "password"))
    return user, password
