#!/usr/bin/env bash
# Locks the dependencies with hashes, for all platforms and Python 3.11 on.
set -euo pipefail
cd "$(dirname "$0")/.."
${VENV:-.venv}/bin/python -m pip install -q uv
compile() { ${VENV:-.venv}/bin/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" "$@"; }
compile pyproject.toml --group build -o requirements/run.lock
compile --group build -c requirements/run.lock -o requirements/build.lock
compile pyproject.toml --extra operator -c requirements/run.lock -o requirements/operator.lock
compile pyproject.toml --group dev --extra operator -c requirements/run.lock -o requirements/dev.lock
