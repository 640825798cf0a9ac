"""Configuration of one member (queue manager and channel initiator), read from a YAML file or environment."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, ValidationError, model_validator

from qsg.rules.definitions import PRIVATE, Definition, Name, OptionalName, is_address
from qsg.rules.texts import NotYaml, read_yaml

ADMIN = "admin"


class ConfigError(Exception):
    """What is wrong in which file and field."""


class StructureConfig(Definition):
    """How to reach one structure: an etcd cluster, or the embedded store (`qsg store`) of a group on one machine."""

    endpoints: tuple[str, ...] = Field(min_length=1)
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str = ""
    password: str = ""
    credentials: Path | None = None
    """Folder with the files `user` and `password`, instead of those here."""
    quota_bytes: int = Field(default=0, ge=0)
    """Of etcd, which does not tell it before 3.6; 0 = as it tells. Puts are refused before it is reached."""


class TlsConfig(Definition):
    ca: Path
    certificate: Path
    key: Path
    server_name: str = ""
    """A name that the certificates of all members have, for members that are reached by another; "" = the one they are reached by."""
    peers: tuple[str, ...] = ()
    """Names in certificates that members of this group have; () = any that `ca` has signed."""
    clients: tuple[str, ...] = ()
    """Names in certificates that may use the client API; () = any that `ca` has signed."""


class MemberConfig(Definition):
    """One queue manager. Without `group` it is a queue manager outside any group and has only its private store."""

    member: Name
    """LOCAL NAME."""
    group: OptionalName = ""
    """GROUP NAME, different from every member's."""
    data: Path
    """Folder of the private store."""
    socket: Path
    """Unix socket between queue manager and channel initiator."""
    structures: dict[str, StructureConfig] = Field(default_factory=dict)
    address: str = "127.0.0.1:1416"
    """host:port of the client API and peer links."""
    advertise: str = ""
    """host:port that peers use for `address`; "" = as bound. In a file `$(NAME)` stands for an environment variable: an address of its own
    is found at once where the name of a member that is back leads to its old address for a while."""
    group_listener: str = "127.0.0.1:1415"
    local_listener: str = "127.0.0.1:1414"
    aliases: dict[str, str] = Field(default_factory=dict)
    """Connection name -> host:port, for machines without DNS."""
    definitions: Path | None = None
    """Definitions applied at start where they are absent."""
    slots: int = Field(default=2, ge=1, le=16)
    lease_ttl_s: int = Field(default=5, ge=2, le=60)
    private_quota_bytes: int = Field(default=0, ge=0)
    tls: TlsConfig | None = None
    accept_restored: str = ""
    """Your word that structures which came back from a snapshot may be used, once for each such word: see `qsg store confirm`."""
    monitor: str = ""
    """host:port of the queue manager's /livez, /readyz and /metrics; "" = none."""
    initiator_monitor: str = ""
    """The same of the channel initiator."""
    initiator_linger_s: float = Field(default=0, ge=0, le=3600)
    """An initiator that is told to end together with its queue manager serves on for so long at most, until that has handed over."""

    @model_validator(mode="after")
    def _check(self) -> MemberConfig:
        addresses = {"address": self.address, "group_listener": self.group_listener, "local_listener": self.local_listener}
        addresses |= {f: at for f, at in (("monitor", self.monitor), ("initiator_monitor", self.initiator_monitor)) if at}
        addresses |= {"advertise": self.advertise or self.address} | {f"aliases.{name}": at for name, at in self.aliases.items()}
        for field, address in addresses.items():
            if not is_address(address):
                raise ValueError(f"{field}: {address!r} is not host:port")
        if self.group and self.group == self.member:
            raise ValueError("group and member must have different names")
        if bool(self.group) != bool(self.structures):
            raise ValueError("a group needs structures, and structures need a group")
        if self.structures and ADMIN not in self.structures:
            raise ValueError(f"structures must hold one named {ADMIN!r}")
        if PRIVATE in self.structures:
            raise ValueError(f"{PRIVATE!r} is the name of the queue manager's own store")
        return self


def load(path: Path, environment: Mapping[str, str] = os.environ) -> MemberConfig:
    try:
        data, _ = read_yaml(path.read_text())
        if isinstance(data, dict) and isinstance(data.get("advertise"), str):
            data = data | {"advertise": _filled_in(data["advertise"], environment)}
        return MemberConfig.model_validate(data)
    except (OSError, UnicodeDecodeError, NotYaml) as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors())
        raise ConfigError(f"{path}: {wrong}") from error


def _filled_in(address: str, environment: Mapping[str, str]) -> str:
    """Raises `ConfigError` for a variable that is not there."""

    def value(found: re.Match[str]) -> str:
        text = environment.get(found[1], "")
        if not text:
            raise ConfigError(f"advertise: {address!r} needs the environment variable {found[1]}")
        return f"[{text}]" if ":" in text else text

    return re.sub(r"\$\((\w+)\)", value, address)
