"""Clients of the service, which need neither torch nor Ray: requests, and streams that outlive their connections."""
