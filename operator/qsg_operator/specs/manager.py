"""QueueManager: a queue manager outside any group, with a volume of its own."""

from __future__ import annotations

from pydantic import Field

from qsg_operator.specs.channel import Tuning
from qsg_operator.specs.common import Pods, QueueManagerName, Service, Settings


class QueueManager(Pods):
    queue_manager_name: QueueManagerName = ""
    """"" = the resource's name in upper case, with dots."""
    listener: Service = Service()
    settings: Settings = Settings()
    channel_defaults: Tuning = Tuning()
    quota_bytes: int = Field(default=0, ge=0, le=1_099_511_627_776)
    """Of its store; 0 = what the volume holds."""
