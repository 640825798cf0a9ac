"""qsg: queue-sharing groups for Kubernetes. Applications use `connect` (see `qsg.client`)."""
