#!/bin/sh
# Runs the etcd that the tests use (found, or built once) with the arguments given; `tools/etcd.sh --version`.
set -eu
binary=$("${PYTHON:-python3}" -m qsg.process.etcd ensure)
exec "$binary" "$@"
