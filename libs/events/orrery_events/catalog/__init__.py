"""Every event there is, one module per category. Importing this package registers them all."""

from __future__ import annotations

from . import auth, instance, profile, route, server, user

__all__ = ["auth", "instance", "profile", "route", "server", "user"]
