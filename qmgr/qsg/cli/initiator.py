"""`qsg initiator`: the channel initiator of a member, until it is told to end."""

from __future__ import annotations

from qsg.cli.entry import become
from qsg.cli.serve import Config


def initiator(config: Config) -> None:
    """Runs the channel initiator beside the queue manager with the same configuration. Logs JSON on standard error."""
    become("initiator", str(config))
