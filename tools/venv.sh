#!/usr/bin/env bash
# Makes a virtual environment with the newest suitable Python (3.11 to 3.14) on this machine.
set -euo pipefail
venv=$1
for python in python3.13 python3.14 python3.12 python3.11 python3; do
  if "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; then
    if "$python" -m venv "$venv" 2>/dev/null; then exit 0; fi
    rm -rf "$venv"
    # Debian ships venv without ensurepip in a package of its own.
    if "$python" -m virtualenv "$venv" 2>/dev/null; then exit 0; fi
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
      echo "installing python3-venv" >&2
      apt-get update -qq && apt-get install -y -qq python3-venv >/dev/null && "$python" -m venv "$venv" && exit 0
    fi
    echo "$python cannot make a virtual environment: install python3-venv" >&2
  fi
done
echo "Python 3.11 to 3.14 is needed (with python3-venv)" >&2
exit 1
