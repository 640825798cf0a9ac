"""The children of a QueueSharingGroup and of a QueueManager: a pure builder for each kind of object; `all` puts them together."""
