"""An etcd to run: found, or built from its Go modules. Never "not available": who needs one gets one, or an error that says why not.

Order: `etcd` on the PATH if it is new enough, then the cache, then a build (`qsg.process.go_build`). etcd before 3.5.18 is not accepted:
its watches can lose events beside a compaction (etcd issues 18089, 19179), and its progress notifications can overtake events (15220).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from qsg.process import go_build
from qsg.process.go_build import CannotProvide, say, version_of

VERSION = "3.6.16"
OLDEST = (3, 5, 18)
_MODULES = {"etcd": "go.etcd.io/etcd/server/v3", "etcdctl": "go.etcd.io/etcd/etcdctl/v3", "etcdutl": "go.etcd.io/etcd/etcdutl/v3"}


def ensure() -> Path:
    """The path of an etcd that will do; says on stderr which."""
    if (found := _on_path()) is not None:
        say(f"etcd: using {found} from the PATH")
        return found
    cached = go_build.built(cache_directory().name, VERSION, _MODULES)
    say(f"etcd: using {cached}")
    return cached


def cache_directory() -> Path:
    return go_build.cache_directory(f"etcd-{VERSION}")


def tool(name: str) -> Path:
    """`etcdctl` or `etcdutl`: beside the etcd in use, or on the PATH."""
    beside = ensure().with_name(name)
    if beside.exists():
        return beside
    if found := shutil.which(name):
        return Path(found)
    raise CannotProvide(f"{name} is neither beside {beside} nor on the PATH")


def _on_path() -> Path | None:
    found = shutil.which("etcd")
    if found is None:
        return None
    answer = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    version = version_of(answer.stdout)
    if version < OLDEST:
        say(f"etcd: {found} is {'.'.join(map(str, version))}, older than {'.'.join(map(str, OLDEST))}: not used")
        return None
    return Path(found)
