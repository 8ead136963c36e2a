"""The service over HTTP and WebSocket: routes, formats, limits, streams, metrics and page; alone or in Ray Serve."""
