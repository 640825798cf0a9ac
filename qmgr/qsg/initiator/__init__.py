"""The channel initiator: message channel agents and listeners, joined to one queue manager."""

from qsg.initiator.service import Initiator

__all__ = ["Initiator"]
