"""Where the command `qsg` begins: a member's processes do not load the command line, everything else goes through it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
def execv(path, arguments):
    print(json.dumps([arguments[1:], "typer" in sys.modules]))
    sys.stdout.flush()
    os._exit(0)
os.execv = execv
sys.argv = ["qsg", *sys.argv[1:]]
from qsg.cli.entry import main
main()
"""


def begun(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("process", ["serve", "initiator"])
def test_a_member_s_process_begins_without_the_command_line(process: str, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("")
    became, loaded = json.loads(begun(process, "--config", str(config)).stdout)
    assert became == ["-m", "qsg.process.run", process, str(config)]
    assert not loaded


def test_other_ways_to_say_it_go_through_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text("")
    became, loaded = json.loads(begun("serve", f"--config={config}").stdout)
    assert became == ["-m", "qsg.process.run", "serve", str(config)]
    assert loaded


def test_a_configuration_that_is_not_there_is_told_by_the_command_line(tmp_path: Path) -> None:
    done = begun("serve", "--config", str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "does not exist" in done.stderr
