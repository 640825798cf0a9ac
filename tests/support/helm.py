"""helm for the tests of the chart: named by HELM, on the PATH, in the cache, or built from its Go module, once.

`python -m support.helm` gets one and prints its path.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from qsg.process.go_build import CannotProvide, built, say

VERSION = "3.19.2"
_PACKAGES = {"helm": "helm.sh/helm/v3/cmd/helm"}


def ensure() -> Path:
    """Raises `CannotProvide`."""
    found = os.environ.get("HELM") or shutil.which("helm")
    path = Path(found) if found else built(f"helm-{VERSION}", VERSION, _PACKAGES)
    say(f"helm: using {path}")
    return path


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{ensure()}\n")
    except CannotProvide as error:
        sys.exit(f"helm: {error}")
