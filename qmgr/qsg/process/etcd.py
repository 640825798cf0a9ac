"""A local etcd: `EtcdCluster` to run one, `ensure` to have its binary; `python -m qsg.process.etcd ensure` prints the binary's path."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from qsg.process.etcd_binary import ensure, tool
from qsg.process.etcd_cluster import EtcdCluster, EtcdFailed, EtcdOptions, ServerTls
from qsg.process.go_build import CannotProvide

__all__ = ["CannotProvide", "EtcdCluster", "EtcdFailed", "EtcdOptions", "ServerTls", "ensure", "main", "tool"]


def main(arguments: Sequence[str]) -> int:
    if list(arguments) != ["ensure"]:
        sys.stderr.write("usage: python -m qsg.process.etcd ensure\n")
        return 2
    try:
        sys.stdout.write(f"{ensure()}\n")
    except CannotProvide as error:
        sys.stderr.write(f"etcd: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
