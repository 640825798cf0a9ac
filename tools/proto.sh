#!/usr/bin/env bash
# Regenerates qmgr/qsg/pb from proto/. The generator is old on purpose: code from a new one refuses older protobuf runtimes.
set -euo pipefail
cd "$(dirname "$0")/.."
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
for python in python3.13 python3.12 python3.11 python3; do "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && break; done
"$python" -m venv "$tmp/venv"
"$tmp/venv/bin/pip" -q install 'grpcio-tools==1.71.2' 'mypy-protobuf==3.6.0' 'setuptools<80'
PATH="$tmp/venv/bin:$PATH" "$tmp/venv/bin/python" -m grpc_tools.protoc -Iproto --python_out=qmgr --mypy_out=quiet:qmgr $(find proto/qsg -name '*.proto')
