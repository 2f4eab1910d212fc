"""`orrery proxy`: the router as a drop-in for configurable-http-proxy (REST API, flags, way of forwarding)."""
