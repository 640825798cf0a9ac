"""The store contract over etcd's v3 API (etcd 3.5.18 or newer, or `qsg store`)."""

from qsg.store.etcd.endpoints import Security
from qsg.store.etcd.store import EtcdStore

__all__ = ["EtcdStore", "Security"]
